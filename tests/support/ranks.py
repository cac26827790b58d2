"""Training steps on several processes of one machine, without Ray: what a test of the engine
compares.
"""

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwp.model.objective import Batch
from pipelines.training.samples.shares import PADDING, positions_of

SIZE, STEPS, CHUNK, DIMS = 8, 6, 5, 6
SEED = 7
RULES = [
    "objective.modes={video: 1, ac_wm: 1, wam: 3}",
    "optimizer={lr: 0.01, betas: [0.9, 0.999], weight_decay: 0.01, decay: all, clip: 1.0}",
]


def columns(step: int) -> dict[str, np.ndarray]:
    """The global batch of a step, as the stream gives it: chunks that end early, robots of fewer
    dimensions, a sample that could not be read, and a batch without actions.
    """
    draw = np.random.default_rng(step)
    lengths = draw.integers(1, CHUNK + 1, SIZE)
    widths = draw.integers(2, DIMS + 1, SIZE)
    ok = np.arange(SIZE) != step % SIZE
    # All that one of four ranks has.
    if step == 3:
        ok = np.arange(SIZE) >= 2
    labelled = step != 2
    return {
        "latents": draw.standard_normal((SIZE, 4, 2, 6, 4), np.float32)
        * ok[:, None, None, None, None],
        "state": draw.standard_normal((SIZE, DIMS), np.float32) * ok[:, None],
        "actions": draw.standard_normal((SIZE, CHUNK, DIMS), np.float32) * ok[:, None, None],
        "step_valid": (np.arange(CHUNK) < lengths[:, None]) & ok[:, None],
        "dim_valid": (np.arange(DIMS) < widths[:, None]) & ok[:, None],
        "has_action": np.full(SIZE, labelled) & ok,
        "sample_id": np.array([f"s{step}/{i}" for i in range(SIZE)]),
        "position": np.arange(SIZE) + SIZE * step,
        "batch": np.full(SIZE, SIZE),
        "source": np.arange(SIZE) % 2,
        "ok": ok,
        "reason": np.where(ok, "", "cannot be read"),
    }


def part(whole: dict[str, np.ndarray], rank: int, world: int) -> dict[str, np.ndarray]:
    """The rows of a rank, as the stream gives them: zeros where they are padding."""
    taken = np.array(positions_of(0, SIZE, rank, world))
    padding = taken == PADDING
    rows = {name: column[taken].copy() for name, column in whole.items()}
    for column in rows.values():
        column[padding] = np.zeros(1, column.dtype)
    rows["position"][padding] = rows["source"][padding] = PADDING
    rows["batch"][:] = SIZE
    return rows


class Encoded:
    """In the place of `Encoders`: latents are what the columns hold, and there is no text."""

    flop = 0

    def batch(self, raw: Any, rows: slice, _: Any = None) -> Batch:
        def some(name: str) -> torch.Tensor:
            return torch.from_numpy(raw[name][rows].copy())

        count = len(raw["ok"][rows])
        return Batch(
            latents=some("latents"),
            state=some("state")[:, None],
            actions=some("actions"),
            step_valid=some("step_valid"),
            dim_valid=some("dim_valid"),
            text=torch.ones(count, 7, 16),
            embodiment=torch.zeros(count, dtype=torch.long),
            ok=some("ok"),
        )

    def text_like(self) -> torch.Tensor:
        return torch.ones(1, 7, 16)


class Rank:
    """One process of a run."""

    def __init__(self, rank: int, world: int, folder: Path) -> None:
        from pipelines.training.engine.ranks import Ranks

        self.ranks = Ranks(rank, world)
        self.folder = folder

    def start(self, stage: int, *sets: str, universal: bool = False) -> None:
        """A new engine with the first weights."""
        from pipelines.config.load import load_config
        from pipelines.jobs.train_job import TrainJob
        from pipelines.training.control.journal import Journal
        from pipelines.training.engine.deepspeed_engine import Engine
        from pipelines.training.engine.ema import Ema
        from pipelines.training.step import TrainStep
        from tests.support.tiny import tiny_model

        own = [f"engine.zero_stage={stage}", f"cluster.workers={self.ranks.world}"]
        own += [f"engine.global_batch={SIZE}", "data.batch_multiple=8", f"run.seed={SEED}"]
        job = load_config("pipelines/stages/world.yaml", TrainJob, [*RULES, *own, *sets])
        self.engine = Engine(tiny_model().train(), job, load_universal=universal)
        self.ema = Ema(self.engine, 0.9)
        self.steps = TrainStep(job, self.ranks, self.engine, self.ema, Encoded())  # type: ignore[arg-type]
        self.journal = Journal(str(self.folder), self.ranks.rank, 1)

    def take(self, numbers: range, change: Callable[[int, Any], None] | None = None) -> list[Any]:
        """Take steps; their losses, of all ranks."""
        taken = []
        for step in numbers:
            raw: Any = part(columns(step), self.ranks.rank, self.ranks.world)
            if change:
                change(step, raw)
            taken.append(self.steps.take(step, raw, SIZE * step, self.journal))
        return taken

    def save(self, name: str) -> None:
        """Write the state of all ranks below the folder, as a checkpoint has it."""
        self.engine.save(self.folder / name)
        self.ema.save(self.folder / name)

    def load(self, name: str) -> None:
        self.engine.load(self.folder / name)
        self.ema.load(self.folder / name)


def run(
    function: Callable[..., Any], world: int, folder: Path, *args: Any, timeout: float = 240
) -> Any:
    """Call `function(rank, *args)` with the `Rank` of each of so many processes; what it returns
    on rank 0, as JSON has it. AssertionError with what they wrote when one fails.
    """
    # Forked from a process that has imported what takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.ranks_preload"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_main, args=(function, rank, world, port, folder, args), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
    logs = [(folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(world)]
    assert all(process.exitcode == 0 for process in processes), "\n".join(logs)
    return json.loads((folder / "result.json").read_text())


def _main(
    function: Callable[..., Any], rank: int, world: int, port: int, folder: Path, args: Any
) -> None:
    with (folder / f"rank-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ |= {
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    result = function(Rank(rank, world, folder), *args)
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
