"""What the pipelines need of private parts of Ray, DeepSpeed and torch is there.

The universal conversion, ZeRO-3's shares and Ray's store are met by the tests of resuming,
checkpoints and streams in tests/cluster and tests/chaos.
"""

import inspect
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import ray
import torch

from pipelines import compat
from tests.support.paths import ROOT


def test_the_operator_that_splits_has_what_is_set() -> None:
    from ray.data._internal.logical.operators import StreamingRepartition

    assert {"ray_remote_args", "compute"} <= {field.name for field in fields(StreamingRepartition)}
    assert "_logical_plan" in inspect.getsource(ray.data.Dataset.__init__)


@pytest.mark.parametrize("first", ["pipelines.compat", "mlflow"])
def test_deepspeed_comes_without_mlflow_which_can_be_had_afterwards(first: str) -> None:
    """In a process of its own, as a worker is; also where MLflow is there already."""
    script = (
        f"import sys, {first}\n"
        "from pipelines.compat import import_deepspeed\n"
        "before = 'mlflow' in sys.modules\n"
        "import_deepspeed(gpu=False)\n"
        "from deepspeed.autotuning import autotuner\n"
        "assert ('mlflow' in sys.modules) is before\n"
        "assert autotuner.has_mlflow is before\n"
        "from mlflow import MlflowClient\n"
        "assert MlflowClient and sys.modules['mlflow']\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        cwd=ROOT,
        timeout=240,
        check=True,
    )


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
