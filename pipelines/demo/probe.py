"""How fast this machine is, in a few seconds: a start, training steps and simulator frames, in
two processes as the demo has them.

It measures what the demo spends its time on, so that its steps can be sized before the first is
taken.
"""

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from pipelines.demo.size import BENCHMARK, Machine

if TYPE_CHECKING:
    from pipelines.jobs.train_job import TrainJob

POLICY = Path(__file__).parents[1] / "stages" / "policy.yaml"
# As many as record and train.
PROCESSES = 2
TASK = "window-open-v3"
_STEPS = 8
"""Training steps that are timed."""
_FRAMES = 60
"""Simulator frames that are timed."""
# As many as the encoder of the first stage has.
_TEXT_ROWS = 8
_LIMIT_S = 300.0
"""A machine that needs longer for a probe of seconds would take hours for the demo."""


def measure() -> Machine:
    """Measure with as many processes at once as train and record in the demo; some 15 seconds
    on two cores.

    What runs beside it counts: the demo will have to share the machine with that, too.
    """
    # Spawned, as workers are: their start is one of the things measured.
    with _one_thread(), ProcessPoolExecutor(PROCESSES, mp_context=mp.get_context("spawn")) as pool:
        futures = [pool.submit(_measure_here, time.time()) for _ in range(PROCESSES)]
        measured = [future.result(_LIMIT_S) for future in futures]
    return Machine(
        start_s=round(mean(m.start_s for m in measured), 2),
        train_step_ms=round(mean(m.train_step_ms for m in measured), 1),
        sim_frame_ms=round(mean(m.sim_frame_ms for m in measured), 2),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computing threads of the processes started in the block, as workers and replicas have
    them. torch reads it at import.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _measure_here(begin: float) -> Machine:
    """In a process of its own. `begin`: when it was asked for, seconds since the epoch."""
    import torch

    from gwp.model.transformer import WorldActionTransformer  # noqa: F401  a start imports it
    from pipelines.config.load import load_config
    from pipelines.jobs.train_job import TrainJob

    # The wall clock: others need not mean the same in another process.
    start_s = time.time() - begin
    torch.set_num_threads(1)
    return Machine(start_s, _train_step_ms(load_config(POLICY, TrainJob)), _sim_frame_ms())


def _median_ms(act: Callable[[], None], repeats: int) -> float:
    """Median of `repeats` calls, after one that does not count."""
    # The first call allocates, and chooses kernels.
    act()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        act()
        times.append((time.perf_counter() - begin) * 1e3)
    return median(times)


def _train_step_ms(job: "TrainJob") -> float:
    """Forward, backward and AdamW on random samples of the policy stage's shapes."""
    import torch

    from gwp.model.draws import draw_noise
    from gwp.model.objective import Batch, levels_of, training_losses
    from gwp.model.weights import build_model

    config = job.model_config_
    window = job.data.window
    canvas = job.data.canvas
    model = build_model(config, 0).train()
    # Its rate does not matter: only the time of a step does.
    optimizer = torch.optim.AdamW(model.parameters())
    draw = torch.Generator().manual_seed(0)
    workers = job.cluster.max_workers
    n = -(-job.share(workers) // job.passes(workers))
    p = window.chunk
    d = config.action_channels
    # Of the codec that the first stage makes: 8 pixels a latent row, 4 frames a latent frame.
    latent = (
        config.in_channels,
        1 + (window.frames - 1) // 4,
        canvas.height // 8,
        canvas.width // 8,
    )
    batch = Batch(
        latents=torch.randn(n, *latent, generator=draw),
        state=torch.randn(n, 1, d, generator=draw),
        actions=torch.randn(n, p, d, generator=draw),
        step_valid=torch.ones(n, p, dtype=torch.bool),
        dim_valid=torch.ones(n, d, dtype=torch.bool),
        text=torch.randn(n, _TEXT_ROWS, config.text_dim, generator=draw),
        embodiment=torch.zeros(n, dtype=torch.int64),
        ok=torch.ones(n, dtype=torch.bool),
    )
    future = (latent[0], latent[1] - 1, *latent[2:])

    def step() -> None:
        levels = levels_of(job.objective, 0, range(n), p)
        noise = draw_noise(0, range(n), future, (p, d))
        training_losses(model, batch, job.objective, False, levels, noise).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _median_ms(step, _STEPS)


def _sim_frame_ms() -> float:
    """One control step of the scripted expert and a picture of it."""
    from gwp.sim.benchmarks import find
    from gwp.sim.interface import SIZE, UNSHIFTED

    env = find(BENCHMARK).make(TASK, SIZE, UNSHIFTED)
    env.reset(0)

    def frame() -> None:
        env.step(env.expert_action())
        env.observe()

    try:
        return _median_ms(frame, _FRAMES)
    finally:
        env.close()
