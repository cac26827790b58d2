"""The checkpoints that a rank takes: its share goes to its own disk while the steps wait, and to
storage beside the steps.
"""

import logging
from functools import partial

from pipelines.training.checkpoint.checkpoints import CheckpointManifest, checkpoint_uri
from pipelines.training.checkpoint.uploads import Uploads
from pipelines.training.control.journal import SAVING, UPLOADING, Journal
from pipelines.training.control.room import disk_told, size_of_folder
from pipelines.training.control.stopped import lasting
from pipelines.training.engine.deepspeed_engine import Engine
from pipelines.training.engine.ema import Ema
from pipelines.training.engine.ranks import Ranks
from pipelines.training.prepare import PreparedRun
from pipelines.training.scratch import Scratch

# Seconds that steps wait for the checkpoint before, so that checkpoints are taken where they
# are due unless storage is away.
_STAND_S = 5.0
# Every rank writes the same pointer files of DeepSpeed; one copy is enough.
_POINTERS = ("latest", "zero_to_fp32.py")

logger = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of one rank; the training loop makes it. Every method is collective."""

    def __init__(
        self,
        prepared: PreparedRun,
        attempt: int,
        ranks: Ranks,
        engine: Engine,
        ema: Ema,
        journal: Journal,
        uploads: Uploads,
    ) -> None:
        self._prepared = prepared
        self._attempt = attempt
        self._ranks = ranks
        self._engine = engine
        self._ema = ema
        self._journal = journal
        self._uploads = uploads
        # Whether storage has been away since the last one was due.
        self._late = False
        # Bytes that this rank's part took last; 0: none yet.
        self._size = 0

    def wait(self, step: int) -> None:
        """Until the one under way is whole in storage. step: that the run is at"""
        self._journal.phase(UPLOADING, step)
        with lasting():
            self._uploads.wait()

    def good(self) -> str:
        """The last one that is whole, in words, when nothing is under way any more."""
        self._uploads.wait()
        return str(self._ranks.agreed(self._uploads.good))

    def may_take(self, step: int) -> bool:
        """Whether all ranks have the one before in storage: while storage is away, steps go on,
        and the next one is taken when it is back.
        """
        on_its_way = not self._uploads.arrived(0.0 if self._late else _STAND_S)
        late = self._ranks.anywhere(on_its_way)
        if late and not self._late and self._ranks.rank == 0:
            logger.warning(
                "step %d: the last checkpoint is still on its way, the next one waits for it; "
                "steps go on",
                step,
            )
        self._late = late
        return not late

    def take(self, step: int, samples_seen: int, validation: float | None) -> None:
        """Save this rank's share, and have it uploaded and committed beside the steps that
        follow. NoRoomError when it does not fit on the disk. After `wait`.
        """
        self._journal.phase(SAVING)
        scratch = self._saved()
        if self._ranks.rank:
            for name in _POINTERS:
                (scratch.folder / name).unlink(missing_ok=True)
        manifest = partial(
            CheckpointManifest,
            step=step,
            samples_seen=samples_seen,
            world_size=self._ranks.world,
            zero_stage=self._prepared.job.engine.zero_stage,
            plan_hash=self._prepared.plan_hash,
            config_hash=self._prepared.config_hash,
            attempt=self._attempt,
            validation=validation,
        )
        uri = checkpoint_uri(self._prepared.uri, step, self._attempt)
        self._uploads.start(scratch, uri, manifest)

    def _saved(self) -> Scratch:
        with lasting():
            scratch = Scratch()
            try:
                with disk_told(scratch.folder, "a checkpoint", self._size):
                    self._engine.save(scratch.folder)
                    self._ema.save(scratch.folder)
            except BaseException:
                scratch.cleanup()
                raise
        self._size = size_of_folder(scratch.folder)
        return scratch
