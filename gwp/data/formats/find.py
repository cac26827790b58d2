"""Sets of every format: which one lies at a source, and which of its episodes can be used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gwp import storage
from gwp.data.formats.clip_set import ClipSet
from gwp.data.formats.format import SetSource, Usable
from gwp.data.formats.pictures import with_pictures
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import RobotSet
from gwp.data.formats.table import AUTO, ROBOTS, VIDEOS, formats
from gwp.errors import DataError


class NamedSource(SetSource, Protocol):
    """A source, with the format that it names."""

    @property
    def format(self) -> str:
        """A name of the table, or `auto`."""


@dataclass(frozen=True)
class _Place:
    """Where the set of a source lies: folder, files below it, and the name of their format
    (None: nothing that is known).
    """

    uri: str
    files: dict[str, int]
    format: str | None


def set_at(source: NamedSource, reader: FileReader | None = None) -> RobotSet | ClipSet:
    """The set that `source` names, of robots or of plain videos. DataError when there is none,
    or when it cannot be read.

    reader: keeps what is read of files; None: one for this call.
    """
    place = _place_of(source)
    if place.format is None:
        raise DataError(_nothing(source.uri) if not place.files else _nothing_known(source.uri))
    reader = reader or FileReader()
    if place.format in ROBOTS:
        return ROBOTS[place.format].read_set(place.uri, place.files, source, reader)
    return VIDEOS[place.format].read_clips(place.uri, place.files, source, reader)


def robots_at(source: NamedSource, reader: FileReader | None = None) -> RobotSet | None:
    """The robot set that `source` names; None when it holds plain videos, or nothing known.
    DataError when it cannot be read. `reader`: as for `set_at`.
    """
    # No look at the storage is needed for that.
    if source.format in VIDEOS:
        return None
    place = _place_of(source)
    if place.format not in ROBOTS:
        return None
    read = ROBOTS[place.format].read_set
    return read(place.uri, place.files, source, reader or FileReader())


def usable_episodes(
    data: RobotSet,
    source: SetSource,
    cameras: Sequence[str],
    reader: FileReader | None = None,
) -> Usable:
    """Chosen episodes with their first row in the data file, and those that cannot be used with
    the reason. `reader`: as for `set_at`.
    """
    reader = reader or FileReader()
    found = ROBOTS[data.format].usable_episodes(data, source, cameras, reader)
    return with_pictures(data, found, cameras, reader)


def _place_of(source: NamedSource) -> _Place:
    known = formats()
    # A named format is taken at the user's word: `read_set` says what is lacking.
    some = known if source.format == AUTO else {source.format: known[source.format]}
    uri, files = _listed(source.uri, tuple(e for form in some.values() for e in form.endings))
    if source.format != AUTO:
        return _Place(uri, files, source.format)
    # Lazy: a format that stands behind the one that is there is not asked, and cannot object
    # (HDF5 does where videos lie beside it, as LeRobot sets have them).
    there = (name for name, form in known.items() if form.is_at(uri, files))
    return _Place(uri, files, next(there, None))


def _listed(uri: str, endings: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """A folder and the files in it. Of one file with one of these endings: its folder, and that
    file alone.
    """
    # A folder may be called so too; it has no size, and is listed.
    if uri.lower().endswith(endings) and (size := storage.size_of(uri)) is not None:
        folder, _, name = uri.rpartition("/")
        return folder or ".", {name: size}
    return uri, storage.list_files(uri)


def _nothing(uri: str) -> str:
    is_file = storage.size_of(uri) is not None
    what = "a file, of no kind that is read" if is_file else "nothing there"
    endings = ", ".join(f"*{e}" for form in formats().values() for e in form.endings)
    return f"{uri}: {what}; give the folder or s3:// prefix of a set, or one file ({endings})"


def _nothing_known(uri: str) -> str:
    """Videos first: that is what a folder without any metadata is taken for."""
    *most, last = [f"no {form.signs}" for form in (*VIDEOS.values(), *ROBOTS.values())]
    return f"{uri}: {', '.join(most)} and {last}; check the URI"
