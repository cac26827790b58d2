"""What a file of this folder has to offer to be a format: these functions, in one module.

`gwp.data.formats.table` names them all. Everybody else asks there, by the name that stands in a
source or in a row of the manifest.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.finding import Finding
from gwp.data.formats.plain.clip_set import ClipSet
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.errors import DataError

Usable = tuple[list[tuple[Episode, int]], list[tuple[Episode, str]]]
"""Episodes with their first row in their data file, and those that cannot be used with the
reason.
"""
Pictures = tuple[int, Callable[[int], Any]]
"""Number of pictures, and a function that gives one by its number: uint8 `[H, W, 3]`, or the
bytes of an encoded one.
"""


@dataclass(frozen=True)
class FilePart:
    """Where rows or pictures lie: `size` bytes from `offset` of a file (None: all of it)."""

    uri: str
    offset: int = 0
    size: int | None = None


# Described and not imported: `gwp.data.source` needs the table of formats for the names of
# its `format`.
class SetSource(Protocol):
    """What a format asks of the source (`gwp.data.source.Source`) that names its set."""

    @property
    def uri(self) -> str:
        """What the user wrote, for messages."""

    @property
    def state(self) -> tuple[str, ...] | None:
        """Columns of the state; None: the usual ones."""

    @property
    def action(self) -> tuple[str, ...] | None:
        """Columns of the action; None: the usual ones."""

    @property
    def split(self) -> str | None:
        """Split of the set; None: the only one."""

    @property
    def instruction(self) -> str | None:
        """Column that says what is done; None: the usual one."""

    @property
    def only(self) -> str | None:
        """Column that is true at the end of the chosen episodes, or number that is noted of
        them and is; None: all are.
        """

    @property
    def labelled(self) -> bool:
        """Whether its samples carry actions."""

    def rate(self, stated: float | None, hint: str) -> float:
        """Rate of the set, Hz: the one it states, else the user's. DataError, with `hint`."""

    def select(self, available: list[int]) -> list[int]:
        """The chosen ones of `available`. DataError when none of a part exists."""


# Modules are these protocols: mypy compares their functions where `table` lists them.
class AnyFormat(Protocol):
    """What formats of robots and of plain videos have in common."""

    title: str
    """For people: "HDF5"."""
    signs: str
    """By what it is known, after "no": "HDF5 episodes (*.hdf5, *.h5)"."""
    endings: tuple[str, ...]
    """Of single files that a source may name, lower case; () where it is always a folder."""
    options: tuple[str, ...]
    """Of the fields of a source that not every format takes, those that this one does: `split`,
    `instruction`.
    """

    def is_at(self, uri: str, files: dict[str, int]) -> bool:
        """Whether a set of this format is among `files` (name below `uri` -> bytes). DataError
        where that cannot be told.
        """


class RobotFormat(AnyFormat, Protocol):
    """A format of robot episodes."""

    def read_set(
        self, uri: str, files: dict[str, int], source: SetSource, reader: FileReader
    ) -> RobotSet:
        """The set below `uri`, where `files` are. DataError when it cannot be read."""

    def usable_episodes(
        self, data: RobotSet, source: SetSource, cameras: Sequence[str], reader: FileReader
    ) -> Usable:
        """The chosen episodes of a set: those that have what is needed, and the others.
        `usable_by_metadata` does where reading the set has looked into its files.
        """

    def findings(
        self, data: RobotSet, usable: Sequence[tuple[Episode, int]], reader: FileReader
    ) -> Iterable[Finding]:
        """What is wrong in a set of this format that no other has; nothing of it costs an
        episode.
        """

    def read_rows(
        self, part: FilePart, first: int, count: int, keys: tuple[str, ...], reader: FileReader
    ) -> dict[str, np.ndarray]:
        """Rows `first ..` of columns: key -> float64 `[count, width]`, robot units. DataError
        when they are not there.
        """

    def open_pictures(
        self, part: FilePart, key: str, reader: FileReader
    ) -> AbstractContextManager[Pictures]:
        """Pictures of a camera that lie with the rows and not in a video; `key` and `part` as
        in `VideoSpan`. DataError when they are not there.
        """


class VideoFormat(AnyFormat, Protocol):
    """A format of plain videos."""

    def read_clips(
        self, uri: str, files: dict[str, int], source: SetSource, reader: FileReader
    ) -> ClipSet:
        """The videos among `files`, which lie below `uri`. DataError when there is none."""


# What follows is for formats to take over as their own, as `hdf5` and `rlds` do.
def no_findings(
    data: RobotSet,  # noqa: ARG001
    usable: Sequence[tuple[Episode, int]],  # noqa: ARG001
    reader: FileReader,  # noqa: ARG001
) -> Iterable[Finding]:
    """`findings` of a format that has none of its own."""
    return ()


def usable_by_metadata(
    data: RobotSet,
    source: SetSource,
    cameras: Sequence[str],
    reader: FileReader,  # noqa: ARG001
) -> Usable:
    """`usable_episodes` of a format whose files have been looked at when the set was read."""
    chosen = set(source.select([e.index for e in data.episodes]))
    good: list[tuple[Episode, int]] = []
    bad: list[tuple[Episode, str]] = []
    for episode in data.episodes:
        if episode.index not in chosen:
            continue
        reason = _reason(episode, cameras, source.labelled, data.fps)
        if reason:
            bad.append((episode, reason))
        else:
            # 0: the part of the file that an episode names begins with its own first row.
            good.append((episode, 0))
    return good, bad


def _reason(episode: Episode, cameras: Sequence[str], labelled: bool, fps: float) -> str:
    """Why an episode whose file has been looked at cannot be used."""
    # Wrong rows matter only where they are used; video alone does without.
    if episode.problem or (labelled and episode.label_problem):
        return episode.problem or episode.label_problem
    if not episode.length:
        return "has no rows"
    for camera in cameras:
        span = episode.videos.get(camera)
        if span is None:
            return f"has no pictures of {camera}"
        # These formats state as `end` how many pictures they found, as seconds of the set.
        count = round(((span.end or 0.0) - span.start) * fps)
        if count != episode.length:
            return f"{camera} has {count} pictures, the episode has {episode.length} rows"
    return ""


def rows_of(
    columns: dict[str, np.ndarray], uri: str, first: int, count: int
) -> dict[str, np.ndarray]:
    """Rows `first ..` of the columns of a whole episode. DataError when it has fewer."""
    # Columns of one episode may differ in length; no row is made up.
    short = min(len(values) for values in columns.values())
    if first + count > short:
        raise DataError(
            f"{uri}: rows {first} to {first + count} are not there; the episode has {short}"
        )
    return {key: values[first : first + count] for key, values in columns.items()}


def no_split(uri: str, split: str | None, known: Collection[str] = ()) -> None:
    """DataError when a split is asked for that is not among those that a set has."""
    if split is None or split in known:
        return
    if not known:
        raise DataError(f"{uri}: there are no splits; remove `split`, and choose with `episodes`")
    raise DataError(f"{uri}: no split '{split}'; the set has splits {', '.join(sorted(known))}")
