"""Demonstrations by scripted experts of a simulator, written as an ordinary LeRobot v3.0 set."""

import multiprocessing as mp
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gwp.data.formats.lerobot.write import LeRobotWriter
from gwp.errors import GwpError
from gwp.sim.interface import SIZE, UNSHIFTED, Benchmark, Simulator

# Steps kept after success, so that a policy learns to stay there.
_AFTER = 10
# Seeds tried per wanted episode before the task is given up.
TRIES = 4
# Episodes that each worker may be ahead of the writer: keeps workers busy and memory bounded.
_AHEAD = 4


@dataclass(frozen=True)
class RecordSummary:
    """What a recording made."""

    episodes: int
    frames: int
    attempts: int
    """Episodes run; those without success are not written."""
    seconds: float


@dataclass(frozen=True)
class _Job:
    """What all demonstrations of a set have in common; names as in `record`."""

    benchmark: Benchmark
    noise: float
    size: int
    max_steps: int


@dataclass(frozen=True)
class _Demo:
    """One successful demonstration of n steps; a worker makes it, the writer takes it.

    frames:   camera -> uint8 `[n, H, W, 3]`
    state:    float32 `[n, d_state]`, robot units
    action:   float32 `[n, d_action]`, what the expert wanted, without the noise
    attempts: episodes run for it
    """

    task: str
    frames: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    attempts: int


def record(
    uri: str,
    benchmark: Benchmark,
    tasks: list[str],
    episodes: int,
    seed: int,
    *,
    noise: float | None = None,
    size: int = SIZE,
    max_steps: int | None = None,
    with_actions: bool = True,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> RecordSummary:
    """Record `episodes` successful demonstrations of each task below `uri`.

    noise: std of what is added to each executed action (default: as the benchmark has it); the
    clean action is recorded, so that a policy sees how to come back.
    size: side of the pictures, pixels. max_steps: control steps after which an attempt has
    failed (default: those of the benchmark). progress: gets the number of episodes written so
    far. A set without actions has neither state nor action columns. The same arguments give the
    same episodes for any number of workers; they use seeds from `seed` up to
    `seed + 4 * episodes - 1`, so keep the seeds of other sets and of evaluations apart. Workers
    are new processes: a script that calls this needs `if __name__ == "__main__"`.

    GwpError for arguments out of range, a task whose expert keeps failing, or a set that is
    there already.
    """
    benchmark.check(tasks)
    noise = benchmark.noise if noise is None else noise
    job = _Job(benchmark, noise, size, benchmark.steps if max_steps is None else max_steps)
    _check(job, episodes, seed, workers)
    begin = time.monotonic()
    count = frames = attempts = 0
    robot = benchmark.embodiment
    writer = LeRobotWriter(
        uri,
        fps=robot.fps,
        robot_type=robot.name,
        cameras=dict.fromkeys(benchmark.cameras, (size, size)),
        state_names=robot.state_names,
        action_names=robot.action_names,
        with_actions=with_actions,
    )
    with writer:
        for demo in _demos(job, tasks, episodes, seed, workers):
            vectors = (demo.state, demo.action) if with_actions else ()
            writer.add_episode(demo.frames, benchmark.tasks[demo.task], *vectors)
            count += 1
            frames += len(demo.action)
            attempts += demo.attempts
            if progress:
                progress(count)
    return RecordSummary(count, frames, attempts, time.monotonic() - begin)


def _check(job: _Job, episodes: int, seed: int, workers: int) -> None:
    most = job.benchmark.max_steps
    size = job.size
    wrong = [
        f"{name} is {value}, needs {rule}"
        for name, value, fits, rule in (
            ("episodes", episodes, episodes > 0, "at least 1"),
            ("seed", seed, seed >= 0, "0 or more"),
            ("noise", job.noise, 0 <= job.noise <= 1, "0 to 1"),
            ("size", size, size >= 16 and size % 2 == 0, "an even number of at least 16"),
            ("max_steps", job.max_steps, 1 <= job.max_steps <= most, f"1 to {most}"),
            ("workers", workers, workers > 0, "at least 1"),
        )
        if not fits
    ]
    if wrong:
        raise GwpError("; ".join(wrong))


def _demos(job: _Job, tasks: list[str], episodes: int, seed: int, workers: int) -> Iterator[_Demo]:
    """Demonstrations in a fixed order, tasks alternating, whichever worker is faster."""
    context = mp.get_context("spawn")  # an EGL context does not survive a fork
    demos = ((job, task, seed + TRIES * i) for i in range(episodes) for task in tasks)
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        # Taken in the order of the jobs, so that the set does not depend on who is faster.
        waiting: deque[Future[_Demo]] = deque(
            pool.submit(_demo, *demo) for demo in islice(demos, _AHEAD * workers)
        )
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(_demo, *demo) for demo in islice(demos, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


# Of a worker process: making one is slow, so it is kept for further episodes.
_ENVS: dict[tuple[str, str, int], Simulator] = {}


def _demo(job: _Job, task: str, seed: int) -> _Demo:
    """One successful demonstration in a worker process, trying further seeds when the expert
    fails.
    """
    name = (job.benchmark.name, task, job.size)
    if name not in _ENVS:
        _ENVS[name] = job.benchmark.make(task, job.size, UNSHIFTED)
    env = _ENVS[name]
    for attempt in range(TRIES):
        env.reset(seed + attempt)
        # Tasks that share a seed do not share the noise.
        rng = np.random.default_rng((seed + attempt, zlib.crc32(task.encode())))
        frames: dict[str, list[np.ndarray]] = {camera: [] for camera in job.benchmark.cameras}
        states: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        left = _AFTER
        done = False
        for _ in range(job.max_steps):
            clean = env.expert_action()
            seen = env.observe()
            for camera, pictures in frames.items():
                pictures.append(seen.images[camera])
            states.append(seen.state)
            actions.append(clean)
            done = env.step(clean + rng.normal(0, job.noise, clean.shape)) or done
            left -= done
            if left == 0:
                break
        if done:
            seen_cn = {camera: np.stack(pictures) for camera, pictures in frames.items()}
            return _Demo(task, seen_cn, np.stack(states), np.stack(actions), attempt + 1)
    raise GwpError(
        f"the expert of {task} failed on seeds {seed} to {seed + TRIES - 1}; lower noise or "
        "raise max_steps"
    )
