"""What plans say is sent in a step, against what DeepSpeed's engines send on two ranks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.time import sent_bytes
from tests.support import ranks
from tests.unit.pipelines.jobs.test_stages import STAGES

WORLD = 2
AROUND = {
    "c10d::allreduce_": 2,
    "c10d::_allgather_base_": 1,
    "c10d::allgather_": 1,
    "c10d::_reduce_scatter_base_": 1,
    "c10d::reduce_scatter_": 1,
    "c10d::broadcast_": 1,
    "c10d::barrier": 0,
}
"""Collective -> how often its whole tensors go around a ring."""

# As with a model much larger than what DeepSpeed lets stay gathered.
NOTHING_KEPT = [
    f"engine.overrides.zero_optimization.{name}=0"
    for name in (
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
    )
]


class Counted(TorchDispatchMode):
    """Counts bytes of collectives: of the largest of their tensors, which is the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            self.bytes += AROUND[name] * max(_bytes(arg) for arg in args[:2])
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def sent(rank: ranks.Rank, cases: list[list[Any]]) -> list[float]:
    """Bytes that went around in a step that was not the first, for each number of the model."""
    found = []
    for stage, precision, micro in cases:
        own = [f"engine.precision={precision}", f"engine.micro_batch={micro}"]
        rank.start(stage, *own, *(NOTHING_KEPT if stage == 3 else []))
        rank.take(range(1))
        with Counted() as counted:
            rank.take(range(1, 2))
        engine = rank.engine
        found.append(counted.bytes / sum(math.prod(engine.shape(n)) for n in engine.parameters()))
    return found


def test_what_is_sent_is_what_plans_say(tmp_path: Path) -> None:
    """Of eight samples on two ranks: four at once, and in two passes."""
    cases = [(0, "fp32", 4), (1, "fp32", 4), (1, "bf16", 4), (1, "bf16", 2)]
    cases += [(2, "bf16", 4), (2, "bf16", 2), (3, "bf16", 4), (3, "bf16", 2)]
    found = ranks.run(sent, WORLD, tmp_path, cases, timeout=500)
    for (stage, precision, micro), each in zip(cases, found, strict=True):
        sets = [f"engine.zero_stage={stage}", f"engine.precision={precision}"]
        sets += [f"cluster.workers={WORLD}", f"engine.global_batch={ranks.SIZE}"]
        job = load_config(STAGES / "world.yaml", TrainJob, [*sets, f"engine.micro_batch={micro}"])
        # The model is another one; what is sent of each number is not.
        planned = sent_bytes(job, WORLD) / ((WORLD - 1) / WORLD) / job.trained
        assert each == pytest.approx(planned, rel=0.01), (stage, precision, micro)
