"""A fleet of simulated robots: one process each, through the ordinary client, closed loop.

Who calls it: the demo. It knows the endpoint's address and nothing behind it.
"""

import contextlib
import multiprocessing as mp
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

import numpy as np

from gwp.errors import GwpError

if TYPE_CHECKING:
    from gwp.client import Client
    from gwp.protocol.messages import ActionChunk, Observation

_SPAWN = mp.get_context("spawn")
_READY_S = 300.0
"""So long robots may take to import the simulator, all at once on few cores."""
_SAMPLE_S = 0.5
# A robot has a computer of its own; its simulator here must not take the CPU from the endpoint.
# Ray's workers are niced too (15 by default): at ordinary priority nine simulators left a
# replica that was starting 3 % of a core.
_NICENESS = 19
_CLIENT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Robot:
    """What one robot does: episodes of one task, one per seed, starting `join_s` seconds after
    the fleet.
    """

    name: str
    task: str
    seeds: tuple[int, ...]
    join_s: float = 0.0
    gathers: bool = False
    """Before its first episode, ask from its starting pose without moving until one more
    replica runs (see `patience_s`).
    """


@dataclass
class FleetResult:
    """Everything the robots saw. Times are seconds since the fleet started."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    """Per request: robot, t, ms, gathering (asked before the episodes), and error (None when
    answered).
    """
    episodes: list[dict[str, Any]] = field(default_factory=list)
    """Per episode: robot, task, seed, success, steps."""
    errors: list[str] = field(default_factory=list)
    """Robots that ended early, with the reason."""
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    """(t, replicas that run, replicas that were asked for and load), twice a second."""

    @property
    def failed(self) -> int:
        """Requests without an answer, and robots that ended early."""
        return sum(r["error"] is not None for r in self.requests) + len(self.errors)

    def latency_ms(self, percent: float, gathering: bool = False) -> float:
        """Percentile of answered requests, milliseconds, as the robots measured it: those of
        the episodes, or those before.
        """
        # Asking before the episodes is load, not control: both have their own figure.
        answered = [
            r["ms"] for r in self.requests if r["error"] is None and r["gathering"] == gathering
        ]
        return float(np.percentile(answered, percent)) if answered else float("nan")

    @property
    def replicas(self) -> list[tuple[float, int, int]]:
        """(t, running replicas, requests waiting or under way) of each sample."""
        return [(t, running, self._in_flight(t)) for t, running, _ in self.samples]

    def _in_flight(self, t: float) -> int:
        return sum(r["t"] <= t < r["t"] + r["ms"] / 1e3 for r in self.requests)

    @property
    def scaling(self) -> dict[str, float | None]:
        """When replicas were asked for, ran beyond those of the start, and were back at their
        number; None: never.

        Seconds since the fleet started: asked_s, up_s, down_s.
        """
        # What ran when the first sample was taken; autoscaling counts from there.
        base = self.samples[0][1] if self.samples else 0
        asked = [t for t, running, starting in self.samples if running + starting > base]
        up = [t for t, running, _ in self.samples if running > base]
        # Samples behind the last one with more than that, if there ever was one.
        down = [t for t, *_ in self.samples if up and t > up[-1]]
        return {"asked_s": _first(asked), "up_s": _first(up), "down_s": _first(down)}

    def success(self) -> dict[str, tuple[int, int]]:
        """Task -> (successes, episodes)."""
        result: dict[str, tuple[int, int]] = {}
        for e in self.episodes:
            won, n = result.get(e["task"], (0, 0))
            result[e["task"]] = (won + int(e["success"]), n + 1)
        return result


def _first(times: list[float]) -> float | None:
    return round(times[0], 1) if times else None


@dataclass(frozen=True)
class _Signals:
    """What the fleet and its robots share across processes; `run_fleet` makes it.

    ready:    barrier of all robots and the fleet: everybody imports the simulator first, and the
              clock starts when all stand ready
    gathered: event; robots that gather begin with their episodes
    events:   queue of (kind, value) from robots: `requests` and `episodes` with an entry of the
              list of that name in FleetResult, `error` with a reason, `done` with a name
    """

    ready: Any
    gathered: Any
    events: Any


def run_fleet(
    url: str,
    robots: list[Robot],
    benchmark: str,
    *,
    replan: int,
    max_steps: int,
    timeout_s: float,
    replicas: Callable[[], tuple[int, int]] | None = None,
    patience_s: float = 0.0,
    settle_s: float = 0.0,
    on_event: Callable[[FleetResult], None] | None = None,
) -> FleetResult:
    """Run all robots, of that benchmark, to the end of their episodes. Those that are not done
    `timeout_s` after all were ready end with an entry in `errors`.

    replicas:   how many run, and how many load; asked twice a second
    patience_s: how long robots that gather wait for one more replica; then they begin without
                it. Until one runs, they ask: nothing but load brings a replica, and a start
                takes longer than a short load lasts
    settle_s:   how long to wait after the last robot until there are no more replicas than at the start
    GwpError when the robots cannot start.
    """
    result = FleetResult()
    # One place more than robots: the fleet waits at the barrier too.
    signals = _Signals(_SPAWN.Barrier(len(robots) + 1), _SPAWN.Event(), _SPAWN.Queue())
    processes: list[SpawnProcess] = []
    # A process each, as robots are apart: threads would wait for one another, and be late.
    for robot in robots:
        args = (url, robot, benchmark, replan, max_steps, signals)
        process = _SPAWN.Process(target=_robot, args=args, daemon=True)
        process.start()
        processes.append(process)
    stop = threading.Event()
    try:
        signals.ready.wait(timeout=_READY_S)
        start = time.monotonic()
        watch = (result, replicas, start, patience_s, signals.gathered, stop)
        sampler = threading.Thread(target=_sample, args=watch, daemon=True)
        sampler.start()
        _collect(result, signals.events, processes, start, timeout_s, on_event)
        # Before the sampler is stopped, because it is what sees replicas go.
        _settle(result, settle_s)
        stop.set()
        sampler.join(timeout=10)
    except threading.BrokenBarrierError as error:
        raise GwpError(f"the robots did not get ready: {_first_error(signals.events)}") from error
    finally:
        stop.set()
        # One that hangs must not hold up the end.
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
    """Events of all robots into `result`, until each has said that it is done."""
    open_robots = len(processes)
    while open_robots:
        # For all robots together, whatever each of them is at.
        left = timeout_s - (time.monotonic() - start)
        if left <= 0:
            result.errors.append(f"{open_robots} robots were not done after {timeout_s:.0f} s")
            for process in processes:
                process.terminate()
            return
        try:
            # Not for longer: robots that died put nothing, and are looked for below.
            kind, value = events.get(timeout=min(left, 1.0))
        except queue.Empty:
            # Only with an empty queue: what a robot put before it ended is taken first.
            if not any(p.is_alive() for p in processes):
                result.errors.append(
                    f"{open_robots} robots died without a word; see their messages above"
                )
                return
            continue
        if kind == "done":
            open_robots -= 1
        elif kind == "error":
            result.errors.append(value)
        else:
            # `requests` or `episodes`: the kind is the name of the list.
            getattr(result, kind).append(value)
        if on_event:
            on_event(result)


def _sample(
    result: FleetResult,
    replicas: Callable[[], tuple[int, int]] | None,
    start: float,
    patience_s: float,
    gathered: Any,
    stop: threading.Event,
) -> None:
    """Note the replicas twice a second, and let those that gather begin in time."""
    try:
        while not stop.wait(_SAMPLE_S):
            now = time.monotonic() - start
            if replicas:
                result.samples.append((now, *replicas()))
            if now > patience_s or result.scaling["up_s"] is not None:
                gathered.set()
    finally:
        # Whatever happened to `replicas`, nobody waits for ever.
        gathered.set()


def _settle(result: FleetResult, settle_s: float) -> None:
    """Wait for replicas to go again, where some came; the sampler sees them go."""
    deadline = time.monotonic() + settle_s
    while (
        result.scaling["up_s"] is not None
        and result.scaling["down_s"] is None
        and time.monotonic() < deadline
    ):
        time.sleep(_SAMPLE_S)


def _first_error(events: Any) -> str:
    """What the first robot that failed before the barrier says."""
    with contextlib.suppress(queue.Empty):
        while True:
            kind, value = events.get(timeout=1.0)
            if kind == "error":
                return str(value)
    return f"not within {_READY_S:.0f} s; give fewer robots, or a machine with more cores"


def _robot(
    url: str, robot: Robot, benchmark: str, replan: int, max_steps: int, signals: _Signals
) -> None:
    """One robot's process."""
    os.nice(_NICENESS)
    events = signals.events
    ready = False
    try:
        from gwp.client import Client
        from gwp.sim.benchmarks import find
        from gwp.sim.interface import SIZE, UNSHIFTED
        from gwp.sim.rollout import run_episode

        found = find(benchmark)
        env = found.make(robot.task, SIZE, UNSHIFTED)
        signals.ready.wait(timeout=_READY_S)
        ready = True
        # All leave the barrier together, so this clock is that of the fleet.
        start = time.monotonic()
        time.sleep(robot.join_s)
        with Client(url, timeout_s=_CLIENT_TIMEOUT_S) as client:
            if robot.gathers:
                # Its first starting pose, from which it does not move while it gathers.
                env.reset(robot.seeds[0])
                observation = env.observe()
                while not signals.gathered.is_set():
                    _ask(client, observation, robot, start, events, gathering=True)
            for seed in robot.seeds:
                episode = run_episode(
                    env,
                    lambda observation: _ask(client, observation, robot, start, events),
                    found.embodiment,
                    seed=seed,
                    max_steps=max_steps,
                    replan=replan,
                )
                outcome = {
                    "robot": robot.name,
                    "task": robot.task,
                    "seed": seed,
                    "success": episode.success,
                    "steps": episode.steps,
                }
                events.put(("episodes", outcome))
        env.close()
    except threading.BrokenBarrierError:
        # The robot that could not start says why.
        pass
    except Exception as error:  # noqa: BLE001  a robot's end, whatever its cause, is part of the result
        events.put(("error", f"{robot.name}: {type(error).__name__}: {error}"))
        if not ready:
            # Whoever waits for this robot would wait for minutes.
            signals.ready.abort()
    finally:
        events.put(("done", robot.name))


def _ask(
    client: "Client",
    observation: "Observation",
    robot: Robot,
    start: float,
    events: Any,
    gathering: bool = False,
) -> "ActionChunk":
    """One request, noted with what it took, whether it was answered or not."""
    event = {"robot": robot.name, "t": time.monotonic() - start, "gathering": gathering}
    begin = time.perf_counter()

    def note(error: str | None) -> None:
        ms = (time.perf_counter() - begin) * 1e3
        events.put(("requests", event | {"ms": ms, "error": error}))

    try:
        # In simulation time stands still: what was seen is what is to be seen.
        chunk = client.act(lambda: observation)
    except GwpError as error:
        # Without a chunk a robot cannot go on: the error ends its process, and is told there.
        note(str(error))
        raise
    note(None)
    return chunk
