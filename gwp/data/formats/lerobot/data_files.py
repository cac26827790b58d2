"""Which data file of a LeRobot set holds the rows of which episode.

The metadata name a file for each episode, and its rows have the number of theirs. Where the two
disagree, the numbers of rows decide: whichever of them fits the lengths of all episodes. Where
both do or neither, it cannot be told.
"""

from collections import defaultdict
from functools import cached_property
from typing import Literal

import pyarrow as pa

from gwp import storage
from gwp.data.formats.files.parquet import parquet_errors
from gwp.data.formats.files.reader import WHOLE, FileReader
from gwp.data.formats.lerobot.rows import DataFile, Held, look
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.errors import DataError

_FILES = 65536
"""Data files of which it stays where the rows of each episode are."""


class DataFiles:
    """The data files of a set, each looked at once."""

    def __init__(self, data: RobotSet, reader: FileReader) -> None:
        self.set, self.reader = data, reader
        every = [*data.episodes, *data.own.others]
        self._lengths = {e.index: e.length for e in every if not e.problem}
        self._numbers = {e.index for e in every}
        # File -> number and length of each episode that the metadata place there.
        self._listed: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for episode in sorted(every, key=lambda e: e.index):
            if not episode.problem:
                self._listed[episode.data_file].append((episode.index, episode.length))
        self._tables: dict[str, DataFile | str] = {}
        self._vectors = tuple(dict.fromkeys((*data.state_keys, *data.action_keys)))

    def fetch(self, file: str) -> None:
        """What `table` will need of a file that is far away, from any thread."""
        size = self.set.files.get(file)
        if size is not None and size <= WHOLE:
            self.reader.fetch(storage.join(self.set.uri, file), size)
        else:
            # It asks for parts, one after another.
            self.table(file)

    def table(self, file: str) -> DataFile | str:
        """What a data file holds, or why it cannot be read."""
        if file not in self._tables:
            try:
                with parquet_errors(file):
                    self._tables[file] = self._read(file)
            except DataError as error:
                self._tables[file] = str(error)
        return self._tables[file]

    def types(self, file: str) -> dict[str, pa.DataType]:
        """Columns of a data file and their types; none where it cannot be read."""
        table = self.table(file)
        return {} if isinstance(table, str) else table.types

    def _read(self, file: str) -> DataFile:
        if file not in self.set.files:
            raise DataError(f"{file} is missing")
        listed = tuple(self._listed.get(file, ()))
        uri, size = storage.join(self.set.uri, file), self.set.files[file]
        told_by, fps = self.set.own.told_by, self.set.fps
        return self.reader.once(
            _FILES, look, self.reader, uri, size, listed, told_by, fps, self._vectors
        )

    def place(self, episode: Episode) -> tuple[str, Held]:
        """The file that holds the rows of an episode, and where in it. DataError when it cannot
        be told.
        """
        file = episode.data_file
        table = self.table(file)
        if isinstance(table, str):
            # The file of that name is lost, but the rows may lie in another.
            if file not in self.set.files and self.verdict == "rows":
                return self._elsewhere(episode, table)
            raise DataError(table)
        if table.held is None:
            listed = sum(length for _, length in self._listed[file])
            raise DataError(
                f"{file} has no column episode_index, and {table.count} rows where its episodes "
                f"have {listed}"
            )
        numbers = [number for number, _ in self._listed[file]]
        if set(numbers) != table.held.keys() and self.verdict == "names":
            if self._is_exchanged(episode.index):
                raise DataError(self._not_there(file, table.held, episode))
            # The n-th stretch of rows is of the n-th episode.
            return file, list(table.held.values())[numbers.index(episode.index)]
        if episode.index in table.held:
            return file, table.held[episode.index]
        return self._elsewhere(episode, self._not_there(file, table.held, episode))

    def parts(self, episode: Episode) -> str:
        """How many of its rows each file has that has some."""
        held = self._holders.get(episode.index, [])
        return " and ".join(f"{place.count} in {file}" for file, place in held)

    def _elsewhere(self, episode: Episode, otherwise: str) -> tuple[str, Held]:
        """Rows of an episode that are in another file. DataError with `otherwise` when it
        cannot be told which.
        """
        if self.verdict == "rows" and episode.index in self._holders:
            ((file, held),) = self._holders[episode.index]
            return file, held
        raise DataError(otherwise)

    def _not_there(self, file: str, held: dict[int, Held], episode: Episode) -> str:
        if len(self._listed[file]) > 1 or not held:
            return f"metadata say {episode.length} rows, {file} has 0"
        return f"{file} holds rows of episode {', '.join(map(str, sorted(held)))}, not of this one"

    @cached_property
    def _holders(self) -> dict[int, list[tuple[str, Held]]]:
        """Number -> the files that have rows of it, and where. Every file is looked at, which
        only sets need whose files and rows disagree.
        """
        holders: dict[int, list[tuple[str, Held]]] = defaultdict(list)
        # Also those that the metadata place no episode in.
        data = (n for n in self.set.files if n.startswith("data/") and n.endswith(".parquet"))
        for file in dict.fromkeys((*self._listed, *data)):
            table = self.table(file)
            if isinstance(table, DataFile):
                for number, held in (table.held or {}).items():
                    holders[number].append((file, held))
        return holders

    @cached_property
    def _numbered(self) -> dict[int, int]:
        """Episode -> the number that the rows have which lie in its place."""
        found: dict[int, int] = {}
        for file, listed in self._listed.items():
            table = self.table(file)
            if isinstance(table, DataFile) and table.held is not None:
                found |= dict(zip((number for number, _ in listed), table.held, strict=False))
        return found

    def _is_exchanged(self, number: int) -> bool:
        """Whether files lie in each other's places, by the numbers of their rows: numbers of another
        set, or of fewer episodes, lead back to none.
        """
        passed = {number}
        at = self._numbered.get(number, number)
        while at in self._numbered and at not in passed:
            passed.add(at)
            at = self._numbered[at]
        return at == number and len(passed) > 1

    def _has_copies(self) -> bool:
        """Whether the rows of some episode lie in two files that are the same: one of their names is
        wrong.
        """
        for places in self._holders.values():
            sizes: dict[int, str] = {}
            for file, _ in places:
                size = self.set.files[file]
                other = sizes.setdefault(size, file)
                if other != file and self._content(file) == self._content(other):
                    return True
        return False

    def _content(self, file: str) -> bytes:
        return self.reader.read(storage.join(self.set.uri, file), self.set.files[file])

    @cached_property
    def verdict(self) -> Literal["names", "rows", ""]:
        """Which of the two counts where they disagree."""
        rows = all(
            len(places) == 1
            and number in self._numbers
            and places[0][1].count == self._lengths.get(number, places[0][1].count)
            for number, places in self._holders.items()
        )
        names, at_home, known = True, 0, 0
        for file, listed in self._listed.items():
            table = self.table(file)
            if isinstance(table, str) or table.held is None:
                continue
            lengths = [length for _, length in listed]
            names = names and [held.count for held in table.held.values()] == lengths
            names = names and all(held.in_order for held in table.held.values())
            at_home += sum(number in table.held for number, _ in listed)
            known += len(listed)
        # Rows that have the numbers of another set, or all the same, are mostly not at home. Of
        # a single file that has another's number, it is the file that is wrong.
        if names and self._has_copies():
            names = False
        if rows != names:
            return "rows" if rows else "names" if 2 * at_home <= known else ""
        return ""
