"""Many simulators, one policy: processes step, and what waits for an answer is answered together."""

import contextlib
import multiprocessing as mp
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.rollout import EpisodeResult
from gwp.sim.trial import Rules, Trial, simulate

ActBatch = Callable[[Sequence[Observation]], list[ActionChunk]]

# An EGL context does not survive a fork.
_SPAWN = mp.get_context("spawn")
# Importing the simulator takes minutes when many start on few cores.
SILENCE_S = 300.0
"""A simulator that says nothing for so long is ended; seconds."""
MOST = 32
"""Observations answered in one batch."""
_LOST_IN_A_ROW = 4
_END_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. `failure`: why there is no episode; "" where there is one."""

    trial: Trial
    episode: EpisodeResult | None
    failure: str = ""


@dataclass
class _Simulator:
    """One process. `trial`: number of the one under way; `heard`: when it last had to work."""

    name: str
    process: BaseProcess
    pipe: Connection
    trial: int
    heard: float


def run_trials(
    trials: Sequence[Trial],
    act_batch: ActBatch,
    rules: Rules,
    *,
    simulators: int,
    most: int = MOST,
    silence_s: float = SILENCE_S,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run all trials in at most `simulators` processes; outcomes in the order of the trials.

    act_batch: the policy, called in this thread with the observations of all that wait, at most
        `most` of them. on_outcome: told as they come.
    An episode draws from its own seeds alone, so neither order nor number of processes matter,
    but for the rounding of a batch. A process that dies, or says nothing for `silence_s`, costs its
    trial, which says so, and is replaced. Processes are new ones: a script that calls this needs
    `if __name__ == "__main__"`.

    GwpError for what is wrong with every trial, and when one process after the other dies.
    """
    if simulators < 1 or most < 1:
        raise GwpError(f"simulators {simulators} and batches of {most}: give at least 1 of each")
    fleet = _Fleet(trials, rules, on_outcome)
    try:
        fleet.start(min(simulators, len(trials)))
        while fleet.running:
            asking = fleet.hear()
            for i in range(0, len(asking), most):
                some = asking[i : i + most]
                chunks = act_batch([observation for _, observation in some])
                for (simulator, _), chunk in zip(some, chunks, strict=True):
                    fleet.tell(simulator, chunk)
            fleet.end_silent(silence_s)
    finally:
        fleet.close()
    return [fleet.outcomes[i] for i in range(len(trials))]


class _Fleet:
    """The processes of a run, and what became of the trials so far."""

    def __init__(
        self,
        trials: Sequence[Trial],
        rules: Rules,
        on_outcome: Callable[[Outcome], None] | None,
    ) -> None:
        self._trials = trials
        self._rules = rules
        self._on_outcome = on_outcome
        self._waiting = deque(range(len(trials)))
        self._started = self._lost_in_a_row = 0
        self._leaving: list[_Simulator] = []
        self.running: list[_Simulator] = []
        self.outcomes: dict[int, Outcome] = {}

    def start(self, count: int) -> None:
        """So many more processes, each with a trial."""
        for _ in range(count):
            self._started += 1
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=simulate, args=(theirs, self._rules), daemon=True)
            process.start()
            # Else the pipe would stay open when the process dies.
            theirs.close()
            simulator = _Simulator(f"simulator {self._started}", process, ours, -1, 0.0)
            self.running.append(simulator)
            self._next(simulator)

    def hear(self) -> list[tuple[_Simulator, Observation]]:
        """Who asks for a chunk, with the observation; all else that was said is dealt with."""
        by_pipe = {simulator.pipe: simulator for simulator in self.running}
        asking = []
        for pipe in wait(list(by_pipe), timeout=1.0):
            simulator = by_pipe[pipe]  # type: ignore[index]
            try:
                kind, value = simulator.pipe.recv()
            except (EOFError, OSError):
                self.running.remove(simulator)
                self._lost(simulator, f"ended with exit code {_ended(simulator)}")
                continue
            if kind == "ask":
                asking.append((simulator, value))
            elif kind == "over":
                raise value
            else:
                episode = value if kind == "done" else None
                self._lost_in_a_row = 0
                self._note(simulator.trial, episode, "" if episode else value)
                self._next(simulator)
        return asking

    def tell(self, simulator: _Simulator, message: Any) -> None:
        """A chunk, a trial, or None: no more."""
        simulator.heard = time.monotonic()
        # One that has died is found when it is heard next.
        with contextlib.suppress(OSError):
            simulator.pipe.send(message)

    def end_silent(self, silence_s: float) -> None:
        """End those that have had their answer long ago."""
        for simulator in list(self.running):
            if time.monotonic() - simulator.heard > silence_s and not simulator.pipe.poll():
                simulator.process.kill()
                self.running.remove(simulator)
                _ended(simulator)
                self._lost(simulator, f"said nothing for {silence_s:g} s")

    def close(self) -> None:
        """End all that still run."""
        for simulator in self.running:
            simulator.process.kill()
        for simulator in (*self.running, *self._leaving):
            _ended(simulator)

    def _next(self, simulator: _Simulator) -> None:
        if self._waiting:
            simulator.trial = self._waiting.popleft()
            self.tell(simulator, self._trials[simulator.trial])
        else:
            self.tell(simulator, None)
            self.running.remove(simulator)
            self._leaving.append(simulator)

    def _lost(self, simulator: _Simulator, how: str) -> None:
        """Its trial has failed; another process takes the next one."""
        self._lost_in_a_row += 1
        failure = f"{simulator.name} (process {simulator.process.pid}) {how}"
        self._note(simulator.trial, None, failure)
        if self._lost_in_a_row >= _LOST_IN_A_ROW:
            raise GwpError(
                f"{self._lost_in_a_row} simulators in a row died, the last at "
                f"{self._trials[simulator.trial]}: {failure}; see what they wrote above"
            )
        if self._waiting:
            self.start(1)

    def _note(self, trial: int, episode: EpisodeResult | None, failure: str) -> None:
        outcome = Outcome(self._trials[trial], episode, failure)
        self.outcomes[trial] = outcome
        if self._on_outcome:
            self._on_outcome(outcome)


def _ended(simulator: _Simulator) -> int | None:
    """The exit code of a process that is about to end; it does not get long."""
    simulator.process.join(timeout=_END_S)
    if simulator.process.is_alive():
        simulator.process.kill()
        simulator.process.join()
    simulator.pipe.close()
    return simulator.process.exitcode
