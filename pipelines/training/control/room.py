"""No room: memory that does not hold a step, and disks that do not hold a checkpoint. Another
start would come to the same, so both end a run, with what to change.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gwp import storage
from gwp.storage.retry import causes
from pipelines.jobs.train_job import TrainJob
from pipelines.training.control.stopped import StoppedError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# A disk with less is full, whatever an error says of it: its last blocks are the system's.
_NOTHING = 1 << 20


class NoRoomError(StoppedError):
    """Memory or a disk is too small. Of one rank alone: the others do not know of it."""


@contextmanager
def memory_told(when: str, job: TrainJob, at_once: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Raise that memory ran out as NoRoomError, which says what to set.

    when: in words; at_once: tells the samples that the model had at a time, 0: none yet
    """
    try:
        yield
    # Of the GPU, and of Python.
    except (torch.OutOfMemoryError, MemoryError) as error:
        engine = job.engine
        samples = at_once()
        size = f" with {samples} samples at a time" if samples else ""
        ways = []
        if samples > 1:
            ways.append("lower engine.micro_batch")
        if not engine.gradient_checkpointing:
            ways.append("set engine.gradient_checkpointing: true")
        if engine.zero_stage < 3:
            ways.append(f"raise engine.zero_stage (it is {engine.zero_stage})")
        ways.append("give it more workers")
        raise NoRoomError(f"out of memory {when}{size}: {', '.join(ways)}") from error


@contextmanager
def disk_told(folder: Path, what: str, needed: int) -> Iterator[None]:
    """Raise that the disk of `folder`, of temporary files, does not hold what the block writes
    there as NoRoomError.

    what: in words; needed: bytes, 0 where they are not known. Asked before the block, and when
    the block fails: libraries make errors of their own of a disk that is full.
    """
    with _told(folder, what, needed, "let TMPDIR name a larger disk"):
        yield


@contextmanager
def room_told(uri: str, needed: int) -> Iterator[None]:
    """As `disk_told`, of a checkpoint on its way to the run folder; what lies in a bucket is no
    disk of ours.
    """
    if storage.is_remote(uri):
        yield
        return
    folder = Path(uri.removeprefix("file://"))
    # It is made with its first file.
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    with _told(there, "a worker's part of a checkpoint", needed, "lower run.keep"):
        yield


@contextmanager
def _told(folder: Path, what: str, needed: int, way: str) -> Iterator[None]:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _no_room(folder, what, needed, f"{megabytes(free)} were free", way)
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        full = any(isinstance(e, OSError) and e.errno in _FULL for e in causes(error))
        left = shutil.disk_usage(folder).free
        if not full and left >= _NOTHING:
            raise
        # What was free sufficed for this one: others write there, too.
        room = f"{megabytes(left)} are left" if needed else f"{megabytes(free)} were free"
        raise _no_room(folder, what, needed, room, way) from error


def _no_room(folder: Path, what: str, needed: int, room: str, way: str) -> NoRoomError:
    size = f", which takes {megabytes(needed)}" if needed else ""
    return NoRoomError(
        f"{folder}: no room for {what}{size}: {room}; free some, or {way}, and start the same "
        "command again"
    )


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.0f} MB" if size >= 10_000_000 else f"{size / 1e6:.1f} MB"


def size_of_folder(folder: Path) -> int:
    """Bytes of all files below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
