"""One trial of one agent in a simulator, and the process that runs trials one after the other."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.charged import Charge, run_charged
from gwp.sim.interface import SIZE, UNSHIFTED, Benchmark, Simulator
from gwp.sim.rollout import EpisodeResult, random_policy, replay_blindly, run_episode

Agent = Literal["policy", "random", "blind"]


@dataclass(frozen=True)
class Trial:
    """One episode to run.

    seed:  of its start
    other: what else the agent draws from: the seed of the random actions, or the start whose
           expert the blind one replays
    """

    task: str
    seed: int
    agent: Agent = "policy"
    other: int = 0

    def __str__(self) -> str:
        return f"{self.agent} in {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Rules:
    """How all trials of a run are driven.

    benchmark: whose tasks the trials are
    max_steps: control steps after which an episode has failed
    replan:    actions of a chunk that are executed before the next is asked for
    charge:    what a chunk of the policy costs in simulated time; None: the world waits for it
    size:      side of the pictures, pixels
    shift:     one of those of the benchmark
    """

    benchmark: Benchmark
    max_steps: int
    replan: int
    charge: Charge | None = None
    size: int = SIZE
    shift: str = UNSHIFTED

    def make(self, task: str) -> Simulator:
        """The simulator of a task."""
        return self.benchmark.make(task, self.size, self.shift)


def run_trial(
    env: Simulator, trial: Trial, rules: Rules, ask: Callable[[Observation], Any]
) -> EpisodeResult:
    """Run it in this thread. ask: as `gwp.sim.charged.Ask`; only the policy asks."""
    steps = rules.max_steps
    if trial.agent == "blind":
        return replay_blindly(env, seen=trial.other, seed=trial.seed, max_steps=steps)
    robot = rules.benchmark.embodiment
    replan, seed = rules.replan, trial.seed
    if trial.agent == "policy" and rules.charge is not None:
        held = rules.benchmark.held
        return run_charged(
            env, ask, rules.charge, robot, held, seed=seed, max_steps=steps, replan=replan
        )
    act = random_policy(robot, trial.other) if trial.agent == "random" else lambda o: ask(o)()
    return run_episode(env, act, robot, seed=seed, max_steps=steps, replan=replan)


def simulate(pipe: Connection, rules: Rules) -> None:
    """The life of a simulator's process.

    It takes trials from the pipe until None comes, and sends pairs: (`ask`, observation), to which
    a chunk comes back; (`done`, result); (`failed`, why) when the simulator raised in an episode;
    (`over`, error) when going on is of no use.
    """
    env: Simulator | None = None

    def ask(observation: Observation) -> Callable[[], ActionChunk]:
        pipe.send(("ask", observation))
        return pipe.recv

    # Whoever asked for trials may have gone.
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while (trial := pipe.recv()) is not None:
            try:
                if env is None or env.task != trial.task:
                    _close(env)
                    env = rules.make(trial.task)
                message: tuple[str, Any] = ("done", run_trial(env, trial, rules, ask))
            except (EOFError, BrokenPipeError):
                raise
            except (GwpError, ImportError) as error:
                # Something that is wrong for every episode: the policy, the task, the machine.
                message = ("over", error)
            except Exception as error:  # noqa: BLE001  whatever a simulator raises is its episode's end
                message = ("failed", f"{type(error).__name__}: {error}")
                _close(env)
                env = None
            pipe.send(message)
    _close(env)


def _close(env: Simulator | None) -> None:
    """Close it; one that failed may fail at that, too."""
    if env is not None:
        with contextlib.suppress(Exception):
            env.close()
