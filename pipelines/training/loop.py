"""The one training loop, run by every rank of every stage.

Order that matters: build in fp32, load weights, create the engine, then EMA, then resume.
Checkpoints are committed by our own protocol (`pipelines.training.checkpoint`); Ray is told of
figures only.
"""

import logging
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train

from gwp import storage
from gwp.data.records import StreamBatch
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights import build_model, load_model, locate, open_checkpoint
from gwp.model.weights.derive import require_same
from pipelines.compat import import_deepspeed
from pipelines.tracking.curves import CHECKPOINT_TAG
from pipelines.tracking.run_log import RunLog
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    DamagedError,
    checkpoint_uri,
    fetch,
    latest_committed,
    next_attempt,
    set_aside,
)
from pipelines.training.checkpoint.kept import referenced
from pipelines.training.checkpoint.uploads import Uploads
from pipelines.training.control.journal import Journal
from pipelines.training.control.stop import StopWatch
from pipelines.training.control.stopped import StoppedError, lasting
from pipelines.training.encoders import Encoders
from pipelines.training.engine.deepspeed_engine import Engine, convert_to_universal
from pipelines.training.engine.ema import Ema
from pipelines.training.engine.node import Node
from pipelines.training.engine.ranks import Ranks
from pipelines.training.prepare import PreparedRun
from pipelines.training.step import TrainStep
from pipelines.training.stream import batches
from pipelines.training.tracked import RunRecord

# Seconds that the end of a run, and a checkpoint, wait for notes that storage does not take.
_NOTES_S = 10.0
# Seconds that steps wait for the checkpoint before, so that checkpoints are taken where they
# are due unless storage is away.
_STAND_S = 5.0
# Below this many broken samples their share says nothing.
_FEW_BROKEN = 20


logger = logging.getLogger(__name__)


