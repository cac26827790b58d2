"""What a rank writes into the run folder beside checkpoints: small JSON files by step and rank.

Written by the training loop; read by `pipelines.training.control.watch`, the demo and whoever looks
into a run folder.
"""

import json
import logging
import os
import queue
import threading
import time
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.records import StreamBatch
from pipelines.training.shares import PADDING

# Notes that wait at most; the next one waits for one of them.
_WAITING = 1000

logger = logging.getLogger(__name__)


class Journal:
    """The notes of one rank in one attempt of a run.

    A file per note: object stores cannot append, and no two ranks write the same name. They are
    written by a thread of their own: no step waits for storage. One that cannot be written is
    logged and left out; of those on how far the rank is, only the newest is written.
    """

    def __init__(self, run_uri: str, rank: int, attempt: int) -> None:
        self._uri = run_uri
        self._rank = rank
        self._attempt = attempt
        # Bounded: a run that notes every sample must not fill memory while storage is away.
        self._notes: queue.Queue[tuple[str, bytes]] = queue.Queue(_WAITING)
        self._newest: dict[str, bytes] = {}
        self._lock = threading.Lock()
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

    def _work(self) -> None:
        while True:
            uri, note = self._notes.get()
            try:
                # Whatever has come until now; what comes from here on has a turn of its own.
                if not note:
                    with self._lock:
                        note = self._newest.pop(uri)
                storage.write_bytes(uri, note)
            except Exception as error:  # noqa: BLE001  training is not to end for a note
                logger.warning("%s is not written: %s", uri, error)
            finally:
                self._notes.task_done()

    def _write(self, record: Any, *names: str) -> None:
        self._notes.put((storage.join(self._uri, *names), json.dumps(record).encode()))

    def _replace(self, record: Any, *names: str) -> None:
        """As `_write`, but an older note of this name that still waits is not written."""
        uri = storage.join(self._uri, *names)
        with self._lock:
            waits = uri in self._newest
            self._newest[uri] = json.dumps(record).encode()
        if not waits:
            self._notes.put((uri, b""))

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

    def progress(self, step: int, skipped: int, losses: dict[str, float]) -> None:
        """Tell how far this rank is; overwrites what it told before."""
        report = {
            "step": step,
            # The demo and the tests of restarts kill this process.
            "pid": os.getpid(),
            "attempt": self._attempt,
            "time": time.time(),
            "skipped": skipped,
        }
        self._replace(report | losses, "progress", f"rank-{self._rank}.json")
