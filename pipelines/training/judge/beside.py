"""Checkpoints judged while training goes on; the driver of a run does it.

A thread of the driver looks for whole checkpoints in the run folder and has an actor of ours judge
them (`validator`). No worker waits for it, and none knows of it. It is not Ray Train's own
`ValidationConfig`: that hangs on `ray.train.report`, a barrier that also waits for Ray Train's
controller, and this loop reports nothing; its task is another process for every checkpoint, which
would import, build the model and encode the samples again; all checkpoints queue, however slow it
is; a task whose process dies raises in the controller, which would end the run; and the end of a run
waits for it without a limit. The actor keeps model and samples, lives through restarts of the workers
and is started again alone.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from gwp import storage
from gwp.errors import GwpError
from pipelines.console import event, warn
from pipelines.jobs.cluster import POOL, named
from pipelines.jobs.validation import ValidatorConfig
from pipelines.training.checkpoint.checkpoints import MANIFEST, place_of, step_of
from pipelines.training.checkpoint.uploads import patiently
from pipelines.training.checkpoint.verdict import await_verdicts
from pipelines.training.control.stopped import first
from pipelines.training.judge.told import Told
from pipelines.training.judge.validator import Validator, Verdict
from pipelines.training.judge.waiting import Waiting, without_verdict
from pipelines.training.prepare import PreparedRun
from pipelines.training.tracked import RunRecord

_POLL_S = 1.0
# Seconds without a place after which that is told, and at the end of a run not waited for any longer.
_ROOM_S = 60.0
# Of waiting at the end of a run, after which a line says what is waited for.
_SOON_S = 5.0
# Of the thread, to end with what it is at.
_END_S = 30.0
_SAID = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """A verdict that is on its way."""

    name: str
    verdict: Any
    since: float


class Beside:
    """Judges the checkpoints of a run until it is closed; `judged_beside` makes it."""

    def __init__(self, prepared: PreparedRun, record: RunRecord, worker: ValidatorConfig) -> None:
        self._prepared, self._worker = prepared, worker
        self._run = prepared.uri
        self._told = Told(prepared, record)
        self._waiting = Waiting()
        self._known: set[str] = set()
        self._stays: list[str] | None = None
        # The actor, the answer that it has its place, and since when that is waited for.
        self._actor: Any = None
        self._here: Any = None
        self._started = 0.0
        self._asked: _Asked | None = None
        # Whether a warning was given since the last verdict.
        self._warned = False
        # When the workers had ended; None: they have not.
        self._ends: float | None = None
        self._idle = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gwp-validation", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """The workers have taken their last checkpoint: wait until it is judged, `limit_s` seconds
        at most, and tell all of it. Raises what storage does.
        """
        self._ends = time.monotonic()
        self._idle.clear()
        limit = self._worker.limit_s
        if not self._idle.wait(min(_SOON_S, limit)):
            bound = f"{limit:g} s at most (validation.worker.limit_s)"
            event("note", text=f"the verdict of the last checkpoint is waited for, {bound}")
        if not self._idle.wait(limit - min(_SOON_S, limit)):
            self._waiting.give_up()
            warn(
                f"the last checkpoint is not judged after {limit:g} s "
                "(validation.worker.limit_s): the same command asks again"
            )
        self.close()
        patiently(lambda: await_verdicts(self._run, ()))
        patiently(self._told.finish)

    def close(self) -> None:
        """Judge no more."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join(_END_S)
        self._end_actor()
        self._told.close()

    def _work(self) -> None:
        # Told once: storage may be away for long.
        trouble = ""
        while not self._over.wait(_POLL_S):
            try:
                self._look(time.monotonic())
            # Whatever it is, training is not to end for it.
            except Exception as error:
                if str(error) != trouble:
                    logger.warning("cannot look after the validation", exc_info=True)
                trouble = str(error)
            else:
                trouble = ""

    def _look(self, now: float) -> None:
        """Look once; now: seconds on a steady clock."""
        # Before the listing: what it did not find yet comes with the next one.
        ends = self._ends is not None
        self._waiting.add(without_verdict(self._run, self._known))
        self._keep()
        if self._asked is None:
            self._ask(now)
        if self._asked is not None:
            self._answer(self._asked, now)
        self._keep()
        if ends and not self._waiting.names:
            self._idle.set()

    def _keep(self) -> None:
        """Have what waits stay in the run folder."""
        if self._waiting.names != self._stays:
            await_verdicts(self._run, self._waiting.names)
            self._stays = self._waiting.names

    def _ask(self, now: float) -> None:
        """Ask for the next one, when there is one and the actor has its place."""
        if not self._waiting.names:
            return
        if self._actor is None:
            self._start(now)
        if not ray.wait([self._here], timeout=0)[0]:
            self._without_place(now)
            return
        try:
            ray.get(self._here)
        except RayError as error:
            self._failed(self._waiting.next(), error)
            return
        name = self._waiting.next()
        assert name is not None
        uri = place_of(self._run, name)
        self._asked = _Asked(name, self._actor.judge.remote(uri), now)

    def _start(self, now: float) -> None:
        worker = self._worker
        options: dict[str, Any] = {"num_cpus": worker.cpus, "num_gpus": worker.gpus}
        if worker.pool:
            options["label_selector"] = {POOL: worker.pool}
        self._actor = ray.remote(Validator).options(**options).remote(self._prepared.slim())
        self._here = self._actor.here.remote()
        self._started = now

    def _without_place(self, now: float) -> None:
        since = max(self._started, self._ends or 0.0)
        if now - since < _ROOM_S:
            return
        text = f"validation: no machine in {named(self._worker.pool)} has room for its worker"
        text += f" ({self._worker.text})"
        if self._ends is None:
            self._warn(text)
            return
        # Said once more: it is for good now.
        self._warned = False
        self._warn(text)
        self._waiting.give_up()

    def _answer(self, asked: _Asked, now: float) -> None:
        """Take what has come of it."""
        if not ray.wait([asked.verdict], timeout=0)[0]:
            if now - asked.since > self._worker.limit_s:
                limit = f"{self._worker.limit_s:g} s (validation.worker.limit_s)"
                self._end_actor()
                self._warn(f"validation of step {step_of(asked.name)} took over {limit}")
                self._waiting.over()
            return
        try:
            verdict: Verdict = ray.get(asked.verdict)
        except (RayError, GwpError) as error:
            self._failed(asked.name, error)
            return
        # Until storage has taken it, it is asked for again and again.
        self._told.tell(asked.name, verdict)
        self._asked, self._warned = None, False
        self._waiting.over()

    def _failed(self, name: str | None, error: Exception) -> None:
        # Nobody knows what state it is in.
        self._end_actor()
        self._waiting.over()
        assert name is not None
        if not storage.exists(storage.join(place_of(self._run, name), MANIFEST)):
            # Removed, or sent back: nobody asks for it any more.
            return
        if first(error, RayActorError):
            why = "its process is gone (killed, out of memory, or with its machine)"
        else:
            cause = first(error, GwpError) or getattr(error, "cause", None) or error
            why = " ".join(f"{type(cause).__name__}: {cause}".split())[:_SAID]
        self._warn(f"validation of step {step_of(name)}: {why}")

    def _warn(self, text: str) -> None:
        """Once, until it goes well again."""
        again = "training goes on, and it is tried again at the next checkpoint"
        if self._ends is not None:
            again = "the run is done; the same command asks again"
        if self._warned:
            logger.warning(text)
        else:
            warn(f"{text}; {again}")
        self._warned = True

    def _end_actor(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = self._asked = None


@contextmanager
def judged_beside(prepared: PreparedRun, record: RunRecord) -> Iterator[Beside | None]:
    """Have the checkpoints of a run judged while the block trains it, where its job wants that;
    None: the workers do.
    """
    config = prepared.job.validation
    if config is None or config.worker is None:
        # Of an earlier command that was killed.
        patiently(lambda: await_verdicts(prepared.uri, ()))
        yield None
        return
    beside = Beside(prepared, record, config.worker)
    try:
        yield beside
    finally:
        beside.close()