def train_loop(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker. `config`: {"prepared": PreparedRun, "record": RunRecord
    | None, "tracking_uri": str}.
    """
    prepared: PreparedRun = config["prepared"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    ranks = Ranks(rank, context.get_world_size())
    log = loop = None
    # Before the thread that tells MLflow imports that.
    import_deepspeed(prepared.job.cluster.gpu)
    # One rank is enough: losses are means over all of them.
    if rank == 0 and config["record"]:
        record: RunRecord = config["record"]
        # For the client that opens the run, too.
        os.environ["MLFLOW_TRACKING_URI"] = config["tracking_uri"]
        log = RunLog(record.opened, config["tracking_uri"], record.uri, record.since)
    with tempfile.TemporaryDirectory(prefix="gwp-worker-") as scratch:
        try:
            with lasting():
                number, local = context.get_node_rank(), context.get_local_rank()
                node = Node(ranks, number, local, Path(scratch))
                loop = _Loop(prepared, ranks, node, log, config["record"])
            loop.run()
        finally:
            if loop:
                loop.watch.close()
                loop.journal.flush(_NOTES_S)
            if log:
                log.close()


class _Loop:
    """One rank of a run: its share of the state, and the steps. `train_loop` makes it.

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
    ) -> None:
        self.prepared = prepared
        self.log = log
        self.job = prepared.job
        self.node = node
        self.ranks = ranks
        rank = ranks.rank
        # Rank 0 looks for all: listings at different moments could differ.
        attempt = self.ranks.agreed(next_attempt(prepared.uri) if rank == 0 else 0)
        self.attempt = int(attempt)
        self.journal = Journal(prepared.uri, rank, self.attempt)
        latest = latest_committed(prepared.uri) if rank == 0 else None
        self.committed: tuple[str, CheckpointManifest] | None = self.ranks.agreed(latest)
        model = self._model()
        universal = self._fetch_state()
        self.engine = Engine(model, self.job, load_universal=universal)
        self.ranks.device = self.engine.device
        self.ema = Ema(self.engine, self.job.engine.ema_decay)
        self.step = 0
        self.samples_seen = 0
        good = "none yet"
        if self.committed:
            self._resume(*self.committed)
            good = f"{self.committed[0]} (step {self.step})"
        self.uploads = Uploads(
            prepared.uri,
            rank,
            self.job.run.keep,
            good,
            self.uploaded,
            self.committed_at,
            (lambda: referenced(record.uri, record.noted())) if record else frozenset,
        )
        self.late = False
        encoders = Encoders(prepared, node, self.engine.device)
        self.watch = StopWatch(prepared.uri, rank)
        self.steps = TrainStep(self.job, self.ranks, self.engine, self.ema, encoders)

    def _fetch_state(self) -> bool:
        """Bring the state of the last checkpoint to this machine; whether it had to be converted
        because another number of ranks, or another ZeRO stage, wrote it.
        """
        if not self.committed:
            return False
        uri, manifest = self.committed
        before = (manifest.world_size, manifest.zero_stage)
        now = (self.ranks.world, self.job.engine.zero_stage)
        # Without ZeRO every rank has all of the state, so it is in no form of its own.
        converted = before != now and before[1] > 0

        def bring() -> None:
            try:
                state = fetch(uri, manifest, self.node.folder / "checkpoint") / "state"
            except DamagedError as error:
                set_aside(uri, str(error))
                # No StoppedError: the next start of the workers takes the one before.
                raise RuntimeError(f"{error}. The run goes on from the one before") from error
            if converted:
                convert_to_universal(state)

        self.node.once(bring)
        return converted

    def _model(self) -> WorldActionTransformer:
        """The model in fp32: with the weights of `init` where the run begins there, else drawn
        by the job's seed, the same on every rank.
        """
        config = self.job.model_config_
        # A checkpoint brings its own weights; those of `init` would be read for nothing.
        if not self.prepared.init or self.committed:
            return build_model(config, self.job.run.seed).train()
        uri = locate(self.prepared.init)
        local = Path(uri.removeprefix("file://"))
        if storage.is_remote(uri):
            local = self.node.folder / "init"
            self.node.once(lambda: storage.download(uri, local))
        require_same(open_checkpoint(local), config, uri)
        return load_model(local).train()

    def _resume(self, uri: str, manifest: CheckpointManifest) -> None:
        """Go on from the fetched state."""
        self.prepared.require_own(uri, manifest)
        self.engine.load(self.node.folder / "checkpoint" / "state")
        self.ema.load(self.node.folder / "checkpoint" / "state")
        self.node.remove("checkpoint")
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
        stream = batches(
            ray.train.get_dataset_shard("train"),
            self.samples_seen,
            self.ranks.rank,
            self.ranks.world,
        )
        waited = 0.0
        begun = self.samples_seen
        started = time.perf_counter()
        due = False
        while self.step < total:
            # The next share; what is waited for here is the data's share.
            begin = time.perf_counter()
            with lasting():
                raw = next(stream)
            waited += time.perf_counter() - begin
            if job.run.record_samples:
                self.journal.consumed(self.step, raw)
            with lasting():
                losses = self._taken(raw)
            self.step += 1
            self.samples_seen += int(raw["batch"][0])
            # Collective: every rank comes here at the same steps.
            stop = leaves = False
            if self.step % job.run.log_every == 0 or self.step in (1, total):
                elapsed = time.perf_counter() - started
                skipped = self._progress(losses, elapsed, waited)
                # Every rank knows the sum, so all of them stop at the same step.
                stop = skipped >= _FEW_BROKEN and skipped > job.data.max_broken * (
                    self.samples_seen - begun
                )
                leaves = self.watch.machine_leaves()
                started = time.perf_counter()
                waited = 0.0
            asked = self.ranks.anywhere(self.watch.asked)
            due = due or self.step % job.run.checkpoint_every == 0
            now = self.step == total or stop or asked or leaves
            if now or (due and self._arrived()):
                self._checkpoint(losses)
                due = False
            if stop or leaves:
                # Steps that follow may be lost with the machine, this one not.
                self.uploads.wait()
                # The first error of any rank ends all: rank 0 may still be committing.
                self.ranks.gathered(None)
            if asked:
                break
            if stop:
                quarantine = storage.join(self.prepared.uri, "quarantine")
                raise StoppedError(
                    f"{skipped} of {self.samples_seen - begun} samples were broken by step "
                    f"{self.step}, "
                    f"more than data.max_broken {job.data.max_broken:g} allows; {quarantine} names "
                    "each with its reason. Mend the data, or raise data.max_broken; the run goes on "
                    "from its last checkpoint"
                )
        self.uploads.wait()

    def _taken(self, raw: StreamBatch) -> dict[str, float]:
        """Take a step; the losses of the global batch, the same on every rank."""
        try:
            return self.steps.take(self.step, raw, self.samples_seen, self.journal)
        except StoppedError as error:
            raise self._diverged(str(error)) from error

    def _diverged(self, what: str) -> StoppedError:
        """Collective: rank 0 knows which checkpoint is whole."""
        self.uploads.wait()
        good = self.ranks.agreed(self.uploads.good)
        return StoppedError(
            f"{what}. Training has stopped; its last good checkpoint: {good}. The "
            "same job would come to the same numbers: lower optimizer.lr, raise "
            "optimizer.warmup_steps, or look at the data, and start it under another run.name"
        )

    def uploaded(self, step: int) -> None:
        """Have what was noted until now where it belongs, before the checkpoint at `step` becomes
        whole: what a committed step measured must not be lost with a killed worker. Called beside
        the steps.
        """
        if self.log:
            self.log.cover(step, self.attempt)
        self.journal.flush(_NOTES_S)

    def committed_at(self, uri: str, step: int) -> None:
        """Tell MLflow of a checkpoint that is whole now. Called beside the steps, on rank 0."""
        if self.log:
            self.log.set_tags({"gwp.checkpoint": uri, CHECKPOINT_TAG: str(step)})

    def _progress(self, losses: dict[str, float], elapsed: float, waited: float) -> int:
        """Tell how far this rank is; the number of samples that all ranks skipped since they
        started.
        """
        skipped = int(self.ranks.summed([self.steps.broken])[0])
        self.journal.progress(self.step, skipped, losses)
        if self.log and losses:
            extra = {
                "data_wait_share": waited / max(elapsed, 1e-9),
                "samples_seen": float(self.samples_seen),
                "samples_skipped": float(skipped),
                "steps_skipped": float(self.steps.skipped),
                "learning_rate": self.job.optimizer.lr_at(self.step - 1, self.job.run.steps),
            }
            self.log.log_metrics(self.step, losses | extra)
        return skipped

    def _arrived(self) -> bool:
        """Whether all ranks have the checkpoint before in storage: while storage is away, steps go
        on, and the next one is taken when it is back. Collective.
        """
        on_its_way = not self.uploads.arrived(0.0 if self.late else _STAND_S)
        late = self.ranks.anywhere(on_its_way)
        if late and not self.late and self.ranks.rank == 0:
            logger.warning(
                "step %d: the last checkpoint is still on its way, the next one waits for "
                "it; steps go on",
                self.step,
            )
        self.late = late
        return not late

    def _checkpoint(self, losses: dict[str, float]) -> None:
        """Save this rank's share on its disk, and have it uploaded and committed beside the
        steps that follow. Collective.
        """
        # One at a time; what went wrong with the one before is raised here.
        self.uploads.wait()
        if self.ranks.anywhere(not self.engine.finite()):
            # A finite loss and gradient may still have led here.
            raise self._diverged(f"step {self.step}: a weight is not a finite number")
        scratch = tempfile.TemporaryDirectory(prefix="gwp-save-")
        folder = Path(scratch.name)
        self.engine.save(folder)
        self.ema.save(folder)
        if self.ranks.rank:
            # Every rank writes the same pointer files of DeepSpeed; one copy is enough.
            for name in ("latest", "zero_to_fp32.py"):
                (folder / name).unlink(missing_ok=True)
        manifest = partial(
            CheckpointManifest,
            step=self.step,
            samples_seen=self.samples_seen,
            world_size=self.ranks.world,
            zero_stage=self.job.engine.zero_stage,
            plan_hash=self.prepared.plan_hash,
            config_hash=self.prepared.config_hash,
            attempt=self.attempt,
        )
        uri = checkpoint_uri(self.prepared.uri, self.step, self.attempt)
        self.uploads.start(scratch, uri, manifest)
        # No checkpoint of Ray's: it would bring the state to its own storage a second time.
        ray.train.report({"step": self.step, **losses})
