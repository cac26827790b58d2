"""The whole of it: `gwp train` on a Ray of its own, with data streamed from disk, DeepSpeed,
checkpoints and MLflow, as a user runs it.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.bench.train.problem import Problem
from pipelines.tracking.curves import read_figures
from pipelines.training.train import train

_WARM = 20
"""Steps that are not counted: buffers fill, and all is done for the first time."""


@dataclass(frozen=True)
class Whole:
    """What the run measured of itself, over the steps behind the first ones.

    step_s:     seconds a step, all of it
    data_share, checkpoint_share: of it, waiting for data, and at checkpoints
    phases:     seconds a step by phase
    """

    step_s: float
    data_share: float
    checkpoint_share: float
    phases: dict[str, float]


def whole_stack(problem: Problem, steps: int, zero: int) -> Whole:
    """Train so many steps, behind those that warm up, and read what the run has told MLflow."""
    with tempfile.TemporaryDirectory(prefix="gwp-bench-") as name:
        folder = Path(name)
        uri = problem.make_set(folder)
        job = problem.job(uri, str(folder / "runs"), _WARM + steps, zero)
        with _own_tracking(folder, problem.threads):
            result = train(job)
        return read_whole(result.uri, job.run.steps)


def read_whole(run_uri: str, steps: int) -> Whole:
    """From the figures of a run folder. Each logged figure is a mean over the steps since the one
    before.
    """
    times: dict[int, dict[str, float]] = {}
    for points in read_figures(run_uri, -1, steps):
        for key, value, _, step in points:
            if key.startswith("time/"):
                times.setdefault(step, {})[key.removeprefix("time/")] = value
    logged = sorted(times)
    counted = [(step, step - before) for before, step in zip([0, *logged], logged, strict=False)]
    counted = [(step, count) for step, count in counted if step - count >= _WARM]
    weights = [count for _, count in counted]
    phases = {
        name: float(np.average([times[step][name] for step, _ in counted], weights=weights))
        for name in times[logged[-1]]
    }
    whole = phases.pop("step")
    return Whole(whole, phases["data"] / whole, phases["checkpoint"] / whole, phases)


@contextmanager
def _own_tracking(folder: Path, threads: int) -> Iterator[None]:
    """MLflow in a file of this bench, a Ray of its own, and as many threads as the other sides."""
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "OMP_NUM_THREADS": str(threads),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in (*own, "RAY_ADDRESS")}
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= own
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
