"""What the pipelines need of private parts of Ray, DeepSpeed and torch is there.

The universal conversion, ZeRO-3's shares and Ray's store are met by the tests of resuming,
checkpoints and streams in tests/cluster and tests/chaos.
"""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import ray
import torch

from pipelines import compat


def test_the_operator_that_splits_has_what_is_set() -> None:
    from ray.data._internal.logical.operators import StreamingRepartition

    assert {"ray_remote_args", "compute"} <= {field.name for field in fields(StreamingRepartition)}
    assert "_logical_plan" in inspect.getsource(ray.data.Dataset.__init__)


def test_deepspeed_asks_the_table_that_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed
    from deepspeed.comm.torch import build_shm_op

    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    compat.without_shared_memory_collective()
    assert build_shm_op() is None


def test_the_share_of_a_parameter_is_what_zero_3_left_here() -> None:
    from deepspeed.runtime.zero import partition_parameters

    parameter = torch.nn.Parameter(torch.ones(3))
    assert compat.own_share(parameter) is parameter
    assert "param.ds_tensor" in inspect.getsource(partition_parameters)


def test_aotinductor_takes_options_and_a_path() -> None:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    taken = inspect.signature(aoti_compile_and_package).parameters
    assert {"package_path", "inductor_configs"} <= set(taken)
    assert "path" in inspect.signature(aoti_load_package).parameters


def test_every_group_of_a_process_gets_the_limit(tmp_path: Path) -> None:
    from torch import distributed as dist
    from torch.distributed import distributed_c10d

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        # As DeepSpeed makes them: torch gives it a limit of its own.
        groups = [distributed_c10d._get_default_group(), dist.new_group([0])]
        compat.limit_collectives(7.5)
        backends = [group._get_backend(torch.device("cpu")) for group in groups]
        assert [b.options._timeout.total_seconds() for b in backends] == [7.5, 7.5]
    finally:
        dist.destroy_process_group()
