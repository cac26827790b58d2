"""Sets of every format: which one lies at a source, and which of its episodes can be used."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gwp import storage
from gwp.data.formats.files.listing import MOVED, NOTHING_THERE, folders_gone, with_broken_links
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.finding import Finding
from gwp.data.formats.foreign import foreign_form, robot_sets_among
from gwp.data.formats.format import SetSource, Usable
from gwp.data.formats.outcomes import with_outcome
from gwp.data.formats.pictures import with_pictures
from gwp.data.formats.plain.clip_set import ClipSet
from gwp.data.formats.robot_set import RobotSet
from gwp.data.formats.table import AUTO, ROBOTS, VIDEOS, formats
from gwp.data.pointers import ADVICE, pointers, told_of_pointers
from gwp.errors import DataError
from gwp.storage.names import shown_all

_OF_ROBOTS = ("embodiment", "cameras", "state", "action", "fps", "only")
"""Fields of a source that mean nothing where plain videos lie."""
_DEEP = 3
"""Folders below a source in which sets are looked for that it might have named."""

_CAPTIONS = (".txt", ".json", ".jsonl", ".csv")
"""Of files beside videos: a link of theirs that leads nowhere is told, too."""
_LISTS = 16
"""Folders of which it stays what lies there."""
_NOT_READ = "are not read; convert them to LeRobot or to HDF5 (docs/data.md says in which form)"
_POINTER = f"is a Git LFS pointer and not the file; {ADVICE}"


class NamedSource(SetSource, Protocol):
    """A source, with the format that it names."""

    @property
    def format(self) -> str:
        """A name of the table, or `auto`."""


@dataclass(frozen=True)
class _Place:
    """Where the set of a source lies: folder, files below it, and the name of their format
    (None: nothing that is known). gone: links to folders that are not there
    """

    uri: str
    files: dict[str, int]
    format: str | None
    gone: tuple[str, ...] = ()

    def findings(self) -> tuple[Finding, ...]:
        """What of it is not there."""
        # Where metadata list the episodes their numbers are known.
        counted = self.format is None or not formats()[self.format].endings
        last = "" if counted or not self.files else max(self.files)
        return tuple(
            Finding(name, f"{NOTHING_THERE}; {MOVED}" if name < last else NOTHING_THERE, "left out")
            for name in self.gone
        )


def set_at(source: NamedSource, reader: FileReader | None = None) -> RobotSet | ClipSet:
    """The set that `source` names, of robots or of plain videos. DataError when there is none,
    when it cannot be read, or when the source asks what it has not.

    reader: keeps what is read of files; None: one for this call.
    """
    reader = reader or FileReader()
    place = _place_of(source, reader)
    if place.format is None:
        raise DataError(_nothing(source.uri) if not place.files else _nothing_known(place))
    if place.format in ROBOTS:
        return _read_robots(place, place.format, source, reader)
    _check_options(source, place.format)
    if isinstance(getattr(source, "colours", None), Mapping):
        raise DataError(f"{source.uri}: plain videos have no cameras; write `colours: bgr` or rgb")
    with told_of_pointers(place.uri, place.files):
        clips = VIDEOS[place.format].read_clips(place.uri, place.files, source, reader)
    if given := next((name for name in _OF_ROBOTS if getattr(source, name, None)), None):
        raise DataError(
            f"{source.uri}: {VIDEOS[place.format].title} are there, which have no `{given}`; "
            "remove it from this source"
        )
    # Shards that break off, and are none.
    lost = set(pointers(place.uri, place.files, (name for name, _ in clips.broken)))
    broken = tuple((name, _POINTER if name in lost else why) for name, why in clips.broken)
    gone = tuple((finding.item, finding.what) for finding in place.findings())
    return replace(clips, broken=(*gone, *broken))


def robots_at(source: NamedSource, reader: FileReader | None = None) -> RobotSet | None:
    """The robot set that `source` names; None when it holds plain videos, or nothing known.
    DataError when it cannot be read. `reader`: as for `set_at`.
    """
    # No look at the storage is needed for that.
    if source.format in VIDEOS:
        return None
    reader = reader or FileReader()
    place = _place_of(source, reader)
    if place.format not in ROBOTS:
        return None
    return _read_robots(place, place.format, source, reader)


def _read_robots(place: _Place, name: str, source: NamedSource, reader: FileReader) -> RobotSet:
    _check_options(source, name)
    with told_of_pointers(place.uri, place.files):
        data = ROBOTS[name].read_set(place.uri, place.files, source, reader)
    named = getattr(source, "colours", None)
    strangers = set(named if isinstance(named, Mapping) else ()) - {*data.cameras, *data.absent}
    if strangers:
        raise DataError(
            f"{source.uri}: `colours` names {shown_all(strangers)}; the cameras of the set are "
            f"{shown_all(data.cameras) or 'none'}"
        )
    return replace(data, remarks=(*place.findings(), *data.remarks))


def _check_options(source: NamedSource, name: str) -> None:
    """DataError when the source gives what its format has not: it would be ignored."""
    form = formats()[name]
    for option, value in (("split", source.split), ("instruction", source.instruction)):
        if value is not None and option not in form.options:
            others = [f.title for f in formats().values() if option in f.options]
            raise DataError(
                f"{source.uri}: `{option}` is for {', '.join(others)}, not for {form.title}; "
                "remove it from this source"
            )


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
    look = ROBOTS[data.format].usable_episodes
    good, bad = with_pictures(data, look(data, source, cameras, reader), cameras, reader)
    # Videos tell it themselves; data files are read by libraries, which do not.
    names = {episode.data_file for episode, _ in bad}
    lost = set(pointers(data.uri, data.files, sorted(names)))
    usable = (
        good,
        [
            (episode, f"{episode.data_file} {_POINTER}" if episode.data_file in lost else reason)
            for episode, reason in bad
        ],
    )
    return usable if source.only is None else with_outcome(data, source.only, usable, reader)


def _place_of(source: NamedSource, reader: FileReader) -> _Place:
    known = formats()
    # A named format is taken at the user's word: `read_set` says what is lacking.
    some = known if source.format == AUTO else {source.format: known[source.format]}
    endings = tuple(e for form in some.values() for e in form.endings)
    uri, files = reader.once(_LISTS, _listed, source.uri, endings)
    if source.format != AUTO:
        return _place(uri, files, source.format)
    # Sets in folders of their own are not one: neither their videos nor their files together.
    below = dict(_sets_below(uri, files, _DEEP))
    inside = tuple(f"{folder}/" for folder in below)
    own = {name: size for name, size in files.items() if not name.startswith(inside)}
    if below and _format_at(uri, own, ROBOTS) is None:
        # Folders of one format that reads what lies deeper, as HDF5 does, are one set.
        kinds = set(below.values())
        if len(kinds) > 1 or not _reads_deeper(uri, files, kinds):
            raise DataError(_no_set_itself(uri, below))
    found = _format_at(uri, files, known)
    # Videos of robots are no plain ones, however deep they lie.
    if found in VIDEOS and (deep := robot_sets_among(files)):
        raise DataError(_no_set_itself(uri, deep))
    return _place(uri, files, found)


def _no_set_itself(uri: str, folders: Collection[str]) -> str:
    return (
        f"{uri}: no set itself, but in {len(folders)} folders below it: {shown_all(folders)}; "
        "name one of them, or say with `format` what to read of all of them"
    )


def _place(uri: str, files: dict[str, int], name: str | None) -> _Place:
    gone = tuple(folders_gone(files))
    files = {n: size for n, size in files.items() if n not in gone}
    # What has no single files knows by its metadata what is missing.
    if name is None or not formats()[name].endings:
        files = {n: size for n, size in files.items() if size != storage.NOWHERE}
    return _Place(uri, files, name, gone)


def _format_at(uri: str, files: dict[str, int], known: Mapping[str, object]) -> str | None:
    # Lazy: a format that stands behind the one that is there is not asked, and cannot object
    # (HDF5 does where videos lie beside it, as LeRobot sets have them).
    there = (name for name, form in formats().items() if name in known and form.is_at(uri, files))
    return next(there, None)


def _reads_deeper(uri: str, files: dict[str, int], kinds: set[str]) -> bool:
    return all(ROBOTS[kind].is_at(uri, files) for kind in kinds)


def _sets_below(uri: str, files: dict[str, int], depth: int) -> Iterator[tuple[str, str]]:
    """Folder and format of each robot set below a folder that is none itself."""
    folders: dict[str, dict[str, int]] = {}
    for name, size in files.items():
        folder, slash, rest = name.partition("/")
        if slash:
            folders.setdefault(folder, {})[rest] = size
    for folder, inside in folders.items():
        place = storage.join(uri, folder)
        try:
            kind = _format_at(place, inside, ROBOTS)
        except DataError:
            # Something of several sets: they are told apart one level deeper.
            kind = None
        if kind is not None:
            yield folder, kind
        elif depth > 1:
            for deeper, found in _sets_below(place, inside, depth - 1):
                yield f"{folder}/{deeper}", found


def _listed(uri: str, endings: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """A folder and the files in it. Of one file with one of these endings: its folder, and that
    file alone.
    """
    # A folder may be called so too; it has no size, and is listed.
    if uri.lower().endswith(endings) and (size := storage.size_of(uri)) is not None:
        folder, _, name = uri.rpartition("/")
        return folder or ".", {name: size}
    return uri, with_broken_links(uri, (*endings, *_CAPTIONS))


def _nothing(uri: str) -> str:
    is_file = storage.size_of(uri) is not None
    if form := foreign_form([uri] if is_file else storage.list_files(uri)):
        return f"{uri}: {form} {_NOT_READ}"
    what = "a file, of no kind that is read" if is_file else "nothing there"
    endings = ", ".join(f"*{e}" for form in formats().values() for e in form.endings)
    return f"{uri}: {what}; give the folder or s3:// prefix of a set, or one file ({endings})"


def _nothing_known(place: _Place) -> str:
    """Videos first: that is what a folder without any metadata is taken for."""
    uri = place.uri
    if form := foreign_form([*place.files, f"{uri.rstrip('/')}/", *storage.list_files(uri)]):
        return f"{uri}: {form} {_NOT_READ}"
    *most, last = [f"no {form.signs}" for form in (*VIDEOS.values(), *ROBOTS.values())]
    return f"{uri}: {', '.join(most)} and {last}; check the URI"
