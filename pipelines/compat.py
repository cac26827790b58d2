"""Every private interface of Ray, DeepSpeed and torch that the pipelines need, with the reason.

Nothing else here may reach past a public interface of theirs. `tests/unit/pipelines/
test_compat.py` and the tests that are named notice when one changes with an update.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


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
    """
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
