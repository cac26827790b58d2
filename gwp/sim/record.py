"""Demonstrations by Meta-World's scripted experts, written as an ordinary LeRobot v3.0 set."""

import multiprocessing as mp
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from gwp.data.lerobot_write import LeRobotWriter
from gwp.errors import GwpError
from gwp.sim.metaworld import CAMERA, EMBODIMENT, TASKS, Env

# Steps kept after success, so that a policy learns to stay there.
_AFTER = 10
# Seeds tried per wanted episode before the task is given up.
_TRIES = 4


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
    task: str
    order: int
    frames: np.ndarray
    state: np.ndarray
    action: np.ndarray
    attempts: int


def record(
    uri: str, tasks: list[str], episodes: int, seed: int, *, noise: float = 0.2, size: int = 64, max_steps: int = 150,
    with_actions: bool = True, workers: int = 2, progress: Callable[[int], None] | None = None,
) -> RecordSummary:
    """Record `episodes` successful demonstrations of each task below `uri`.

    The expert's action plus N(0, noise) is executed and the clean action recorded, so that a policy sees how to come back. A set
    without actions has neither state nor action columns. The same arguments give the same episodes, for any number of workers.
    """
    unknown = [t for t in tasks if t not in TASKS]
    if unknown or not tasks:
        raise GwpError(f"tasks {', '.join(unknown) or '(none)'}: choose from {', '.join(TASKS)}")
    begin = time.monotonic()
    count = frames = attempts = 0
    writer = LeRobotWriter(
        uri, fps=EMBODIMENT.fps, robot_type=EMBODIMENT.name, cameras={CAMERA: (size, size)},
        state_names=EMBODIMENT.state_names, action_names=EMBODIMENT.action_names, with_actions=with_actions,
    )
    with writer:
        for demo in _demos(tasks, episodes, seed, noise, size, max_steps, workers):
            vectors = {"state": demo.state, "action": demo.action} if with_actions else {}
            writer.add_episode({CAMERA: demo.frames}, TASKS[demo.task], **vectors)
            count, frames, attempts = count + 1, frames + len(demo.frames), attempts + demo.attempts
            if progress:
                progress(count)
    return RecordSummary(count, frames, attempts, time.monotonic() - begin)


def _demos(
    tasks: list[str], episodes: int, seed: int, noise: float, size: int, max_steps: int, workers: int
) -> Iterator[_Demo]:
    """Demonstrations in a fixed order, tasks alternating, whichever worker is faster."""
    context = mp.get_context("spawn")  # an EGL context does not survive a fork
    jobs = [(task, i) for i in range(episodes) for task in tasks]
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: dict[Future[_Demo], int] = {
            pool.submit(_demo, task, i, seed + _TRIES * i, noise, size, max_steps): n for n, (task, i) in enumerate(jobs)
        }
        ready: dict[int, _Demo] = {}
        due = 0
        for future in as_completed(waiting):
            ready[waiting[future]] = future.result()
            while due in ready:
                yield ready.pop(due)
                due += 1


_ENVS: dict[tuple[str, int], Env] = {}


def _demo(task: str, order: int, seed: int, noise: float, size: int, max_steps: int) -> _Demo:
    """One successful demonstration in a worker process, trying further seeds when the expert fails."""
    if (task, size) not in _ENVS:
        _ENVS[task, size] = Env(task, size)
    env = _ENVS[task, size]
    for attempt in range(_TRIES):
        env.reset(seed + attempt)
        rng = np.random.default_rng((seed + attempt, len(task)))
        frames, states, actions = [], [], []
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
            return _Demo(task, order, np.stack(frames), np.stack(states), np.stack(actions), attempt + 1)
    raise GwpError(f"the expert of {task} failed on seeds {seed} to {seed + _TRIES - 1}; lower noise or raise max_steps")
