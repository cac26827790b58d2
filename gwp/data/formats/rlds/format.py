"""RLDS sets as TFDS writes them: one record per episode in TFRecord files, described by
features.json. No TensorFlow.

Values of all steps of an episode lie one after another in one list per feature; pictures are
encoded each for itself.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.format import (
    FilePart,
    Pictures,
    SetSource,
    no_findings,
    rows_of,
    usable_by_metadata,
)
from gwp.data.formats.reader import FileReader
from gwp.data.formats.rlds.features import is_picture, leaves_of, width_of
from gwp.data.formats.rlds.tfrecord import (
    BYTES,
    Field,
    Record,
    count,
    features,
    numbers,
    records,
    values,
)
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan, choose_columns, vector_names
from gwp.errors import DataError

FEATURES = "features.json"
title = "RLDS"
signs = f"RLDS set ({FEATURES} beside *.tfrecord*)"
endings: tuple[str, ...] = ()
options: tuple[str, ...] = ("split",)
usable_episodes = usable_by_metadata
findings = no_findings
# `name-split.tfrecord-00000-of-00005`; a split in one file may lack the numbers.
_SHARD = re.compile(r"(?:.+-)?([^-/]+)\.tfrecord(?:-(\d+)-of-(\d+))?")
_STEPS = "steps/"
_COUNTED = ("steps/is_first", "steps/is_last", "steps/is_terminal")
"""Scalars that every step has."""
# Usual columns, the first that is there; without the `steps/` that all paths begin with.
_STATES, _ACTIONS = [("observation/state",), ("observation/proprio",)], [("action",)]
_TEXTS = (
    "steps/language_instruction",
    "steps/observation/natural_language_instruction",
    "steps/observation/language_instruction",
)
_LOOKS, _EPISODES = 65536, 64
"""Shards whose index stays, and episodes whose columns do."""
_AHEAD = 64 << 10
"""Bytes that are fetched at a time where large features are stepped over."""


@dataclass(frozen=True)
class _Record:
    """What the index keeps of a record.

    counts: values of each feature of the steps. pictures: where the lists of images lie.
    problem: why nothing of it can be used.
    """

    offset: int
    size: int
    counts: dict[str, int]
    pictures: dict[str, Field]
    text: str
    crc: bytes
    problem: str = ""


def folder_of(uri: str, files: dict[str, int]) -> str | None:
    """Folder of the version below `uri` ("" for itself), None when there is no RLDS set.
    DataError when there are several.
    """
    found = sorted(
        n[: -len(FEATURES)].rstrip("/")
        for n in files
        if n == FEATURES or n.endswith("/" + FEATURES)
    )
    # A description without records is none; where the folder itself has both, those below it
    # do not matter.
    found = [f for f in found if any(n.startswith(f) and ".tfrecord" in n for n in files)]
    if len(found) > 1 and "" not in found:
        raise DataError(f"{uri}: RLDS sets in {', '.join(found)}; name one of these folders")
    return found[0] if found else None


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
    files = {
        n[len(folder) :].lstrip("/"): size for n, size in files.items() if n.startswith(folder)
    }
    # RLDS does not state a rate.
    fps = source.rate(None, "e.g. 5 for BridgeData V2, 15 for DROID")
    raw = storage.read_bytes(storage.join(uri, FEATURES))
    try:
        # Columns and pictures out of features.json; dataset_info.json, which may be missing,
        # has the number of records of each shard.
        leaves = dict(leaves_of(json.loads(raw), ""))
        info = (
            json.loads(storage.read_bytes(storage.join(uri, "dataset_info.json")))
            if "dataset_info.json" in files
            else {}
        )
        expected = {
            str(s["name"]): [int(n) for n in s.get("shardLengths", [])]
            for s in info.get("splits", [])
        }
        widths = {
            n.removeprefix(_STEPS): w
            for n, leaf in leaves.items()
            if n.startswith(_STEPS) and (w := width_of(leaf))
        }
        images = [n for n, leaf in leaves.items() if n.startswith(_STEPS) and is_picture(leaf)]
        # Version, and in place of the robot the name of the set: RLDS names no robot.
        named = str(info.get("version", "")), str(info.get("name") or "unknown")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{uri}: broken metadata ({type(error).__name__}: {error}); write the set again"
        ) from error
    state = choose_columns(uri, "state", source.state, _STATES, list(widths))
    action = choose_columns(uri, "action", source.action, _ACTIONS, list(widths))
    # `steps/observation/image_0` is camera `image_0`, read by the key `observation/image_0`.
    cameras = {
        n.removeprefix(_STEPS).removeprefix("observation/"): n.removeprefix(_STEPS) for n in images
    }
    # Of the description and, while episodes are listed, of the checksum of each record. So
    # the tuple has to be complete before the fingerprint is taken.
    digest = hashlib.sha256(raw)
    chosen = {k: widths[k] for k in (*state, *action)}
    episodes = tuple(
        _episodes(
            uri,
            files,
            _shards(source, files, expected),
            expected,
            fps,
            cameras,
            chosen,
            digest,
            reader,
        )
    )
    return RobotSet(
        uri,
        "rlds",
        *named,
        fps,
        vector_names(state, widths),
        vector_names(action, widths),
        False,
        {c: leaves[_STEPS + n]["image"] for c, n in cameras.items()},
        episodes,
        files,
        digest.hexdigest()[:12],
        state,
        action,
        tuple(widths),
    )


def _shards(source: SetSource, files: dict[str, int], expected: dict[str, list[int]]) -> list[str]:
    """Shards of the chosen split in order, those that should be there included."""
    splits: dict[str, dict[int, str]] = {}
    for name in sorted(files):
        if found := _SHARD.fullmatch(name):
            shards = splits.setdefault(found[1], {})
            shards[int(found[2] or 0)] = name
            # Shards that are not there get the names they would have: their loss is told, and
            # episodes behind them keep their numbers.
            for i in range(int(found[3] or 0)):
                shards.setdefault(i, re.sub(r"\d+(-of-\d+)$", rf"{i:05d}\1", name))
    # Without a name there may be only one; a name has to be among them.
    if len(splits) > 1 if source.split is None else source.split not in splits:
        raise DataError(
            f"{source.uri}: the set has splits {', '.join(splits)}; name one of them in `split`"
        )
    if not splits:
        raise DataError(
            f"{source.uri}: no *.tfrecord* files there; the set has splits "
            f"{', '.join(expected) or 'none'}"
        )
    chosen = splits[source.split or next(iter(splits))]
    return [chosen[i] for i in sorted(chosen)]


def _episodes(
    uri: str,
    files: dict[str, int],
    shards: list[str],
    expected: dict[str, list[int]],
    fps: float,
    cameras: dict[str, str],
    widths: dict[str, int],
    digest: Any,
    reader: FileReader,
) -> Iterator[Episode]:
    def look_at(name: str) -> tuple[tuple[_Record, ...], str]:
        if name not in files:
            return (), "is missing"
        return reader.once(_LOOKS, _look, storage.join(uri, name), files[name])

    lengths = next((n for n in expected.values() if len(n) == len(shards)), [])
    first = 0
    with ThreadPoolExecutor(8 if storage.is_remote(uri) else 1) as pool:
        for number, (name, (found, broken)) in enumerate(
            zip(shards, pool.map(look_at, shards), strict=True)
        ):
            for i, record in enumerate(found):
                digest.update(record.crc)
                if record.problem:
                    yield Episode(first + i, 0, name, {}, "", problem=f"{name} {record.problem}")
                else:
                    yield _episode(first + i, name, record, fps, cameras, widths)
            # What a shard lacks at its end becomes one episode with a problem; as many
            # numbers as were lost stay free.
            wanted = lengths[number] if lengths else len(found) + bool(broken)
            if len(found) != wanted or broken:
                reason = broken or f"has {len(found)} records, dataset_info.json says {wanted}"
                more = f" ({wanted - len(found)} episodes)" if wanted > len(found) + 1 else ""
                yield Episode(first + len(found), 0, name, {}, "", problem=f"{name} {reason}{more}")
            first += max(wanted, len(found) + bool(broken))


def _episode(
    index: int,
    file: str,
    record: _Record,
    fps: float,
    cameras: dict[str, str],
    widths: dict[str, int],
) -> Episode:
    # One value per step in each of these; any will do.
    length = next((record.counts[n] for n in _COUNTED if n in record.counts), 0)
    videos = {
        camera: VideoSpan(
            file, 0.0, record.counts[_STEPS + key] / fps, key, part.start, part.end - part.start
        )
        for camera, key in cameras.items()
        if (part := record.pictures.get(_STEPS + key))
    }
    # Values of all steps lie in one list, so a wrong number of them fits no step.
    wrong = [
        (
            f"{key} has {record.counts.get(_STEPS + key, 0)} numbers, {length} steps of {width} "
            f"need {length * width}"
        )
        for key, width in widths.items()
        if record.counts.get(_STEPS + key, 0) != length * width
    ]
    problem = "" if length else f"no step: the record has none of {', '.join(_COUNTED)}"
    return Episode(
        index,
        length,
        file,
        videos,
        record.text,
        record.offset,
        record.size,
        _STEPS,
        problem=problem,
        label_problem="; ".join(wrong),
    )


def _look(uri: str, size: int) -> tuple[tuple[_Record, ...], str]:
    """Records of a shard, and what is wrong behind the last of them."""
    found: list[_Record] = []
    with storage.open_read(uri) as handle:
        try:
            # Where a record ends is known from its length, so a damaged one costs itself
            # alone.
            for number, record in enumerate(records(handle, size)):
                if record.whole:
                    found.append(_described(handle, record))
                else:
                    problem = f"record {number} has a wrong checksum; it is damaged"
                    nothing = _Record(record.start, record.size, {}, {}, "", record.crc, problem)
                    found.append(nothing)
        except DataError as error:
            return tuple(found), str(error)
    return tuple(found), ""


def _described(handle: Any, record: Record) -> _Record:
    """DataError when it holds no Example."""
    # In memory where it may be; places in the payload are then those in the file less its start.
    shift = 0 if record.payload is None else record.start
    handle = handle if record.payload is None else io.BytesIO(record.payload)
    every = features(handle, record.start - shift, record.size)
    there = {n: f for n, f in every.items() if n.startswith(_STEPS)}
    counts = {n: count(handle, f) for n, f in there.items()}
    # Only encoded pictures are lists of bytes worth a place of their own.
    shown = {n: f for n, f in there.items() if f.kind == BYTES and n not in _TEXTS}
    lists = {n: replace(f, start=f.start + shift, end=f.end + shift) for n, f in shown.items()}
    return _Record(record.start, record.size, counts, lists, _text(handle, there), record.crc)


def _text(handle: Any, there: dict[str, Field]) -> str:
    """The first instruction that says something; every step repeats it."""
    for name in _TEXTS:
        for start, end in values(handle, there[name])[:1] if name in there else ():
            handle.seek(start)
            if text := bytes(handle.read(end - start)).decode("utf-8", "replace").strip():
                return text
    return ""


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
            # [rows, width]; a list that does not divide is a ValueError, told below.
            rows = next((count(handle, there[n]) for n in _COUNTED if n in there), 0)
            return {k: numbers(handle, there[k]).reshape(rows, -1) for k in keys}
        except (DataError, KeyError, ValueError) as error:
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
