"""Folders on a worker's own disk that go with the process that made them, also when it was killed.

A checkpoint of a large model is hundreds of GB: what killed workers left of one would fill the
disk in a few restarts. Each folder holds a file that its process has locked; a lock goes with
its process, so whoever gets it knows that nobody needs the folder.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

_PREFIX = "gwp-scratch-"
_LOCK = ".lock"

logger = logging.getLogger(__name__)


class Scratch:
    """A new folder, removed by `cleanup` or at the end of the block, or else by `sweep`.

    folder: where to write
    """

    def __init__(self) -> None:
        self._outer = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.folder = self._outer / "files"
        self._lock = os.open(self._outer / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder.mkdir()

    def cleanup(self) -> None:
        """Remove it; may be called twice."""
        if self._lock < 0:
            return
        shutil.rmtree(self._outer, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup()


def sweep() -> list[Path]:
    """Remove the folders of processes that are no more; returns them."""
    gone = []
    for outer in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        try:
            lock = os.open(outer / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            # It is being made or removed, or is somebody else's.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Its process lives.
            continue
        else:
            shutil.rmtree(outer, ignore_errors=True)
            logger.warning("%s removed: its process was killed", outer)
            gone.append(outer)
        finally:
            os.close(lock)
    return gone
