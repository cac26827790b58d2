"""The one training loop, run by every rank of every stage.

Order that matters: build in fp32, load weights, create the engine, then EMA, then resume.
Checkpoints are committed by our own protocol (`pipelines.training.checkpoint`). Ray Train is told
nothing: a report waits until the controller takes it, which at a resize waits for us.
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace

import ray
import ray.train

from gwp import storage
from gwp.data.records import StreamBatch
from pipelines.tracking.live import LiveRun, meter_of
from pipelines.tracking.run_log import RunLog
from pipelines.training.checkpoint.checkpointer import Checkpointer
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    latest_committed,
    next_attempt,
)
from pipelines.training.checkpoint.references import referenced
from pipelines.training.checkpoint.uploads import Uploads, patiently
from pipelines.training.control.journal import (
    DATA,
    FETCHING,
    STARTING,
    STEPPING,
    Journal,
    beat_s,
)
from pipelines.training.control.room import NoRoomError, memory_told
from pipelines.training.control.stop import StopWatch
from pipelines.training.control.stopped import MachineLeavesError, StoppedError, lasting
from pipelines.training.engine.deepspeed_engine import Engine
from pipelines.training.engine.ema import Ema
from pipelines.training.engine.node import Node
from pipelines.training.engine.ranks import Ranks
from pipelines.training.initial_state import fetch_state, first_model, remove_state, state_folder
from pipelines.training.measure.startup import StartUp
from pipelines.training.measure.teller import Teller
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.encoders import Encoders
from pipelines.training.samples.stream import ahead, batches
from pipelines.training.step import TrainStep
from pipelines.training.tracked import RunRecord
from pipelines.training.validation import Validation

# Seconds that the end of a run, and a checkpoint, wait for notes that storage does not take.
NOTES_S = 10.0
# Below this many broken samples their share says nothing.
_FEW_BROKEN = 20


class Loop:
    """One rank of a run: its share of the state, and the steps. `worker.train_loop` makes it.

    step:         optimiser steps done
    samples_seen: of all ranks, position in the plan
    """

    def __init__(
        self,
        prepared: PreparedRun,
        ranks: Ranks,
        node: Node,
        log: RunLog | None,
        record: RunRecord | None,
        start: StartUp,
    ) -> None:
        self.prepared = prepared
        self.log = log
        self.start = start
        self.job = prepared.job
        self.node = node
        self.ranks = ranks
        rank = ranks.rank
        # Rank 0 looks for all: listings at different moments could differ.
        attempt = patiently(lambda: next_attempt(prepared.uri)) if rank == 0 else 0
        self.attempt = int(self.ranks.agreed(attempt))
        run = self.job.run
        meter = meter_of(run.name, rank)
        self.live = LiveRun(meter, rank, ranks.world, run.steps, run.checkpoint_every)
        self.journal = Journal(
            prepared.uri,
            rank,
            self.attempt,
            self.ranks.agreed(uuid.uuid4().hex),
            beat_s(self.job.cluster.hang_s),
            ray.get_runtime_context().get_node_id(),
            self.live.spent,
        )
        self.journal.phase(STARTING)
        latest = patiently(lambda: latest_committed(prepared.uri)) if rank == 0 else None
        self.committed: tuple[str, CheckpointManifest] | None = self.ranks.agreed(latest)
        if self.committed:
            self.journal.phase(FETCHING, self.committed[1].step)
        # Decoding takes as long to start as all of this, and needs nothing of it.
        self.stream = self._stream()
        model = first_model(prepared, node, bool(self.committed))
        universal = self.committed is not None and fetch_state(
            prepared, node, ranks.world, self.committed
        )
        self.journal.phase(STARTING)
        self.engine = Engine(model, self.job, load_universal=universal)
        self.ranks.device = self.engine.device
        self.ema = Ema(self.engine, self.job.engine.ema_decay)
        self.step = 0
        self.samples_seen = 0
        good = "none yet"
        if self.committed:
            self._resume(*self.committed)
            good = f"{self.committed[0]} (step {self.step})"
        self.live.begins(self.step)
        self.teller = Teller(
            prepared.uri, run.keep, self.attempt, self.journal, self.live, log, NOTES_S
        )
        uploads = Uploads(
            prepared.uri,
            rank,
            run.keep,
            good,
            self.teller.uploaded,
            self.teller.committed,
            (lambda: referenced(record.uri, record.noted())) if record else frozenset,
            self.teller.pruned,
        )
        self.checkpointer = Checkpointer(
            prepared, self.attempt, ranks, self.engine, self.ema, self.journal, uploads
        )
        encoders = Encoders(prepared, node, self.engine.device)
        self.watch = StopWatch(prepared.uri, rank, self.job.cluster.elastic)
        self.steps = TrainStep(self.job, self.ranks, self.engine, self.ema, encoders)
        self.validation = None
        # Else another process judges what this one writes.
        if prepared.validation and self.job.validator is None:
            # What is judged is in no cache.
            of_frames = encoders
            if prepared.cache:
                of_frames = Encoders(replace(prepared, cache=None), node, self.engine.device)
            engine = self.engine
            self.validation = Validation(prepared, ranks, engine.module, engine.device, of_frames)

    def _stream(self) -> Iterator[StreamBatch]:
        """This rank's shares behind the last checkpoint; the first is waited for from now on."""
        seen = self.committed[1].samples_seen if self.committed else 0
        shard = ray.train.get_dataset_shard("train")
        return ahead(batches(shard, seen, self.ranks.rank, self.ranks.world))

    def _resume(self, uri: str, manifest: CheckpointManifest) -> None:
        """Go on from the fetched state."""
        self.prepared.require_own(uri, manifest)
        self.engine.load(state_folder(self.node))
        self.ema.load(state_folder(self.node))
        remove_state(self.node)
        self.step = manifest.step
        self.samples_seen = manifest.samples_seen
        if self.ranks.rank == 0:
            self.journal.resumed(self.step, self.ranks.world)
        if self.log:
            self.log.goes_on(self.step)

    def run(self) -> None:
        """All steps that are left, or until it is asked to stop; StoppedError when too many
        samples are broken.
        """
        job = self.job
        total = job.run.steps
        begun, first = self.samples_seen, self.step
        account = self.steps.account
        account.restart()
        self.start.over("weights")
        due = False
        while self.step < total:
            # The next share; what is waited for here is the data's share.
            begin = time.perf_counter()
            self.journal.phase(DATA, self.step, tell=False)
            with lasting(), account.clock.within("data"):
                raw = next(self.stream)
            self.journal.phase(STEPPING, tell=False)
            came = time.perf_counter()
            if job.run.record_samples:
                self.journal.consumed(self.step, raw)
            with lasting():
                losses = self._taken(raw)
            self.step += 1
            if self.step == first + 1:
                self._started(came - begin, time.perf_counter() - came)
            self.samples_seen += int(raw["batch"][0])
            self.live.stepped(self.step, account.work, self.steps.skipped)
            # Collective: every rank comes here at the same steps.
            stop = False
            if self.step % job.run.log_every == 0 or self.step in (1, total):
                skipped = self._progress(losses)
                # Every rank knows the sum, so all of them stop at the same step.
                stop = skipped >= _FEW_BROKEN and skipped > job.data.max_broken * (
                    self.samples_seen - begun
                )
            with account.clock.within("exchange"):
                asked, resizes, looks = self.ranks.each_anywhere(self.watch.flags())
            leaves = looks and self.watch.machine_leaves()
            due = due or self.step % job.run.checkpoint_every == 0 or self.step == total
            hurry = stop or asked or resizes or leaves
            # Waiting for the one before is a part of it.
            with account.clock.within("checkpoint"):
                takes = hurry or (
                    due and (self.step == total or self.checkpointer.may_take(self.step))
                )
            if takes:
                # Where it has to be quick, nothing is judged.
                judged = {} if hurry else self._judged()
                with account.clock.within("checkpoint"):
                    self._checkpoint(judged)
                due = False
                self.live.resumes()
            if stop or resizes or leaves:
                # Until it is whole. The first error of any rank ends all, and rank 0 may still
                # be committing.
                self.checkpointer.wait(self.step)
                self.ranks.gathered(None)
            if asked:
                break
            if resizes:
                self.watch.saved()
            if leaves and not stop and self.step < total:
                # What they did beyond this step would be lost with the machine.
                raise MachineLeavesError(
                    f"a machine of this run is taken away; it goes on from step {self.step} where "
                    "there is room"
                )
            if stop:
                quarantine = storage.join(self.prepared.uri, "quarantine")
                raise StoppedError(
                    f"{skipped} of {self.samples_seen - begun} samples were broken by step "
                    f"{self.step}, "
                    f"more than data.max_broken {job.data.max_broken:g} allows; {quarantine} names "
                    "each with its reason. Mend the data, or raise data.max_broken; the run goes on "
                    "from its last checkpoint"
                )
        self.checkpointer.wait(self.step)
        # Whoever waits for a checkpoint has it.
        self.watch.finished()

    def _taken(self, raw: StreamBatch) -> dict[str, float]:
        """Take a step; the losses of the global batch, the same on every rank."""
        try:
            with memory_told(f"at step {self.step + 1}", self.job, lambda: self.steps.at_once):
                return self.steps.take(self.step, raw, self.samples_seen, self.journal)
        except NoRoomError:
            # The others wait for this rank: nothing collective from here on.
            raise
        except StoppedError as error:
            raise self._diverged(str(error)) from error

    def _diverged(self, what: str) -> StoppedError:
        """Collective: rank 0 knows which checkpoint is whole."""
        good = self.checkpointer.good()
        return StoppedError(
            f"{what}. Training has stopped; its last good checkpoint: {good}. The "
            "same job would come to the same numbers: lower optimizer.lr, raise "
            "optimizer.warmup_steps, or look at the data, and start it under another run.name"
        )

    def _started(self, batch: float, step: float) -> None:
        """The first step is done. Seconds that it waited for its batch, and took."""
        self.start.add("first batch", batch)
        self.start.add("first step", step)
        if self.ranks.rank == 0:
            self.teller.started(self.step, self.start.told())

    def _progress(self, losses: dict[str, float]) -> int:
        """Tell how far this rank is; the number of samples that all ranks skipped since they
        started. Collective.
        """
        account = self.steps.account
        skipped, figures = account.figures(self.ema, self.steps.broken)
        extra = {
            "samples_seen": float(self.samples_seen),
            "samples_skipped": float(skipped),
            "steps_skipped": float(self.steps.skipped),
            "learning_rate": self.job.optimizer.lr_at(self.step - 1, self.job.run.steps),
        }
        self.teller.progress(self.step, skipped, losses, figures, account.phases, extra)
        return skipped

    def _judged(self) -> dict[str, float]:
        """The losses of the samples that are not trained on. Collective."""
        if self.validation is None:
            return {}
        with self.steps.account.clock.within("validation"):
            losses = self.validation.losses()
            figures = self.validation.figures()
        self.teller.judged(self.step, losses, figures, self.validation.picture)
        return losses

    def _checkpoint(self, judged: dict[str, float]) -> None:
        """Take a checkpoint here. Collective. judged: losses in validation"""
        self.live.taken(self.step)
        # One at a time; what went wrong with the one before is raised here.
        self.checkpointer.wait(self.step)
        if self.ranks.anywhere(not self.engine.finite()):
            # A finite loss and gradient may still have led here.
            raise self._diverged(f"step {self.step}: a weight is not a finite number")
        self.checkpointer.take(self.step, self.samples_seen, judged.get("loss"))
