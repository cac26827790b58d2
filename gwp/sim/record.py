"""Demonstrations by Meta-World's scripted experts, written as an ordinary LeRobot v3.0 set."""

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
from gwp.sim.metaworld import CAMERA, EMBODIMENT, MAX_STEPS, TASKS, Env

# Steps kept after success, so that a policy learns to stay there.
_AFTER = 10
# Seeds tried per wanted episode before the task is given up.
_TRIES = 4
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
class _Demo:
    """One successful demonstration of n steps; a worker makes it, the writer takes it.

    frames:   uint8 `[n, H, W, 3]`
    state:    float32 `[n, d_state]`, robot units
    action:   float32 `[n, d_action]`, what the expert wanted, without the noise
    attempts: episodes run for it
    """

    task: str
    frames: np.ndarray
    state: np.ndarray
    action: np.ndarray
    attempts: int


def record(
    uri: str,
    tasks: list[str],
    episodes: int,
    seed: int,
    *,
    noise: float = 0.2,
    size: int = 64,
    max_steps: int = 150,
    with_actions: bool = True,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> RecordSummary:
    """Record `episodes` successful demonstrations of each task below `uri`.

    noise: std of what is added to each executed action; the clean action is recorded, so that a
    policy sees how to come back.
    size: side of the pictures, pixels. max_steps: control steps after which an attempt has
    failed. progress: gets the number of episodes written so far. A set without actions has
    neither state nor action columns. The same arguments give the same episodes for any number
    of workers; they use seeds from `seed` up to `seed + 4 * episodes - 1`, so keep the seeds of
    other sets and of evaluations apart. Workers are new processes: a script that calls this
    needs `if __name__ == "__main__"`.

    GwpError for arguments out of range, a task whose expert keeps failing, or a set that is
    there already.
    """
    _check(tasks, episodes, seed, noise, size, max_steps, workers)
    begin = time.monotonic()
    count = frames = attempts = 0
    writer = LeRobotWriter(
        uri,
        fps=EMBODIMENT.fps,
        robot_type=EMBODIMENT.name,
        cameras={CAMERA: (size, size)},
        state_names=EMBODIMENT.state_names,
        action_names=EMBODIMENT.action_names,
        with_actions=with_actions,
    )
    with writer:
        for demo in _demos(tasks, episodes, seed, noise, size, max_steps, workers):
            vectors = (demo.state, demo.action) if with_actions else ()
            writer.add_episode({CAMERA: demo.frames}, TASKS[demo.task], *vectors)
            count += 1
            frames += len(demo.frames)
            attempts += demo.attempts
            if progress:
                progress(count)
    return RecordSummary(count, frames, attempts, time.monotonic() - begin)


def _check(
    tasks: list[str],
    episodes: int,
    seed: int,
    noise: float,
    size: int,
    max_steps: int,
    workers: int,
) -> None:
    unknown = [t for t in tasks if t not in TASKS]
    if unknown or not tasks:
        raise GwpError(f"tasks {', '.join(unknown) or '(none)'}: choose from {', '.join(TASKS)}")
    if len(set(tasks)) < len(tasks):
        raise GwpError(
            f"tasks {', '.join(tasks)}: name each task once; `episodes` says how many of each"
        )
    wrong = [
        f"{name} is {value}, needs {rule}"
        for name, value, fits, rule in (
            ("episodes", episodes, episodes > 0, "at least 1"),
            ("seed", seed, seed >= 0, "0 or more"),
            ("noise", noise, 0 <= noise <= 1, "0 to 1"),
            ("size", size, size >= 16 and size % 2 == 0, "an even number of at least 16"),
            ("max_steps", max_steps, 1 <= max_steps <= MAX_STEPS, f"1 to {MAX_STEPS}"),
            ("workers", workers, workers > 0, "at least 1"),
        )
        if not fits
    ]
    if wrong:
        raise GwpError("; ".join(wrong))


def _demos(
    tasks: list[str],
    episodes: int,
    seed: int,
    noise: float,
    size: int,
    max_steps: int,
    workers: int,
) -> Iterator[_Demo]:
    """Demonstrations in a fixed order, tasks alternating, whichever worker is faster."""
    context = mp.get_context("spawn")  # an EGL context does not survive a fork
    jobs = (
        (task, seed + _TRIES * i, noise, size, max_steps) for i in range(episodes) for task in tasks
    )
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        # Taken in the order of the jobs, so that the set does not depend on who is faster.
        waiting: deque[Future[_Demo]] = deque(
            pool.submit(_demo, *job) for job in islice(jobs, _AHEAD * workers)
        )
        while waiting:
            demo = waiting.popleft().result()
            waiting.extend(pool.submit(_demo, *job) for job in islice(jobs, 1))
            yield demo
    finally:
        pool.shutdown(cancel_futures=True)


# Of a worker process: making one is slow, so it is kept for further episodes.
_ENVS: dict[tuple[str, int], Env] = {}


def _demo(task: str, seed: int, noise: float, size: int, max_steps: int) -> _Demo:
    """One successful demonstration in a worker process, trying further seeds when the expert
    fails.
    """
    if (task, size) not in _ENVS:
        _ENVS[task, size] = Env(task, size)
    env = _ENVS[task, size]
    for attempt in range(_TRIES):
        env.reset(seed + attempt)
        # Tasks that share a seed do not share the noise.
        rng = np.random.default_rng((seed + attempt, zlib.crc32(task.encode())))
        frames: list[np.ndarray] = []
        states: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        left = _AFTER
        done = False
        for _ in range(max_steps):
            clean = env.expert_action()
            frames.append(env.render())
            states.append(env.state)
            actions.append(clean)
            done = env.step(clean + rng.normal(0, noise, clean.shape)) or done
            left -= done
            if left == 0:
                break
        if done:
            return _Demo(task, np.stack(frames), np.stack(states), np.stack(actions), attempt + 1)
    raise GwpError(
        f"the expert of {task} failed on seeds {seed} to {seed + _TRIES - 1}; lower noise or "
        "raise max_steps"
    )
