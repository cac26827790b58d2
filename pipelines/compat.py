"""Every private interface of Ray, DeepSpeed and torch that the pipelines need, with the reason.

Nothing else here may reach past a public interface of theirs. `tests/unit/pipelines/
test_compat.py` and the tests that are named notice when one changes with an update.
"""

import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

# Seconds.
_AGAIN_S = 1.0

logger = logging.getLogger(__name__)


def split_without_cpu(dataset: Any) -> None:
    """Let the last step of a Ray dataset, a `repartition`, ask for no CPU, one task at a time.

    Ray Data has no public way to say that splitting costs no CPU. With one, a small pool splits
    all of a long plan before it decodes anything; and one such task keeps ahead of any number
    that decode. tests/cluster/test_stream.py shows what it is for.
    """
    from ray.data import TaskPoolStrategy

    # The last operator of the plan.
    splitting = dataset._logical_plan.dag
    splitting.ray_remote_args["num_cpus"] = 0
    # The operator is a frozen dataclass.
    object.__setattr__(splitting, "compute", TaskPoolStrategy(size=1))


def count_workers_by(trainer: Any, room: Callable[[int], int]) -> None:
    """Let an elastic `TorchTrainer` start as many workers as `room` says, within its bounds.

    Ray Train counts CPUs of all nodes, those of other pools and those that are drained too, and
    has no public way to count others. So it would start workers for which there is no place, or
    end those that run well for more that cannot be. room: given the number of workers that run,
    0 when none do
    """
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

    class Policy(ElasticScalingPolicy):
        running = 0

        def make_decision_for_non_running_worker_group(self) -> Any:
            self.running = 0
            decision = super().make_decision_for_non_running_worker_group()
            if isinstance(decision, NoopDecision):
                # Ray asks again at once, and so on until there is room.
                time.sleep(_AGAIN_S)
            return decision

        def make_decision_for_running_worker_group(
            self, worker_group_state: Any, worker_group_status: Any
        ) -> Any:
            self.running = worker_group_state.num_workers
            return super().make_decision_for_running_worker_group(
                worker_group_state, worker_group_status
            )

        def _count_possible_workers(self, reserved_resources: Any) -> int:  # noqa: ARG002
            try:
                return min(room(self.running), self.scaling_config.max_workers)
            except Exception as error:  # noqa: BLE001  it would end the run; it is asked again
                logger.warning("cannot count the machines: %s", error)
                return self.running

    start = trainer._initialize_and_run_controller

    def with_policy(**parts: Any) -> Any:
        return start(**parts | {"scaling_policy": Policy(trainer.scaling_config)})

    trainer._initialize_and_run_controller = with_policy


def before_resize(save: Callable[[], object]) -> Any:
    """A callback for Ray Train's `RunConfig`: calls `save` before workers that are well are
    exchanged for more or fewer.

    Ray documents these hooks as an interface for developers, and has them in a private module.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class BeforeResize(ControllerCallback, WorkerGroupCallback):
        well = False

        def after_worker_group_training_start(self, worker_group: Any) -> None:  # noqa: ARG002
            self.well = True

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            self.well = not worker_group_status.errors

        def after_worker_group_shutdown(self, worker_group_context: Any) -> None:  # noqa: ARG002
            self.well = False

        def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:  # noqa: ARG002
            self.well = False

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:  # noqa: ARG002
            # Ray asks before every start, also the first and those after a failure.
            if self.well:
                save()

    return BeforeResize()


def found_no_room(error: BaseException) -> bool:
    """Whether Ray Train gave up because it found no place for the workers in time, a few times.

    Its error has no public name.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def free_of_nodes() -> dict[str, dict[str, float]]:
    """Node id -> resources that nobody holds. Ray tells in public those of the whole cluster."""
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


def draining_nodes() -> set[str]:
    """Ids of nodes that are about to be taken away; Ray Train itself asks so."""
    import ray._private.state

    return set(ray._private.state.state.get_draining_nodes())


