"""RLDS sets as TFDS writes them: one record per episode in TFRecord files, described by
features.json. No TensorFlow.

Values of all steps of an episode lie one after another in one list per feature; pictures are
encoded each for itself.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.columns import passed_over
from gwp.data.formats.files.listing import MOVED, without_repeats
from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.files.texts import read_json
from gwp.data.formats.finding import Finding
from gwp.data.formats.format import (
    FilePart,
    Pictures,
    SetSource,
    rows_of,
    usable_by_metadata,
)
from gwp.data.formats.instructions import ToldBy
from gwp.data.formats.rlds.features import is_picture, is_text, leaves_of, width_of
from gwp.data.formats.rlds.index import EPISODE, STEPS, Kept, look
from gwp.data.formats.rlds.shards import (
    FEATURES,
    Shards,
    files_below,
    folder_of,
    length_of,
    shards_of,
)
from gwp.data.formats.rlds.tfrecord import BYTES, Field, count, features, numbers, values
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan, choose_columns, vector_names
from gwp.errors import DataError
from gwp.storage.names import shown

title = "RLDS"
signs = f"RLDS set ({FEATURES} beside *.tfrecord*)"
endings: tuple[str, ...] = ()
options: tuple[str, ...] = ("split", "instruction")
_INFO = "dataset_info.json"
# What reading JSON of any form as that of another raises.
_NOT_SO = (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)
usable_episodes = usable_by_metadata
_COUNTED = ("steps/is_first", "steps/is_last", "steps/is_terminal")
"""Scalars that every step has."""
# Usual columns, the first that is there; without the `steps/` that all paths begin with.
_STATES, _ACTIONS = [("observation/state",), ("observation/proprio",)], [("action",)]
_LOOKS, _EPISODES = 65536, 64
"""Shards whose index stays, and episodes whose columns do."""
_AHEAD = 64 << 10
"""Bytes that are fetched at a time where large features are stepped over."""


@dataclass(frozen=True)
class _Own:
    """What is told of a set beside its episodes."""

    told_by: ToldBy
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Wanted:
    """What is taken of each record: columns of the state and action with their widths, pictures
    by camera, and the full name of the feature that says what is done (None: the usual one).
    """

    fps: float
    cameras: dict[str, str]
    widths: dict[str, int]
    told_by: str | None


def is_at(uri: str, files: dict[str, int]) -> bool:
    """Whether a set is among `files`. DataError when there are several."""
    return folder_of(uri, files) is not None


def read_set(uri: str, files: dict[str, int], source: SetSource, reader: FileReader) -> RobotSet:
    """The set below `uri`, where `files` are. DataError when it cannot be read.

    Every shard is read once, record by record, and each record compared with its checksum. A
    shard that breaks off gives the episodes before that.
    """
    folder = folder_of(uri, files)
    if folder is None:
        raise DataError(
            f"{source.uri}: not an RLDS set ({FEATURES} beside *.tfrecord* is missing); name "
            "the folder of the version"
        )
    uri = storage.join(uri, folder) if folder else uri
    files = files_below(files, folder)
    # RLDS does not state a rate.
    fps = source.rate(None, "e.g. 5 for BridgeData V2, 15 for DROID")
    raw = storage.read_bytes(storage.join(uri, FEATURES))
    # Columns and pictures out of features.json; dataset_info.json, which may be missing, has
    # the number of records of each shard.
    with _as_written(uri, FEATURES):
        leaves = dict(leaves_of(read_json(raw), ""))
        widths = {
            n.removeprefix(STEPS): w
            for n, leaf in leaves.items()
            if n.startswith(STEPS) and (w := width_of(leaf))
        }
        texts = [n for n, leaf in leaves.items() if is_text(leaf)]
        images = [n for n, leaf in leaves.items() if n.startswith(STEPS) and is_picture(leaf)]
    about = storage.read_bytes(storage.join(uri, _INFO)) if _INFO in files else b"{}"
    with _as_written(uri, _INFO):
        info = read_json(about)
        expected = {
            str(s["name"]): [length_of(n) for n in s.get("shardLengths", [])]
            for s in info.get("splits", [])
        }
        # Version, and in place of the robot the name of the set: RLDS names no robot.
        named = str(info.get("version", "")), str(info.get("name") or "unknown")
    state = choose_columns(uri, "state", source.state, _STATES, list(widths))
    action = choose_columns(uri, "action", source.action, _ACTIONS, list(widths))
    # `steps/observation/image_0` is camera `image_0`, read by the key `observation/image_0`.
    cameras: dict[str, str] = {}
    for key in (n.removeprefix(STEPS) for n in images):
        name = key.removeprefix("observation/")
        # Two of one name are told apart by their paths.
        cameras[key if name in cameras else name] = key
    # Of the description and, while episodes are listed, of the checksum of each record. So
    # the tuple has to be complete before the fingerprint is taken.
    digest = hashlib.sha256(raw)
    chosen = {k: widths[k] for k in (*state, *action)}
    wanted = _Wanted(fps, cameras, chosen, _told_by(uri, source.instruction, texts))
    shards = shards_of(source.uri, source.split, files, expected)
    told = [Finding(_INFO, what, "ignored", "correct it") for what in shards.remarks]
    silent: list[int] = []
    listed = _episodes(uri, files, shards, wanted, digest, reader, told, silent)
    episodes = tuple(listed)
    return RobotSet(
        uri,
        "rlds",
        *named,
        fps,
        vector_names(state, widths),
        vector_names(action, widths),
        False,
        {c: leaves[STEPS + n]["image"] for c, n in cameras.items()},
        episodes,
        files,
        digest.hexdigest()[:12],
        state,
        action,
        tuple(widths),
        own=_Own(ToldBy(source.instruction, tuple(silent)), tuple(told)),
        remarks=(
            *passed_over("state", source.state, state, _STATES, list(widths)),
            *passed_over("action", source.action, action, _ACTIONS, list(widths)),
        ),
    )


def findings(
    data: RobotSet,
    usable: Sequence[tuple[Episode, int]],  # noqa: ARG001
    reader: FileReader,  # noqa: ARG001
) -> Iterable[Finding]:
    """What dataset_info.json says otherwise, and rows without an instruction."""
    return [*data.own.findings, *data.own.told_by.findings()]


def _told_by(uri: str, wanted: str | None, texts: Sequence[str]) -> str | None:
    """Full name of the feature that says what is done. DataError when there is no such text.

    texts: full names of all of them
    """
    if wanted is None:
        return None
    # As the columns of the state are named, without what all of them begin with.
    short = {n.removeprefix(STEPS): n for n in texts if n.startswith((STEPS, EPISODE))}
    name = wanted.removeprefix(STEPS)
    choose_columns(uri, "instruction", (name,), (), list(short))
    return short[name]


@contextmanager
def _as_written(uri: str, name: str) -> Iterator[None]:
    """DataError where the metadata inside have another form than that of TFDS."""
    try:
        yield
    except _NOT_SO as error:
        raise DataError(
            f"{uri}: {name} is not as TFDS writes it; write the set again, or copy the file anew"
        ) from error


def _episodes(
    uri: str,
    files: dict[str, int],
    shards: Shards,
    wanted: _Wanted,
    digest: Any,
    reader: FileReader,
    told: list[Finding],
    silent: list[int],
) -> Iterator[Episode]:
    """told, silent: what is found wrong on the way, and the episodes whose chosen instruction is
    lacking in some row
    """

    def look_at(name: str) -> tuple[tuple[Kept, ...], str]:
        if name not in files:
            return (), "is missing"
        return reader.once(_LOOKS, look, storage.join(uri, name), files[name], wanted.told_by)

    _, again = without_repeats(uri, [name for name in shards.names if name in files])
    first = 0
    for number, (name, (found, broken)) in enumerate(
        zip(shards.names, several(uri, look_at, shards.names), strict=True)
    ):
        stated = shards.lengths[number] if shards.lengths else len(found) + bool(broken)
        # Its episodes keep their numbers.
        if own := again.get(name):
            what = f"is {shown(own)} once more, by a link"
            told.append(Finding(name, what, "ignored", "its episodes count once"))
            first += max(stated, len(found))
            continue
        for i, record in enumerate(found):
            digest.update(record.crc)
            if record.problem:
                yield Episode(first + i, 0, name, {}, "", problem=f"{name} {record.problem}")
            else:
                yield _episode(first + i, name, record, wanted)
            if record.chosen is not None and record.chosen.silent:
                silent.append(first + i)
        # What a shard lacks at its end becomes one episode with a problem; as many
        # numbers as were lost stay free.
        counted = f"has {len(found)} records, {_INFO} says {stated}"
        if len(found) < stated or broken:
            lost = stated - len(found)
            more = f" ({lost} episodes)" if lost > 1 else ""
            unknown = not shards.lengths and number + 1 < len(shards.names)
            moved = f"; {MOVED}" if unknown else ""
            problem = f"{name} {broken or counted}{more}{moved}"
            yield Episode(first + len(found), 0, name, {}, "", problem=problem)
        elif len(found) > stated:
            told.append(Finding(name, counted, "ignored", "all of them are read"))
        first += max(stated, len(found) + bool(broken))


def _episode(index: int, file: str, record: Kept, wanted: _Wanted) -> Episode:
    # One value per step in each of these; any will do.
    length = next((record.counts[n] for n in _COUNTED if n in record.counts), 0)
    videos = {
        camera: VideoSpan(
            file,
            0.0,
            record.counts[STEPS + key] / wanted.fps,
            key,
            part.start,
            part.end - part.start,
        )
        for camera, key in wanted.cameras.items()
        if (part := record.pictures.get(STEPS + key))
    }
    # Values of all steps lie in one list, so a wrong number of them fits no step.
    wrong = [
        (
            f"{key} has {record.counts.get(STEPS + key, 0)} numbers, {length} steps of {width} "
            f"need {length * width}"
        )
        for key, width in wanted.widths.items()
        if record.counts.get(STEPS + key, 0) != length * width
    ]
    problem = "" if length else f"no step: the record has none of {', '.join(_COUNTED)}"
    told, chosen = record.told, record.chosen
    if chosen is not None and chosen.rows not in (0, 1, length):
        problem = problem or f"{chosen.rows} instructions for {length} steps"
    # Where they are not one a step, whose the others are is not known.
    texts = told.stretches if told.rows == length else ()
    text = told.text
    if chosen is not None:
        # Silent rows have the usual instruction.
        texts = tuple((row, said or told.text) for row, said in chosen.stretches)
        text = chosen.text or told.text
    return Episode(
        index,
        length,
        file,
        videos,
        text,
        record.offset,
        record.size,
        STEPS,
        problem=problem,
        label_problem="; ".join(wrong),
        texts=texts,
        scalars=record.scalars,
    )


def read_rows(
    part: FilePart, first: int, count: int, keys: tuple[str, ...], reader: FileReader
) -> dict[str, np.ndarray]:
    """Rows of columns of a record by full name, float64 `[count, width]`. Pictures are stepped
    over. DataError.
    """
    place = (part.uri, part.offset, part.size or 0)
    # All rows of the episode: its windows overlap, and several of them are read together.
    columns = reader.once(_EPISODES, _read_columns, *place, keys)
    return rows_of(columns, part.uri, first, count)


def _read_columns(uri: str, offset: int, size: int, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    with storage.open_read(uri, _AHEAD) as handle:
        try:
            there = features(handle, offset, size)
            # [rows, width]
            rows = next((count(handle, there[n]) for n in _COUNTED if n in there), 0)
            if lacking := [key for key in keys if key not in there]:
                raise DataError(f"it has no {lacking[0]}")
            found = {key: numbers(handle, there[key]) for key in keys}
            for key, given in found.items():
                if not rows or len(given) % rows:
                    raise DataError(f"{key} has {len(given)} numbers for {rows} steps")
            return {key: given.reshape(rows, -1) for key, given in found.items()}
        except DataError as error:
            raise DataError(
                f"{uri}: the record at byte {offset} cannot be read ({error})"
            ) from error


@contextmanager
def open_pictures(
    part: FilePart,
    key: str,  # noqa: ARG001
    reader: FileReader,  # noqa: ARG001
) -> Iterator[Pictures]:
    """Number of pictures in the list that `part` is, and a function that gives the bytes of
    one. Errors as `open_read`.
    """
    uri, offset, size = part.uri, part.offset, part.size or 0
    # Far away the whole list in one request, then its pictures from memory; here each from
    # its place in the file.
    if storage.is_remote(uri):
        handle, shift = io.BytesIO(storage.read_ranges([uri], [offset], [offset + size])[0]), offset
    else:
        handle, shift = storage.open_read(uri), 0
    with handle:
        places = values(handle, Field(BYTES, offset - shift, offset - shift + size))

        def get(i: int) -> bytes:
            handle.seek(places[i][0])
            return bytes(handle.read(places[i][1] - places[i][0]))

        yield len(places), get
