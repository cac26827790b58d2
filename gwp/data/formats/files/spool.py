"""Small files of storage far away, which were fetched once and are read again."""

import os
import shutil
import tempfile
from contextlib import suppress
from threading import Lock
from typing import Any

_LIMIT = 4 << 30
"""Bytes that are kept; what does not fit is fetched again."""
_SHARE = 0.25
"""Of the free room of the folder for temporary files, likewise."""


class Spool:
    """Contents by URI, in a temporary file without a name: it goes with its last handle, however
    the process ends. A `FileReader` has one; threads may share it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._file: Any = None
        # URI -> first byte and number of bytes.
        self._places: dict[str, tuple[int, int]] = {}
        self._end, self._limit = 0, 0
        self._failed = False

    def get(self, uri: str) -> bytes | None:
        """The content of a file; None where it is not kept."""
        place = self._places.get(uri)
        return None if place is None else os.pread(self._file.fileno(), place[1], place[0])

    def put(self, uri: str, data: bytes) -> bool:
        """Keep it, as far as there is room; whether it is kept."""
        with self._lock:
            if self._file is None and not self._failed:
                self._open()
            if self._file is None or self._end + len(data) > self._limit or uri in self._places:
                return uri in self._places
            begin = self._end
            self._end += len(data)
        # A disk that is full after all is no reason to stop: the file is only fetched again.
        with suppress(OSError):
            if os.pwrite(self._file.fileno(), data, begin) == len(data):
                self._places[uri] = begin, len(data)
        return uri in self._places

    def _open(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="gwp-files-")  # noqa: SIM115
            free = shutil.disk_usage(tempfile.gettempdir()).free
            self._limit = min(_LIMIT, int(free * _SHARE))
        except OSError:
            # Without a folder to write to, nothing is kept.
            self._failed = True
