"""Checkpoints on their way to storage, beside the steps.

Each rank saves its share to its own disk, which the steps wait for, and hands it over here. A
thread uploads it and notes what it uploaded in the checkpoint's folder; that of rank 0 waits for
the notes of all and commits. So no step waits for storage, and nothing is talked about between
ranks outside the steps.

    <run>/checkpoints/step_000040-a1/shares/rank-00001.json     what rank 1 has uploaded
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from gwp import storage
from gwp.storage.retry import expired, passing
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    FileEntry,
    commit,
    upload_files,
)
from pipelines.training.checkpoint.retention import prune
from pipelines.training.control.room import room_told, size_of_folder
from pipelines.training.scratch import Scratch

# Seconds that storage may be away before the attempt ends; a step loop goes on meanwhile.
PATIENCE_S = 900.0
_AGAIN_S = 5.0
_POLL_S = 0.2
_SHARES = "shares"

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Uploads:
    """The checkpoint that a rank has under way, one at most; the training loop owns it.

    good: the last committed one that this rank knows of, in words
    """

    def __init__(
        self,
        run_uri: str,
        rank: int,
        keep: int,
        good: str,
        uploaded: Callable[[int], None],
        committed: Callable[[str, int], None],
        referenced: Callable[[], Collection[str]] = frozenset,
        pruned: Callable[[CheckpointManifest], None] = lambda _: None,
    ) -> None:
        """uploaded: called with the step when this rank's share is in storage; committed: called
        on rank 0 with URI and step of a checkpoint that is whole; referenced: as for `prune`;
        pruned: called on rank 0 when older ones have gone for it. All by the thread.
        """
        self._run_uri = run_uri
        self._rank = rank
        self._keep = keep
        self._uploaded = uploaded
        self._committed = committed
        self._referenced = referenced
        self._pruned = pruned
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.good = good

    def start(
        self,
        folder: Scratch,
        uri: str,
        manifest: "partial[CheckpointManifest]",
    ) -> None:
        """Upload a rank's share of the checkpoint `uri` from `folder`, which is removed then.
        Rank 0 commits it, when all ranks have. manifest: all of it but the files. After `wait`.
        """
        assert self._thread is None
        args = (folder, uri, manifest)
        self._thread = threading.Thread(target=self._work, args=args, daemon=True)
        self._thread.start()

    def arrived(self, timeout_s: float) -> bool:
        """Whether the upload under way is done, well or not, within so many seconds."""
        if self._thread:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> None:
        """Until the upload under way is done, and on rank 0 committed; raises why it is not."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _work(
        self,
        folder: Scratch,
        uri: str,
        manifest: "partial[CheckpointManifest]",
    ) -> None:
        step, world = manifest.keywords["step"], manifest.keywords["world_size"]
        try:
            with folder as scratch, room_told(uri, size_of_folder(scratch.folder)):
                mine = patiently(lambda: upload_files(scratch.folder, storage.join(uri, "state")))
            patiently(lambda: self._uploaded(step))
            patiently(lambda: _note(mine, uri, self._rank))
            if self._rank == 0:
                files = patiently(lambda: _files_of_all(uri, world))
                whole = manifest(files=files)
                patiently(lambda: commit(uri, whole))
                patiently(lambda: storage.remove_tree(storage.join(uri, _SHARES)))
                self._committed(uri, step)
                prune(self._run_uri, self._keep, self._referenced)
                self._pruned(whole)
            self.good = f"{uri} (step {step})"
        except BaseException as error:  # noqa: BLE001  raised by `wait`, in the loop
            self._error = error


def _note(mine: dict[str, FileEntry], uri: str, rank: int) -> None:
    """Say in storage what a rank has uploaded."""
    note = {f"state/{name}": entry.model_dump() for name, entry in mine.items()}
    storage.write_bytes(_share(uri, rank), json.dumps(note).encode())


def _files_of_all(uri: str, world: int) -> dict[str, FileEntry]:
    """What all ranks have uploaded, as soon as they have; TimeoutError when one has not."""
    end = time.monotonic() + PATIENCE_S
    files: dict[str, FileEntry] = {}
    for rank in range(world):
        while not storage.exists(_share(uri, rank)):
            if time.monotonic() > end:
                raise TimeoutError(f"{uri}: rank {rank} did not upload its share")
            time.sleep(_POLL_S)
        note = json.loads(storage.read_bytes(_share(uri, rank)))
        files |= {name: FileEntry.model_validate(entry) for name, entry in note.items()}
    return files


def _share(uri: str, rank: int) -> str:
    return storage.join(uri, _SHARES, f"rank-{rank:05d}.json")


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns, tried again while storage is away for longer than a call's own
    patience. Nothing of it may be wrong to do twice.
    """
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except Exception as error:
            if not (passing(error) or expired(error)) or time.monotonic() > end:
                raise
            logger.warning("waiting for storage: %s", error)
            time.sleep(_AGAIN_S)
