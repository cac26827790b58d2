"""Tables of a LeRobot set's metadata: lines of JSON and Parquet files, each read as far as it is
whole.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.files.texts import read_json
from gwp.errors import DataError

_EPISODE = re.compile(r'"episode_index"\s*:\s*"?(\d{1,9})"?\s*[,}]')


@dataclass(frozen=True)
class Entry:
    """One row: where it stands; what it holds. None: it cannot be read, and `episode` is the
    number that is left of it, if any.
    """

    where: str
    row: dict[str, Any] | None
    episode: int | None = None


@dataclass
class Table:
    """Rows in order. lost: why a file of it cannot be read."""

    entries: list[Entry] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class MetaFiles:
    """The files of a set's metadata, each fetched once. Whoever reads a set makes one."""

    def __init__(self, uri: str, files: dict[str, int], reader: FileReader) -> None:
        """files: of the whole set, with their bytes"""
        self.uri, self.files, self._reader = uri, files, reader
        self._read: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        """The content of a file. DataError where it is not there."""
        if name not in self.files:
            raise DataError(
                f"{self.uri}: {name} is missing; bring it, or correct the version in info.json"
            )
        if name not in self._read:
            self._read[name] = self._fetch(name)
        return self._read[name]

    def read_ahead(self, names: Iterable[str]) -> None:
        """Fetch these, several at a time where they are far away."""
        wanted = [name for name in names if name not in self._read]
        self._read |= zip(wanted, several(self.uri, self._fetch, wanted), strict=True)

    def _fetch(self, name: str) -> bytes:
        return self._reader.read(storage.join(self.uri, name), self.files[name])


def json_lines(meta: MetaFiles, name: str) -> Table:
    """A file of one JSON object a line."""
    found = Table()
    # Some editors put a mark of the byte order first.
    text = meta.read(name).decode("utf-8-sig", "replace")
    # Not `splitlines`: instructions may hold the line breaks of other scripts.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
        except (ValueError, RecursionError):
            row = None
        given = _EPISODE.search(line)
        episode = int(given[1]) if given else None
        entry = Entry(f"{name}, line {number}", row if isinstance(row, dict) else None, episode)
        found.entries.append(entry)
    return found


def parquet_rows(meta: MetaFiles, name: str) -> Table:
    """A Parquet file without its statistics, which are most of it where there are many cameras."""
    raw = meta.read(name)
    try:
        wanted = [c for c in pq.read_schema(io.BytesIO(raw)).names if not c.startswith("stats/")]
        rows = pq.read_table(io.BytesIO(raw), columns=wanted).to_pylist()
    except (OSError, pa.ArrowException, ValueError, OverflowError):
        # Damaged pages and footers are OSErrors, as Arrow tells them; no storage is involved
        # here. Values of texts and times that Python has not are the other two.
        return Table(lost=[f"{name} cannot be read as Parquet; it is truncated or damaged"])
    return Table([Entry(f"{name}, row {number}", row) for number, row in enumerate(rows)])
