"""Stopping a run at its next step, with a checkpoint.

A note in the run folder asks for it, so anyone who can write there can: the driver does at
Ctrl-C and SIGTERM. Rank 0 looks for it beside the steps.
"""

import logging
import threading

import ray.train

from gwp import storage

_NOTE = "stop"
_POLL_S = 0.5

logger = logging.getLogger(__name__)


def ask_to_stop(run_uri: str) -> None:
    """Have the workers of the run take a checkpoint and end."""
    storage.write_bytes(storage.join(run_uri, _NOTE), b"")


def forget_stop(run_uri: str) -> None:
    """Take back what was asked of an earlier start."""
    storage.remove(storage.join(run_uri, _NOTE))


class StopWatch:
    """What a rank knows of the end that is near; the training loop asks it at every step.

    asked: whether the run was asked to stop; only rank 0 looks
    """

    def __init__(self, run_uri: str, rank: int) -> None:
        self.asked = False
        self._note = storage.join(run_uri, _NOTE)
        self._done = threading.Event()
        self._saved_for: tuple[str, ...] = ()
        if rank == 0:
            threading.Thread(target=self._look, daemon=True, name="gwp-stop").start()

    def close(self) -> None:
        """Look no more."""
        self._done.set()

    def machine_leaves(self) -> bool:
        """Whether a machine of the run has got notice that it is taken away, for the first time
        that this is asked. Collective, and a round of messages: not for every step.
        """
        info = ray.train.get_preemption_info()
        leaving = tuple(info.preempted_node_ids) if info else ()
        new = leaving != self._saved_for
        self._saved_for = leaving
        return new and bool(leaving)

    def _look(self) -> None:
        while not self._done.wait(_POLL_S):
            try:
                self.asked = storage.exists(self._note)
            except Exception as error:  # noqa: BLE001  whoever asked can ask again
                logger.warning("cannot look for %s: %s", self._note, error)
            if self.asked:
                return