def autoscaler_state() -> Any | None:
    """What the autoscaler of the connected cluster said last (`AutoscalingState` of Ray's protocol);
    None where there is none, so where no machine comes by itself.

    Ray has a command for people (`ray status`), and in public only what is asked of an autoscaler,
    not whether there is one.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    # Made at run time, so type checkers do not see it.
    reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    # The first one that speaks says 1.
    return reply.autoscaling_state if reply.autoscaling_state.autoscaler_state_version else None


def object_store_bytes() -> tuple[int, int]:
    """Bytes in Ray's object store on this node now, and bytes that were ever spilled to disk.

    Without a dashboard there is no public way to these counters. Raises what Ray raises when
    it is not initialised.
    """
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats
    return int(stats.object_store_bytes_used), int(stats.spilled_bytes_total)


def import_deepspeed(gpu: bool) -> None:
    """Import DeepSpeed without MLflow, which it would import for a tuner that we do not use:
    2.4 s of a core and 115 MB of each worker.

    There is no switch. A module that is None cannot be imported; the tuner takes that for MLflow
    not being installed. Before another thread imports MLflow itself.

    And with distutils, with which it looks for compilers later. setuptools stands in for that, and
    imports itself while it holds the import lock of all threads: should another one be importing
    what it needs, both would wait for ever.
    """
    with suppress(ImportError):
        import_module("setuptools")
        import_module("distutils.ccompiler")
    if not gpu:
        # It chooses its accelerator when it is imported.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    known = {"mlflow", "deepspeed"} & sys.modules.keys()
    if not known:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed  # noqa: F401  whoever uses it imports it again
    finally:
        if not known:
            del sys.modules["mlflow"]


def without_shared_memory_collective() -> None:
    """Say that DeepSpeed's CPU collective over shared memory is not there.

    Training never uses it, and without this the first start compiles C++ for half a minute.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def limit_collectives(seconds: float) -> None:
    """Give every process group that this process is in the same limit for its collectives.

    DeepSpeed makes groups of its own, without a limit: torch gives them 10 minutes under NCCL and
    30 under gloo, and has no public way to list or change them.
    """
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


@dataclass(frozen=True)
class Master:
    """A part of a parameter in the precision of the optimiser, as it lies on one rank.

    name: in the model; start: first number of the part in the flattened parameter; part: fp32
    `[n]`, the memory that the optimiser changes
    """

    name: str
    start: int
    part: Tensor


def masters_of_flat_groups(parameters: dict[str, Any]) -> list[Master]:
    """The masters on this rank under ZeRO-1 and 2.

    The public functions gather them over all ranks, or copy; the mapping has no public name.
    """
    masters = []
    for name, parameter in parameters.items():
        mapping = parameter._hp_mapping
        # A rank has parts of a few parameters.
        if mapping is not None:
            start = mapping.lp_fragment_address.start
            masters.append(Master(name, start, mapping.get_hp_fragment().view(-1)))
    return masters


def masters_of_partitions(parameters: dict[str, Any], rank: int) -> list[Master]:
    """The masters on this rank under ZeRO-3, without the padding behind the last part.

    Where a part begins, and how long the parameter is, have no public name.
    """
    from deepspeed.utils import safe_get_local_fp32_param

    masters = []
    for name, parameter in parameters.items():
        part = safe_get_local_fp32_param(parameter)
        start = rank * part.numel()
        if start < parameter.ds_numel:
            masters.append(Master(name, start, part[: parameter.ds_numel - start]))
    return masters


def own_share(parameter: Any) -> Any:
    """The part of a parameter that lies on this rank: all of it, but for ZeRO-3.

    Under ZeRO-3 the parameter itself is empty between passes; its share has no public name.
    """
    return getattr(parameter, "ds_tensor", parameter)


def to_universal(state: Path, target: Path) -> None:
    """Convert a saved DeepSpeed state into the form that any number of ranks reads.

    DeepSpeed has a command for it and no function; these are the command's arguments.
    """
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        Namespace(
            input_folder=str(state),
            output_folder=str(target),
            # In this process: more than one would start a pool.
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def ahead_of_time(program: Any, options: dict[str, Any], package: Path) -> Callable[..., Any]:
    """An exported program, compiled by AOTInductor into `package` unless it is there, and loaded.

    torch documents these functions, in a package whose name says that it is private.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    if not package.exists():
        # Whole or not there: compiling takes minutes, and may be interrupted.
        fresh = package.with_suffix(".new.pt2")
        aoti_compile_and_package(program, package_path=str(fresh), inductor_configs=options)
        fresh.replace(package)
    return aoti_load_package(str(package))


def operators_of(run: Callable[[], object], names: Collection[str]) -> list[Callable[[], object]]:
    """Each call of one of these operators of torch while `run` runs, its backward passes included,
    to be made again with what it was given.

    torch describes the class in its guides, in a module whose name says that it is private.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: list[Callable[[], object]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> object:
            if func.overloadpacket.__name__ in names:
                calls.append(partial(func, *args, **(kwargs or {})))
            return func(*args, **(kwargs or {}))

    with Recorder():  # type: ignore[no-untyped-call]
        run()
    return calls
