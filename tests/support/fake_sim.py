"""A simulator in place of Meta-World: a point with a goal that only its picture shows. What is
under test are the loops around it; it steps in microseconds.
"""

import os
import signal
import time

import numpy as np

from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.interface import Benchmark
from gwp.sim.metaworld import CAMERA, DISPLACEMENTS, EMBODIMENT

REACH = 0.12
STEP = 0.05


class FakeSim:
    """`task` says what goes wrong, and `task:SEED` in which episode: `die`, `hang`, `raise`,
    `stillborn`.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self.kind, _, seed = task.partition(":")
        self.bad_seed = int(seed) if seed else -1
        self.position = self.goal = np.zeros(4)
        self.steps = 0
        self.bad = False
        if self.kind == "stillborn":
            os.kill(os.getpid(), signal.SIGKILL)

    def reset(self, seed: int) -> None:
        self.goal = np.random.default_rng(seed).uniform(-1, 1, 4)
        self.position = np.zeros(4)
        self.bad = seed == self.bad_seed
        self.steps = 0

    def observe(self) -> Observation:
        picture = np.zeros((64, 64, 3), np.uint8)
        # As bright as it is far, in four stripes: a policy that looks can tell.
        picture[:] = np.repeat((self.goal + 1) / 2 * 255, 16).astype(np.uint8)[:, None, None]
        state = self.position.astype(np.float32)
        return Observation({CAMERA: picture}, state, "reach the goal", EMBODIMENT.name)

    def step(self, action: np.ndarray) -> bool:
        self.steps += 1
        if self.bad and self.steps == 3:
            if self.kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "hang":
                time.sleep(600)
            if self.kind == "raise":
                raise FloatingPointError("the physics blew up")
        self.position = self.position + STEP * np.clip(action, -1, 1)
        return bool(np.abs(self.position - self.goal).max() < REACH)

    def expert_action(self) -> np.ndarray:
        return np.clip((self.goal - self.position) / STEP, -1, 1).astype(np.float32)

    def close(self) -> None:
        pass


def make(task: str, _size: int, _shift: str) -> FakeSim:
    return FakeSim(task)


FAKE = Benchmark("fake", "dev", EMBODIMENT, {}, DISPLACEMENTS, make, steps=150, max_steps=500)


def seeing(observation: Observation) -> ActionChunk:
    """A policy that looks: towards the goal, with noise from the observation's seed."""
    goal = observation.images[CAMERA][::16, 0, 0].astype(np.float32) / 255 * 2 - 1
    rows = []
    position = np.asarray(observation.state, np.float32)
    noise = np.random.default_rng(observation.seed).normal(0, 0.4, (12, 4))
    for k in range(12):
        rows.append(np.clip((goal - position) / STEP, -1, 1) + noise[k])
        position = position + STEP * np.clip(rows[-1], -1, 1)
    return ActionChunk(np.stack(rows).astype(np.float32), "seeing")
