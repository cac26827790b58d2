"""Captions of plain videos, out of the files beside them.

A caption stands in a `metadata.jsonl` or `metadata.csv` of a folder above the video, else in a
`.txt` or `.json` of its own name, else in one below `metas/` where the video lies below
`videos/`.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gwp import storage
from gwp.data.formats.files.listing import NOTHING_THERE
from gwp.data.formats.files.reader import several
from gwp.data.formats.plain.clip_set import agreed, caption_in, caption_of, legible, one_line
from gwp.data.formats.plain.tables import NAME_KEYS, csv_lines, json_lines
from gwp.errors import DataError
from gwp.storage.names import shown_all

VIDEOS, METAS = "videos", "metas"
"""Folders of Cosmos-Predict2: `videos/a.mp4` has its caption in `metas/a.txt`."""
TABLES = ("metadata.jsonl", "metadata.csv")
_BESIDE = (".txt", ".json")
_ABOUT = ("readme", "license", "licence", "notice", "changelog", "requirements", "citation")
"""How texts begin that are of the set, lower case."""
_LARGEST = 1 << 20
"""Bytes of the largest file of one caption that is read."""

Remark = tuple[str, str]
"""What is told: of which video or entry, and what."""


@dataclass(frozen=True)
class _Row:
    """A line of a table: where it stands, what it calls its video, and the caption."""

    folder: str
    place: str
    names: tuple[str, ...]
    caption: str


@dataclass(frozen=True)
class _Known:
    """Videos, the folders that are there, and the videos of each file name."""

    videos: frozenset[str]
    folders: frozenset[str]
    of_name: dict[str, list[str]]


@dataclass
class _Said:
    """Captions of videos, each with the place where it stands: of rows that name the path, of
    rows that name the file alone, and of files beside the videos.
    """

    by_path: dict[str, list[Remark]] = field(default_factory=dict)
    by_name: dict[str, list[Remark]] = field(default_factory=dict)
    beside: dict[str, list[Remark]] = field(default_factory=dict)


def captions_of(
    uri: str, files: dict[str, int], videos: Sequence[str]
) -> tuple[dict[str, str], list[Remark]]:
    """Video -> caption, and what of the files beside them is of no video or of no single one.

    A video with two captions has none, and is told; so is a line of a table that is damaged.
    DataError when nothing of a table can be read.
    files: below `uri`; videos: of them, those that are meant
    """
    said = _Said()
    known = _Known(frozenset(videos), frozenset(_folders_of(files)), {})
    for video in videos:
        known.of_name.setdefault(video.rpartition("/")[2], []).append(video)
    remarks: list[Remark] = []
    for table in (n for n in sorted(files) if n.rpartition("/")[2] in TABLES):
        if files[table] == storage.NOWHERE:
            remarks.append((table, NOTHING_THERE))
            continue
        for row in _rows(uri, table, remarks):
            try:
                legible(row.caption)
            except ValueError as error:
                remarks.append((row.place, f"what it says {error}"))
                continue
            remarks += _place(row, known, said)
    _read_beside(uri, files, videos, said, remarks)
    remarks += _of_none(files, videos)
    captions: dict[str, str] = {}
    for video in videos:
        # What names a video best counts alone.
        levels = (said.by_path, said.by_name, said.beside)
        found = next((here for level in levels if (here := level.get(video))), [])
        try:
            captions[video] = agreed(found)
        except ValueError as error:
            remarks.append((video, str(error)))
    return captions, remarks


def _folders_of(files: Iterable[str]) -> Iterator[str]:
    for name in files:
        parts = name.split("/")[:-1]
        yield from ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _place(row: _Row, known: _Known, said: _Said) -> list[Remark]:
    """Put a caption to the video that a row names; what cannot be is told."""
    # `path` may be where the video came from, so every name is tried.
    paths = [_below(row.folder, name) for name in row.names]
    if exact := [path for path in paths if path in known.videos]:
        _say(said.by_path, exact[0], row)
        return []
    folder = f"{row.folder}/".lstrip("/")
    every = dict.fromkeys(
        video
        for name in row.names
        for video in known.of_name.get(name.rpartition("/")[2], [])
        if _may_be(video.removeprefix(folder), name)
        # A video of a folder that is here would be in it.
        and posixpath.dirname(_below(row.folder, name)) not in known.folders - {row.folder}
    )
    alike = [video for video in every if video.startswith(folder)]
    if len(alike) == 1:
        _say(said.by_name, alike[0], row)
        return []
    item = row.names[0] if row.names else row.place.rpartition(":")[2]
    table = row.place.rpartition(":")[0]
    if not alike:
        return [(item, f"named in {table}, but there is no such video")]
    what = f"named in {table}, may be {shown_all(alike)}: the caption is given to none"
    return [(item, what)]


def _below(folder: str, name: str) -> str:
    return posixpath.normpath(f"{folder}/{name}").lstrip("/")


def _may_be(video: str, name: str) -> bool:
    """Whether a path and a name of a row agree as far as both say folders."""
    parts, named = video.split("/"), name.strip("/").split("/")
    both = min(len(parts), len(named))
    return parts[-both:] == named[-both:]


def _say(level: dict[str, list[Remark]], video: str, row: _Row) -> None:
    if row.caption:
        level.setdefault(video, []).append((row.place, row.caption))


def _rows(uri: str, table: str, remarks: list[Remark]) -> Iterator[_Row]:
    """Lines of a table; those that are none are told."""
    place = storage.join(uri, table)
    # Some editors begin a file with a mark of its encoding.
    text = storage.read_bytes(place).decode("utf-8-sig", "replace")
    lines = csv_lines if table.endswith(".csv") else json_lines
    folder = table.rpartition("/")[0]
    wrong: list[tuple[int, str]] = []
    good = 0
    for number, about in lines(place, text):
        if isinstance(about, str):
            wrong.append((number, about))
            continue
        good += 1
        given = [str(about[key]).strip() for key in NAME_KEYS if about.get(key)]
        # `./a.mp4` is the same file.
        names = tuple(map(posixpath.normpath, given))
        yield _Row(folder, f"{table}:line {number}", names, caption_in(about))
    if wrong and not good:
        # It is no such table at all.
        raise DataError(f"{place}:{wrong[0][0]}: {wrong[0][1]}")
    remarks += [(f"{table}:line {number}", f"{what}; left out") for number, what in wrong]


def _read_beside(
    uri: str,
    files: dict[str, int],
    videos: Sequence[str],
    said: _Said,
    remarks: list[Remark],
) -> None:
    """Captions in files of their own, of the videos that no table speaks of."""
    stems = Counter(_stem(video) for video in videos)
    wanted: list[tuple[str, str]] = []
    for video in videos:
        if video in said.by_path or video in said.by_name:
            continue
        there: list[str] = []
        for name in (n for n in _names_beside(video) if n in files):
            if wrong := _wrong_size(files[name]):
                remarks.append((video, f"{name} {wrong}"))
            else:
                there.append(name)
        if there and stems[_stem(video)] > 1:
            remarks.append((video, f"shares {there[0]} with another video: it is given to none"))
            continue
        wanted += [(video, name) for name in there]

    def text_of(entry: tuple[str, str]) -> tuple[str, str]:
        return _text(storage.join(uri, entry[1]), files[entry[1]])

    texts = several(uri, text_of, wanted)
    for (video, name), (text, wrong) in zip(wanted, texts, strict=True):
        if text:
            said.beside.setdefault(video, []).append((name, text))
        if wrong:
            remarks.append((video, f"{name} {wrong}"))


def _wrong_size(size: int) -> str:
    """Why a file of so many bytes is no caption; nothing where it may be one."""
    if size == storage.NOWHERE:
        return NOTHING_THERE
    return f"has {size} bytes, so it is no caption" if size > _LARGEST else ""


def _of_none(files: dict[str, int], videos: Sequence[str]) -> Iterator[Remark]:
    """Files of captions that are of no video, together: a name that is spelt otherwise, mostly."""
    spoken = {name for video in videos for name in _names_beside(video)}
    # Other JSON may be anything, where captions are not written so.
    endings = tuple(
        ending
        for ending in _BESIDE
        if ending == ".txt" or any(name.lower().endswith(ending) for name in spoken & files.keys())
    )
    alone = [
        name
        for name in files
        if name.lower().endswith(endings)
        and name not in spoken
        and not name.rpartition("/")[2].lower().startswith(_ABOUT)
    ]
    if alone:
        yield f"{len(alone)} captions", f"of no video by their names: {shown_all(alone)}"


def names_beside(video: str) -> list[str]:
    """Files that may hold the caption of a video alone, in its own folder."""
    return [_stem(video) + ending for ending in (*_BESIDE, *map(str.upper, _BESIDE))]


def _names_beside(video: str) -> list[str]:
    folders = video.split("/")[:-1]
    if VIDEOS not in folders:
        return names_beside(video)
    folders[len(folders) - 1 - folders[::-1].index(VIDEOS)] = METAS
    apart = "/".join([*folders, video.rpartition("/")[2]])
    return [*names_beside(video), *names_beside(apart)]


def _stem(video: str) -> str:
    return video.rpartition(".")[0]


def _text(place: str, size: int) -> tuple[str, str]:
    """The caption in a file, and what is wrong with it."""
    try:
        text = caption_of(place, storage.read_bytes(place, size))
    except ValueError as error:
        return "", str(error)
    return one_line(place, text), ""
