"""Episodes in HDF5: one per file (ALOHA, ACT) or many (robomimic, LIBERO: /data/demo_0, ...;
ManiSkill: /traj_0, ...).

Columns are named by their path below the episode: `observations/qpos`, `action`,
`obs/joint_states`. Pictures are uint8 `[T, H, W, 3]`, or one encoded picture (JPEG, PNG) per
step, which zeros may follow.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.columns import passed_over
from gwp.data.formats.files.listing import NOTHING_THERE, without_repeats
from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.finding import Finding
from gwp.data.formats.format import (
    FilePart,
    Pictures,
    SetSource,
    no_split,
    rows_of,
    usable_by_metadata,
)
from gwp.data.formats.hdf5.demo import ACTIONS, Demo, raw_bytes
from gwp.data.formats.hdf5.file import member_at, opened
from gwp.data.formats.hdf5.groups import natural
from gwp.data.formats.hdf5.index import FileIndex, look
from gwp.data.formats.hdf5.remarks import remarks_of
from gwp.data.formats.instructions import ToldBy, stretches
from gwp.data.formats.plain.clips import EXTENSIONS as VIDEOS
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan, choose_columns, vector_names
from gwp.errors import DataError
from gwp.storage.names import shown, shown_all

EXTENSIONS = (".hdf5", ".h5")
title = "HDF5"
signs = f"HDF5 episodes ({', '.join('*' + e for e in EXTENSIONS)})"
endings: tuple[str, ...] = EXTENSIONS
options: tuple[str, ...] = ("split", "instruction")
usable_episodes = usable_by_metadata
# ALOHA, LIBERO, robomimic, ManiSkill: the first of which all columns are there.
_STATES = [
    ("observations/qpos",),
    ("obs/ee_states", "obs/gripper_states"),
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
    ("obs/agent/qpos",),
]
_HINT = "ALOHA is customarily recorded at 50 Hz"
_LOOKS, _EPISODES = 65536, 64
"""Files whose index stays, and episodes whose columns do."""


def hdf5_files(files: dict[str, int]) -> list[str]:
    """HDF5 files in the order of the numbers in their names."""
    return sorted((n for n in files if n.lower().endswith(EXTENSIONS)), key=natural)


def is_at(uri: str, files: dict[str, int]) -> bool:
    """Whether a file is HDF5. DataError where videos lie beside it: which of the two is meant
    cannot be told.
    """
    if not hdf5_files(files):
        return False
    if videos := sorted(n for n in files if n.lower().endswith(VIDEOS)):
        raise DataError(
            f"{uri}: both HDF5 files and videos ({videos[0]}) are there; set `format: "
            "hdf5` or `format: clips` on this source"
        )
    return True


def read_set(uri: str, files: dict[str, int], source: SetSource, reader: FileReader) -> RobotSet:
    """The set below `uri`, where `files` are. DataError when nothing there can be read.

    Every file is opened once; a file that cannot be read is an episode with a problem. A split
    leaves episodes out and changes no number.
    """
    names, _ = without_repeats(uri, hdf5_files(files))
    if not names:
        raise DataError(f"{uri}: no {signs}; check the URI")
    told_by = source.instruction
    looks = dict(zip(names, _looks(uri, names, files, told_by, reader), strict=True))
    # Files that can be read speak for the set; the others become episodes with a problem
    # below.
    indices = {name: found for name, found in looks.items() if isinstance(found, FileIndex)}
    demos = [demo for index in indices.values() for demo in index.demos]
    if not demos:
        raise DataError(
            f"{uri}: none of {len(names)} HDF5 files can be used (first: {names[0]} "
            f"{looks[names[0]]})"
        )
    rates = {index.rate for index in indices.values() if index.rate}
    if len(rates) > 1:
        raise DataError(
            f"{uri}: files of different rates ({', '.join(f'{r:g}' for r in sorted(rates))} "
            "Hz); give each a source of its own"
        )
    fps = source.rate(next(iter(rates), None), _HINT)
    # Episodes that lack something do not speak for the set.
    columns = list(dict.fromkeys(key for demo in demos for key in demo.vectors))
    state = choose_columns(uri, "state", source.state, _STATES, columns)
    action = choose_columns(uri, "action", source.action, ACTIONS, columns)
    if told_by is not None:
        texts = list(dict.fromkeys(key for demo in demos for key in demo.texts))
        choose_columns(uri, "instruction", (told_by,), (), texts)
    # The width that most episodes have. Actions come first, for `_episode` counts rows by the
    # first.
    widths = {
        k: Counter(d.vectors[k][1] for d in demos if k in d.vectors).most_common(1)[0][0]
        for k in (*action, *state)
    }
    in_split = _in_split(uri, source.split, indices)
    # A file that cannot be read takes a number, too: told as an episode with a problem.
    digest = hashlib.sha256()
    episodes: list[Episode] = []
    silent: list[int] = []
    empty: list[tuple[int, str, Demo]] = []
    number = 0
    for name, found in looks.items():
        digest.update(f"{name}:{files[name]}\n".encode())
        if isinstance(found, str):
            episodes.append(Episode(number, 0, name, {}, "", problem=f"{name} {found}"))
            number += 1
            continue
        for demo in found.demos:
            digest.update(demo.digest)
            if demo.is_empty:
                empty.append((number, name, demo))
            elif (name, demo.name) in in_split:
                episodes.append(_episode(number, name, demo, fps, action, widths))
                if not all(text.strip() for text in demo.told or ("",)):
                    silent.append(number)
            number += 1
    cameras = {
        c: {"shape": list(shape or ())}
        for demo in demos
        for c, (_, _, shape) in demo.pictures.items()
    }
    return RobotSet(
        uri,
        "hdf5",
        "",
        "unknown",
        fps,
        vector_names(state, widths),
        vector_names(action, widths),
        False,
        cameras,
        tuple(episodes),
        files,
        digest.hexdigest()[:12],
        state,
        action,
        tuple(columns),
        own=ToldBy(told_by, tuple(silent)),
        remarks=(
            *remarks_of(looks, empty, fps),
            *passed_over("state", source.state, state, _STATES, columns),
            *passed_over("action", source.action, action, ACTIONS, columns),
        ),
    )


def _looks(
    uri: str,
    names: Sequence[str],
    files: dict[str, int],
    told_by: str | None,
    reader: FileReader,
) -> list[FileIndex | str]:
    """The index of each file, or why it has none."""

    def fetch(name: str) -> None:
        reader.fetch(storage.join(uri, name), files[name])

    def look_at(name: str) -> FileIndex | str:
        if files[name] == storage.NOWHERE:
            return NOTHING_THERE
        uri_of = storage.join(uri, name)
        return reader.once(_LOOKS, look, reader, uri_of, files[name], told_by)

    # h5py reads one file at a time, whatever the number of threads: they fetch what it needs.
    return [look_at(name) for name, _ in zip(names, several(uri, fetch, names), strict=True)]


def _in_split(uri: str, split: str | None, indices: dict[str, FileIndex]) -> set[tuple[str, str]]:
    """File and name of each episode of a split; None: of every episode."""
    every = {(name, demo.name) for name, index in indices.items() for demo in index.demos}
    if split is None:
        return every
    known = {split for index in indices.values() for split in index.splits}
    no_split(uri, split, known)
    lacking = [name for name, index in indices.items() if split not in index.splits]
    if lacking:
        raise DataError(
            f"{uri}: {lacking[0]} does not say which of its episodes are in split "
            f"'{split}'; give it a source of its own"
        )
    chosen = {(name, demo) for name, index in indices.items() for demo in index.splits[split]}
    if not chosen & every:
        raise DataError(f"{uri}: no episode is in split '{split}'; choose another one")
    return chosen


def _episode(
    index: int, file: str, demo: Demo, fps: float, action: Sequence[str], widths: dict[str, int]
) -> Episode:
    counts = {k: demo.vectors[k][0] for k in widths if k in demo.vectors}
    # Rows of the first column; of a set without vectors, pictures.
    length = next(iter(counts.values()), 0) or max(
        (n for _, n, _ in demo.pictures.values()), default=0
    )
    place = f"{file} {demo.prefix.rstrip('/')}".strip()
    if demo.problem:
        return Episode(index, 0, file, {}, "", problem=f"{place} {demo.problem}")
    # The last observation, where there is one more than actions, is of no row.
    seen = {c: n for c, (_, n, _) in demo.pictures.items()}
    told = demo.told
    if ends_with_observation(demo, action, list(widths)):
        told = told[:length] if len(told) == length + 1 else told
        counts = {k: min(n, length) for k, n in counts.items()}
        seen = dict.fromkeys(seen, length)
    # Only labelled use needs them; `videos` are compared with the length in `format._reason`.
    wrong = [f"{place} has no column {k}" for k in widths if k not in demo.vectors]
    wrong += [
        f"{k} is {demo.vectors[k][1]} wide, that of the set {w}"
        for k, w in widths.items()
        if demo.vectors.get(k, (0, w))[1] != w
    ]
    wrong += [
        f"{k} has {n} rows, {next(iter(counts))} has {length}"
        for k, n in counts.items()
        if n != length
    ]
    videos = {
        c: VideoSpan(file, 0.0, seen[c] / fps, key=path)
        for c, (path, _, _) in demo.pictures.items()
    }
    # One text is that of the episode, several are of a row each.
    text, texts = stretches(told, demo.text)
    problem = f"{len(told)} instructions in {place} for {length} rows"
    return Episode(
        index,
        length,
        file,
        videos,
        text,
        prefix=demo.prefix,
        problem="" if len(told) in (0, 1, length) else problem,
        label_problem="; ".join(wrong),
        texts=texts,
        scalars=demo.scalars,
        longer=frozenset(k for k, (n, _) in demo.vectors.items() if n == length + 1),
    )


def ends_with_observation(demo: Demo, action: Sequence[str], used: Sequence[str]) -> bool:
    """Whether states and pictures of an episode are one more than its actions, all of them: the
    last was seen behind the last action, as ManiSkill records.

    action, used: columns of the actions, and of both
    """
    acted = {demo.vectors[k][0] for k in action if k in demo.vectors}
    observed = {demo.vectors[k][0] for k in used if k in demo.vectors and k not in action}
    observed |= {count for _, count, _ in demo.pictures.values()}
    return len(acted) == 1 and observed == {acted.pop() + 1}


def findings(
    data: RobotSet,
    usable: Sequence[tuple[Episode, int]],  # noqa: ARG001
    reader: FileReader,
) -> Iterable[Finding]:
    """Observations behind the last action, splits, what is damaged and costs no episode, and
    rows without an instruction.
    """
    yield from data.own.findings()
    names, again = without_repeats(data.uri, hdf5_files(data.files))
    for name, other in again.items():
        what = f"is {shown(other)} once more, by a link"
        yield Finding(name, what, "ignored", "its episodes count once")
    found = _looks(data.uri, names, data.files, data.own.column, reader)
    looks = zip(names, found, strict=True)
    indices = {name: found for name, found in looks if isinstance(found, FileIndex)}
    demos = [demo for index in indices.values() for demo in index.demos]
    used = (*data.action_keys, *data.state_keys)
    if longer := sum(ends_with_observation(demo, data.action_keys, used) for demo in demos):
        what = f"one observation more than actions in {longer} of {len(demos)} episodes"
        advice = "the last one, which no action follows, is not used"
        yield Finding("the set", what, "repaired", advice)
    if splits := sorted({split for index in indices.values() for split in index.splits}):
        advice = "`split` on the source chooses one; without it all episodes are used"
        yield Finding("the set", f"splits: {shown_all(splits)}", "ignored", advice)
    for name, index in indices.items():
        for why in index.lost:
            yield Finding(name, why, "ignored", "write the file again, or do without")
        there = {demo.name for demo in index.demos}
        for split, members in index.splits.items():
            if absent := members - there:
                what = f"split {shown(split)} names {shown_all(absent)}, not in the file"
                yield Finding(name, what, "ignored", "correct the split")


def read_rows(
    part: FilePart, first: int, count: int, keys: tuple[str, ...], reader: FileReader
) -> dict[str, np.ndarray]:
    """Rows of columns by full path, float64 `[count, width]`, what has more sides laid out in
    order. DataError when the file cannot be read so.
    """
    # All rows of the episode: its windows overlap, and several of them are read together.
    columns = reader.once(_EPISODES, _read_columns, reader, part.uri, keys)
    return rows_of(columns, part.uri, first, count)


def _read_columns(reader: FileReader, uri: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    with opened(uri, reader) as file:
        found = {k: np.asarray(member_at(file, k)[()], np.float64) for k in keys}
        return {k: v.reshape(len(v), prod(v.shape[1:])) for k, v in found.items()}


@contextmanager
def open_pictures(
    part: FilePart,
    key: str,
    reader: FileReader,
) -> Iterator[Pictures]:
    """Number of pictures of a camera, and a function that gives one: uint8 `[H, W, 3]`, or
    bytes of an encoded one. DataError.
    """
    with opened(part.uri, reader) as file:
        data = member_at(file, key)

        def get(i: int) -> Any:
            # HDF5 reads and unpacks the chunk around it, which may hold more pictures.
            value = data[i]
            if data.ndim == 4:
                return value
            raw = raw_bytes(value)
            # numpy cuts the zeros at the end of fixed texts, which BMP and TIFF may have.
            return raw.ljust(data.dtype.itemsize, b"\0") if data.dtype.kind == "S" else raw

        yield len(data), get
