"""What the outside asks of a run at its next step: to stop, or to have a checkpoint before its
workers are exchanged. And whether a machine of the run is about to leave.

A note in the run folder asks, so anyone who can write there can: the driver does at Ctrl-C and
SIGTERM, Ray Train's controller before it resizes. Rank 0 looks for them beside the steps.
"""

import logging
import threading
import time
import uuid

import ray.train

from gwp import storage
from gwp.errors import MissingError

SAVE_S = 120.0
"""Seconds that a resize waits for the checkpoint; without one the steps since the last are lost."""

_STOP, _SAVE = "stop", "save"
_POLL_S = 0.5
# Between two questions whether a machine leaves: each is a round of messages, and a notice comes
# half a minute before at least.
_LEAVES_S = 1.0
# That workers wait to be exchanged; then they go on, for it did not come to it.
_PAUSE_S = 60.0

logger = logging.getLogger(__name__)


def ask_to_stop(run_uri: str) -> None:
    """Have the workers of the run take a checkpoint and end."""
    storage.write_bytes(storage.join(run_uri, _STOP), b"")


def save_and_pause(run_uri: str, timeout_s: float = SAVE_S) -> bool:
    """Have the workers of the run take a checkpoint and wait for their end; whether it is whole
    by now. Raises nothing: the run goes on without.
    """
    note = storage.join(run_uri, _SAVE)
    end = time.monotonic() + timeout_s
    try:
        storage.write_bytes(note, uuid.uuid4().hex.encode())
        while storage.exists(note):
            if time.monotonic() > end:
                storage.remove(note)
                logger.warning("no checkpoint within %g s before the resize", timeout_s)
                return False
            time.sleep(_POLL_S)
    except Exception as error:  # noqa: BLE001  storage that is away costs steps, not the run
        logger.warning("no checkpoint before the resize: %s", error)
        return False
    return True


def forget_asked(run_uri: str) -> None:
    """Take back what was asked of an earlier start."""
    for note in (_STOP, _SAVE):
        storage.remove(storage.join(run_uri, note))


class StopWatch:
    """What a rank knows of what is asked, and of the end that is near; the training loop asks it
    at every step. Only rank 0 looks.

    asked: whether the run was asked to stop
    """

    def __init__(self, run_uri: str, rank: int, elastic: bool) -> None:
        """elastic: whether its workers may be exchanged for more or fewer"""
        self.asked = False
        self._rank = rank
        self._stop = storage.join(run_uri, _STOP)
        # None where nobody asks for it: each look costs a request.
        self._save = storage.join(run_uri, _SAVE) if elastic else None
        self._wanted = self._done_for = b""
        self._looked = 0.0
        self._done = threading.Event()
        if rank == 0:
            threading.Thread(target=self._look, daemon=True, name="gwp-stop").start()

    def close(self) -> None:
        """Look no more."""
        self._done.set()

    def flags(self) -> tuple[bool, bool, bool]:
        """Whether it was asked to stop; to take a checkpoint and wait; and whether it is time to
        ask if a machine leaves. Of rank 0, the others know nothing.
        """
        if self._rank:
            return False, False, False
        looks = time.monotonic() - self._looked > _LEAVES_S
        if looks:
            self._looked = time.monotonic()
        return self.asked, self._wanted != self._done_for, looks

    def machine_leaves(self) -> bool:
        """Whether a machine of the run has got notice that it is taken away. Collective."""
        info = ray.train.get_preemption_info()
        return info is not None and bool(info.preempted_node_ids)

    def saved(self) -> None:
        """Answer that the checkpoint is whole, and wait to be ended; return if nobody does."""
        self.finished()
        self._done.wait(_PAUSE_S)

    def finished(self) -> None:
        """Answer that there is a checkpoint of all that was done."""
        if self._rank == 0 and self._save:
            self._done_for = self._wanted
            storage.remove(self._save)

    def _look(self) -> None:
        while not self._done.wait(_POLL_S):
            try:
                self.asked = storage.exists(self._stop)
                if self._save:
                    self._wanted = _content(self._save) or self._done_for
            except Exception as error:  # noqa: BLE001  whoever asked can ask again
                logger.warning("cannot look for what is asked beside %s: %s", self._stop, error)
            if self.asked:
                return


def _content(uri: str) -> bytes:
    """Of a note; empty when there is none."""
    try:
        return storage.read_bytes(uri)
    except MissingError:
        return b""
