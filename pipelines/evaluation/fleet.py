"""A fleet of simulated robots: one process each, through the ordinary client, closed loop.

Who calls it: `gwp bench fleet` and the demo. It knows the endpoint's address and nothing of
what is behind it.
"""

import multiprocessing as mp
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from gwp.errors import GwpError

_SPAWN = mp.get_context("spawn")


@dataclass(frozen=True)
class Robot:
    """What one robot does: episodes of one task, one per seed, starting `join_s` seconds after
    the fleet.
    """

    name: str
    task: str
    seeds: tuple[int, ...]
    join_s: float = 0.0


@dataclass
class FleetResult:
    """Everything the robots saw. Times are seconds since the fleet started."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    """Per request: robot, t, ms, and error (None when answered)."""
    episodes: list[dict[str, Any]] = field(default_factory=list)
    """Per episode: robot, task, seed, success, steps."""
    errors: list[str] = field(default_factory=list)
    """Robots that ended early, with the reason."""
    replicas: list[tuple[float, int, int]] = field(default_factory=list)
    """(t, running replicas, requests in flight at the robots)."""

    @property
    def failed(self) -> int:
        """Requests without an answer, and robots that ended early."""
        return sum(r["error"] is not None for r in self.requests) + len(self.errors)

    def latency_ms(self, percent: float) -> float:
        """Percentile of answered requests, milliseconds, as the robots measured it."""
        answered = [r["ms"] for r in self.requests if r["error"] is None]
        return float(np.percentile(answered, percent)) if answered else float("nan")

    def success(self) -> dict[str, tuple[int, int]]:
        """Task -> (successes, episodes)."""
        result: dict[str, tuple[int, int]] = {}
        for e in self.episodes:
            won, n = result.get(e["task"], (0, 0))
            result[e["task"]] = (won + int(e["success"]), n + 1)
        return result


def run_fleet(
    url: str,
    robots: list[Robot],
    *,
    replan: int,
    max_steps: int,
    timeout_s: float,
    replicas: Callable[[], int] | None = None,
    settle_s: float = 0.0,
    on_event: Callable[[FleetResult], None] | None = None,
) -> FleetResult:
    """Run all robots to the end of their episodes; GwpError when `timeout_s` passes first.

    `replicas` is sampled twice a second, and for `settle_s` after the last robot, so that
    scaling down is seen too.
    """
    result, events = FleetResult(), _SPAWN.Queue()
    # Everybody imports the simulator first; the clock starts when all stand ready.
    gate = _SPAWN.Barrier(len(robots) + 1)
    processes: list[SpawnProcess] = [
        _SPAWN.Process(
            target=_robot, args=(url, robot, replan, max_steps, gate, events), daemon=True
        )
        for robot in robots
    ]
    for process in processes:
        process.start()
    stop = threading.Event()
    try:
        gate.wait(timeout=min(timeout_s, 180))
        start = time.monotonic()
        sampler = threading.Thread(
            target=_sample, args=(result, replicas, start, stop), daemon=True
        )
        sampler.start()
        _collect(result, events, processes, start, timeout_s, on_event)
        stop.wait(settle_s)
        stop.set()
        sampler.join(timeout=10)
    except threading.BrokenBarrierError as error:
        raise GwpError(
            "the robots did not get ready; see their messages above (is the `sim` extra installed?)"
        ) from error
    finally:
        stop.set()
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
    return result


def _collect(
    result: FleetResult,
    events: Any,
    processes: list[SpawnProcess],
    start: float,
    timeout_s: float,
    on_event: Callable[[FleetResult], None] | None,
) -> None:
    open_robots = len(processes)
    while open_robots:
        left = timeout_s - (time.monotonic() - start)
        if left <= 0:
            raise GwpError(
                f"the fleet did not finish in {timeout_s:.0f} s; {len(result.episodes)} "
                "episodes are done"
            )
        try:
            kind, value = events.get(timeout=min(left, 1.0))
        except queue.Empty:
            if not any(p.is_alive() for p in processes):
                raise GwpError(
                    f"{open_robots} robots died without a word; see their messages above"
                ) from None
            continue
        if kind == "done":
            open_robots -= 1
        elif kind == "error":
            result.errors.append(value)
        else:
            getattr(result, kind).append(value)
        if on_event:
            on_event(result)


def _sample(
    result: FleetResult, replicas: Callable[[], int] | None, start: float, stop: threading.Event
) -> None:
    while replicas and not stop.wait(0.5):
        now = time.monotonic() - start
        recent = {r["robot"] for r in result.requests[-64:] if r["t"] > now - 2.0}
        result.replicas.append((now, replicas(), len(recent)))


def _robot(url: str, robot: Robot, replan: int, max_steps: int, gate: Any, events: Any) -> None:
    """One robot's process."""
    from gwp.client import Client
    from gwp.protocol.messages import ActionChunk, Observation
    from gwp.sim.metaworld import Env
    from gwp.sim.rollout import run_episode

    try:
        env = Env(robot.task)
        gate.wait(timeout=180)
        start = time.monotonic()
        time.sleep(robot.join_s)
        with Client(url) as client:

            def act(observation: Observation) -> ActionChunk:
                begin = time.perf_counter()
                event = {"robot": robot.name, "t": time.monotonic() - start, "error": None}
                try:
                    chunk = client.act(observation)
                except GwpError as error:
                    events.put(
                        (
                            "requests",
                            event
                            | {"ms": (time.perf_counter() - begin) * 1e3, "error": str(error)},
                        )
                    )
                    raise
                events.put(("requests", event | {"ms": (time.perf_counter() - begin) * 1e3}))
                return chunk

            for seed in robot.seeds:
                episode = run_episode(env, act, seed=seed, max_steps=max_steps, replan=replan)
                outcome = {
                    "robot": robot.name,
                    "task": robot.task,
                    "seed": seed,
                    "success": episode.success,
                    "steps": episode.steps,
                }
                events.put(("episodes", outcome))
        env.close()
    except Exception as error:  # noqa: BLE001  a robot's end, whatever its cause, is part of the result
        events.put(("error", f"{robot.name}: {type(error).__name__}: {error}"))
    finally:
        events.put(("done", robot.name))
