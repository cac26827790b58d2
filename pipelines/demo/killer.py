"""The accident of the demo: a training worker dies on the way, and the stage resumes."""

import logging
import os
import signal
import threading

from gwp.errors import GwpError
from pipelines.console import event
from pipelines.training.control.watch import resumptions, worker_progress


class Killer(threading.Thread):
    """Kills one training worker for good (SIGKILL), once, between two checkpoints."""

    def __init__(self, run: str, checkpoint_every: int) -> None:
        super().__init__(daemon=True)
        self._run = run
        # Steps behind a checkpoint, so that some are lost and done again.
        self._after = checkpoint_every + max(1, checkpoint_every // 4)
        self._killed: int | None = None
        self._over = threading.Event()

    def run(self) -> None:
        # The run folder is polled, because the stage says nothing to its caller on the way.
        while not self._over.wait(0.2):
            try:
                reports = worker_progress(self._run)
                if len(reports) < 2 or reports[-1]["step"] < self._after:
                    continue
                victim = reports[-1]
                os.kill(victim["pid"], signal.SIGKILL)
            except (OSError, GwpError) as error:
                # Storage may hiccup, and a worker may have ended by itself since it wrote.
                logging.getLogger(__name__).warning("no worker was killed yet: %s", error)
            else:
                self._killed = victim["step"]
                event("killed a training worker", pid=victim["pid"], step=victim["step"])
                return

    def result(self, run: str) -> dict[str, int]:
        """After the stage: the step of the kill and, where it resumed, the one it resumed from;
        empty when nobody was killed.
        """
        self._over.set()
        self.join()
        if self._killed is None:
            return {}
        steps = {"killed_at_step": self._killed}
        if events := resumptions(run):
            steps["resumed_from_step"] = int(events[-1]["step"])
        return steps
