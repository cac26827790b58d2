"""What the pipelines need of private parts of Ray, DeepSpeed and torch is there.

The universal conversion, ZeRO-3's shares and Ray's store are met by the tests of resuming,
checkpoints and streams in tests/cluster and tests/chaos.
"""

import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_what_holds_the_import_lock_of_all_threads_is_imported_before_there_are_others() -> None:
    """The stand-in for distutils imports setuptools while it holds that lock."""
    script = (
        "import sys\n"
        "from pipelines.compat import import_deepspeed\n"
        "import_deepspeed(gpu=False)\n"
        "before = set(sys.modules)\n"
        "import distutils.ccompiler, distutils.log, distutils.sysconfig, distutils.errors\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'setuptools', 'packaging', 'jaraco', 'importlib_metadata'}, new\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=240, check=True)


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


def test_an_elastic_trainer_counts_as_it_is_told_within_its_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer:
        scaling_config = ScalingConfig(num_workers=(1, 3), elastic_resize_monitor_interval_s=0)

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            return parts["scaling_policy"]

    # Where the policy is handed over.
    assert "_initialize_and_run_controller(" in inspect.getsource(DataParallelTrainer.fit)
    assert "scaling_policy=" in inspect.getsource(DataParallelTrainer.fit)
    asked: list[int] = []
    rooms = iter([0, OSError(), 2, 5, 2, OSError()])

    def room(running: int) -> int:
        asked.append(running)
        found = next(rooms)
        if isinstance(found, OSError):
            raise found
        return found

    trainer = Trainer()
    compat.count_workers_by(trainer, room)
    policy = trainer._initialize_and_run_controller(scaling_policy=None)
    assert isinstance(policy, ElasticScalingPolicy)
    policy._maybe_send_resource_request = lambda: None
    policy._get_reserved_resources = dict
    # Too few, then none could be counted: Ray is let wait, and not asked at once again.
    slept: list[float] = []
    monkeypatch.setattr(compat.time, "sleep", slept.append)
    for _ in range(2):
        assert not isinstance(policy.make_decision_for_non_running_worker_group(), ResizeDecision)
    assert slept == [1.0, 1.0]
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    state = SimpleNamespace(num_workers=2, start_time=0.0)
    running = policy.make_decision_for_running_worker_group(
        worker_group_state=state, worker_group_status=None
    )
    assert running.num_workers == 3
    for _ in range(2):
        same = policy.make_decision_for_running_worker_group(
            worker_group_state=state, worker_group_status=None
        )
        assert not isinstance(same, ResizeDecision)
    assert asked == [0, 0, 0, 2, 2, 2]


def test_a_checkpoint_is_asked_for_before_workers_that_are_well_are_exchanged() -> None:
    from ray.train.v2._internal.execution import callback
    from ray.train.v2._internal.execution.controller.controller import TrainController

    saved: list[None] = []
    found = compat.before_resize(lambda: saved.append(None))
    hooks = [name for name in vars(type(found)) if name.startswith(("after_", "before_"))]
    known = {**vars(callback.ControllerCallback), **vars(callback.WorkerGroupCallback)}
    assert len(hooks) == 5
    assert set(hooks) <= set(known)
    assert "before_controller_execute_resize_decision" in inspect.getsource(TrainController)
    sick, healthy = SimpleNamespace(errors={0: OSError()}), SimpleNamespace(errors={})
    # The first start; workers that run; a failure; the start behind it; a machine taken away.
    found.before_controller_execute_resize_decision(None)
    found.after_worker_group_training_start(None)
    found.after_worker_group_poll_status(sick)
    found.before_controller_execute_resize_decision(None)
    found.after_worker_group_poll_status(healthy)
    found.before_controller_execute_failure_decision(None)
    found.before_controller_execute_resize_decision(None)
    assert not saved
    found.after_worker_group_poll_status(healthy)
    found.before_controller_execute_resize_decision(None)
    assert len(saved) == 1
    found.after_worker_group_shutdown(None)
    found.before_controller_execute_resize_decision(None)
    assert len(saved) == 1


def test_nodes_and_what_is_free_on_them_can_be_asked_for() -> None:
    from ray._private import state

    assert callable(state.available_resources_per_node)
    assert callable(state.state.get_draining_nodes)


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


def test_an_autoscaler_says_what_it_cannot_start() -> None:
    """tests/cluster/test_growing.py meets one."""
    from ray._raylet import InnerGcsClient
    from ray.core.generated import autoscaler_pb2

    assert callable(InnerGcsClient.get_cluster_status)
    state = autoscaler_pb2.GetClusterStatusReply().autoscaling_state
    assert state.autoscaler_state_version == 0
    assert list(state.infeasible_gang_resource_requests) == []
    assert autoscaler_pb2.GangResourceRequest(details="group:PACK|PENDING").details
