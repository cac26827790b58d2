"""Captions of plain videos, out of the files beside them.

A caption stands in a `metadata.jsonl` or `metadata.csv` of a folder above the video, else in a
`.txt` or `.json` of its own name, else in one below `metas/` where the video lies below
`videos/`.
"""

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gwp import storage
from gwp.data.formats.plain.clip_set import caption_in, caption_of, legible
from gwp.data.formats.reader import several
from gwp.data.formats.texts import read_json
from gwp.errors import DataError
from gwp.storage.names import shown_all

TABLES = ("metadata.jsonl", "metadata.csv")
_NAME_KEYS = ("file_name", "file", "path")
_BESIDE = (".txt", ".json")
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

    A video with two captions has none, and is told. DataError when a table cannot be read.
    files: below `uri`; videos: of them, those that are meant
    """
    said = _Said()
    known = set(videos)
    of_name: dict[str, list[str]] = {}
    for video in videos:
        of_name.setdefault(video.rpartition("/")[2], []).append(video)
    remarks: list[Remark] = []
    for table in (n for n in sorted(files) if n.rpartition("/")[2] in TABLES):
        for row in _rows(uri, table):
            try:
                legible(row.caption)
            except ValueError as error:
                remarks.append((row.place, f"what it says {error}"))
                continue
            remarks += _place(row, known, of_name, said)
    _read_beside(uri, files, videos, said, remarks)
    captions: dict[str, str] = {}
    for video in videos:
        # What names a video best counts alone.
        levels = (said.by_path, said.by_name, said.beside)
        found = next((here for level in levels if (here := level.get(video))), [])
        if len({caption for _, caption in found}) > 1:
            places = ", ".join(place for place, _ in found)
            remarks.append((video, f"has different captions ({places}), of which none is taken"))
        elif found:
            captions[video] = found[0][1]
    return captions, remarks


def _place(row: _Row, known: set[str], of_name: dict[str, list[str]], said: _Said) -> list[Remark]:
    """Put a caption to the video that a row names; what cannot be is told.

    known: all videos; of_name: those of each file name
    """
    # `path` may be where the video came from, so every name is tried.
    paths = [f"{row.folder}/{name}".lstrip("/") for name in row.names]
    if exact := [path for path in paths if path in known]:
        _say(said.by_path, exact[0], row)
        return []
    folder = f"{row.folder}/".lstrip("/")
    named = dict.fromkeys(name.rpartition("/")[2] for name in row.names)
    every = [video for name in named for video in of_name.get(name, [])]
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


def _say(level: dict[str, list[Remark]], video: str, row: _Row) -> None:
    if row.caption:
        level.setdefault(video, []).append((row.place, row.caption))


def _rows(uri: str, table: str) -> Iterator[_Row]:
    place = storage.join(uri, table)
    # Some editors begin a file with a mark of its encoding.
    text = storage.read_bytes(place).decode("utf-8-sig", "replace")
    lines = _csv_lines if table.endswith(".csv") else _json_lines
    folder = table.rpartition("/")[0]
    for number, about in lines(place, text):
        given = [str(about[key]) for key in _NAME_KEYS if about.get(key)]
        # `./a.mp4` is the same file.
        names = tuple(map(posixpath.normpath, given))
        yield _Row(folder, f"{table}:line {number}", names, caption_in(about))


def _json_lines(place: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # By this character alone: captions may hold what else Python takes for an end of line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            about = read_json(line)
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise DataError(f"{place}:{number}: not a JSON object; write one object per line")
        yield number, about


def _csv_lines(place: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if not set(reader.fieldnames or ()) & set(_NAME_KEYS):
            raise DataError(
                f"{place}: no column {' or '.join(_NAME_KEYS)}; write comma-separated values "
                "with the names of the columns in the first line"
            )
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{place}: cannot be read as CSV ({error}); write it again") from error


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
        there = [name for name in _names_beside(video) if files.get(name, _LARGEST + 1) <= _LARGEST]
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


def names_beside(video: str) -> list[str]:
    """Files that may hold the caption of a video alone, in its own folder."""
    return [_stem(video) + ending for ending in _BESIDE]


def _names_beside(video: str) -> list[str]:
    folders = video.split("/")[:-1]
    if "videos" not in folders:
        return names_beside(video)
    # Cosmos-Predict2: `videos/a.mp4` with `metas/a.txt`.
    folders[len(folders) - 1 - folders[::-1].index("videos")] = "metas"
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
    return (" ".join(text.split()) if place.endswith(".txt") else text), ""
