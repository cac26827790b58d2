"""What a rank writes into the run folder beside checkpoints: small JSON files by step and rank.

Written by the training loop; read by `pipelines.training.control.watch`, the demo and whoever looks
into a run folder.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.records import StreamBatch
from pipelines.training.control.processes import Process
from pipelines.training.samples.shares import PADDING

# Notes that wait at most; the next one waits for one of them.
_WAITING = 1000
# Seconds between two signs of life, at most.
BEAT_S = 30.0
# A wait of the thread; a beat that was set meanwhile is late by it at most.
_LONG_S = 1.0

STARTING = "starting"
FETCHING = "fetching the checkpoint"
DATA = "waiting for data"
STEPPING = "stepping"
SAVING = "saving"
UPLOADING = "waiting for storage"
ENDED = "ended"
"""Phases of a rank, as its reports name them."""

logger = logging.getLogger(__name__)


def beat_s(hang_s: float) -> float:
    """Seconds between two signs of life of a rank, where a phase may last `hang_s`."""
    return min(BEAT_S, hang_s / 20)


class Journal:
    """The notes of one rank in one attempt of a run.

    A file per note: object stores cannot append, and no two ranks write the same name. They are
    written by a thread of their own: no step waits for storage. One that cannot be written is
    logged and left out; of those on how far the rank is, only the newest is written, and while
    the rank says nothing it is written again as a sign of life.
    """

    def __init__(
        self,
        run_uri: str,
        rank: int,
        attempt: int,
        start: str = "",
        beat_s: float = BEAT_S,
        node: str = "",
        spent: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        """start: the same on all ranks, another at each start of the workers; node: Ray's id of
        the machine; spent: told of each phase that is over, with its seconds
        """
        self._spent = spent
        self._uri = run_uri
        self._rank = rank
        self._attempt = attempt
        # Bounded: a run that notes every sample must not fill memory while storage is away. None
        # is for the newest progress.
        self._notes: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_WAITING)
        self._lock = threading.Lock()
        # The demo and the tests of restarts kill this process.
        process = asdict(Process.own(node))
        self._report: dict[str, Any] = {
            "rank": rank,
            "step": 0,
            "attempt": attempt,
            "start": start,
            "skipped": 0,
            **process,
        }
        self._phase = STARTING
        self._since = time.monotonic()
        self._asked = False
        self._beat_s = beat_s
        self._beats = 0
        # Nothing was noted yet, so there is nothing to repeat.
        self._next_beat = float("inf")
        threading.Thread(target=self._work, name="gwp-journal", daemon=True).start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all notes so far are written or given up; whether it came to that in
        time.
        """
        # As its `join`, which waits for ever.
        with self._notes.all_tasks_done:
            return self._notes.all_tasks_done.wait_for(
                lambda: not self._notes.unfinished_tasks, timeout_s
            )

    def close(self, timeout_s: float) -> None:
        """Note that this rank is done, and give no sign of life from then on."""
        self.phase(ENDED)
        self.flush(timeout_s)

    def _work(self) -> None:
        while True:
            left = self._next_beat - time.monotonic()
            try:
                note = self._notes.get(timeout=min(max(left, 0.0), _LONG_S))
            except queue.Empty:
                if left <= 0:
                    self._write_progress()
                continue
            try:
                if note is None:
                    self._write_progress()
                else:
                    self._write_now(*note)
                    if time.monotonic() >= self._next_beat:
                        self._write_progress()
            finally:
                self._notes.task_done()

    def _write_now(self, uri: str, note: bytes) -> None:
        try:
            storage.write_bytes(uri, note)
        except Exception as error:  # noqa: BLE001  training is not to end for a note
            logger.warning("%s is not written: %s", uri, error)

    def _write_progress(self) -> None:
        with self._lock:
            self._asked = False
            self._beats += 1
            now = time.monotonic()
            over = self._phase == ENDED
            self._next_beat = float("inf") if over else now + self._beat_s
            report = {
                **self._report,
                "time": time.time(),
                "beat": self._beats,
                "phase": self._phase,
                "phase_s": round(now - self._since, 3),
            }
        uri = storage.join(self._uri, "progress", f"rank-{self._rank}.json")
        self._write_now(uri, json.dumps(report).encode())

    def _write(self, record: Any, *names: str) -> None:
        self._notes.put((storage.join(self._uri, *names), json.dumps(record).encode()))

    def _tell(self) -> None:
        """Have the report written as it is then; one that waits already is enough."""
        with self._lock:
            asked, self._asked = self._asked, True
        if not asked:
            self._notes.put(None)

    def phase(self, name: str, step: int | None = None, tell: bool = True) -> None:
        """Say what this rank does from now on. step: how far it is, where that has changed; tell:
        write it soon, else with the next sign of life
        """
        with self._lock:
            now = time.monotonic()
            over, lasted = self._phase, now - self._since
            self._phase = name
            self._since = now
            if step is not None:
                self._report["step"] = step
        self._spent(over, lasted)
        if tell:
            self._tell()

    def resumed(self, step: int, world: int) -> None:
        """Note that this attempt goes on from a checkpoint at `step`."""
        event = {
            "event": "resumed",
            "step": step,
            "attempt": self._attempt,
            "world_size": world,
            "time": time.time(),
        }
        self._write(event, "events", f"resumed-a{self._attempt}.json")

    def consumed(self, step: int, raw: StreamBatch) -> None:
        """Note which samples this rank takes at `step`, with their positions in the plan."""
        # Broken samples too: they have their place in the plan, which goes on behind them.
        taken = [
            {"position": int(position), "sample_id": str(sample_id)}
            for position, sample_id in zip(raw["position"], raw["sample_id"], strict=True)
            if position != PADDING
        ]
        name = f"step_{step:06d}-rank{self._rank}.json"
        self._write(taken, "consumed", f"a{self._attempt}", name)

    def quarantine(self, step: int, raw: StreamBatch, keep: np.ndarray) -> int:
        """Note the samples of `step` that are broken, with the reason; how many they are.

        `keep`: bool `[batch]`.
        """
        bad = ~keep & (raw["position"] != PADDING)
        if not bad.any():
            return 0
        broken = [
            {"sample_id": str(sample_id), "reason": str(reason)}
            for sample_id, reason in zip(raw["sample_id"][bad], raw["reason"][bad], strict=True)
        ]
        # Without the attempt in the name: a step that is taken again replaces its note.
        self._write(broken, "quarantine", f"step_{step:06d}-rank{self._rank}.json")
        return len(broken)

    def skipped(self, step: int, losses: list[float], norm: float, samples: list[str]) -> None:
        """Note that `step` was not taken: the loss of each rank, the norm of the gradient, and
        the samples that may be the reason.
        """
        # As text, because JSON has no NaN.
        note = {"losses": list(map(str, losses)), "norm": str(norm), "samples": samples}
        self._write(note, "skipped_steps", f"step_{step:06d}.json")

    def progress(
        self,
        step: int,
        skipped: int,
        losses: Mapping[str, float],
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Tell how far this rank is; overwrites what it told before. figures: what else was
        measured
        """
        with self._lock:
            self._report |= {"step": step, "skipped": skipped, **losses}
            if figures is not None:
                self._report |= {"figures": dict(figures), "logged": step}
        self._tell()

    def add(self, **fields: Any) -> None:
        """Have this in all reports from now on."""
        with self._lock:
            self._report |= fields
        self._tell()
