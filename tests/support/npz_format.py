"""A robot format in few lines: an `.npz` file per episode with `state`, `action` and pictures of
`top`, at 10 Hz.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import (
    FilePart,
    Pictures,
    SetSource,
    no_findings,
    rows_of,
    usable_by_metadata,
)
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan

title = "NumPy"
signs = "episodes (*.npz)"
endings: tuple[str, ...] = (".npz",)
options: tuple[str, ...] = ()
usable_episodes = usable_by_metadata
findings = no_findings


def is_at(uri: str, files: dict[str, int]) -> bool:
    return any(name.endswith(".npz") for name in files)


def read_set(uri: str, files: dict[str, int], source: SetSource, reader: FileReader) -> RobotSet:
    episodes = []
    for i, name in enumerate(sorted(files)):
        length = len(reader.once(64, load, storage.join(uri, name))["state"])
        top = VideoSpan(name, 0.0, length / 10, key="top")
        episodes.append(Episode(i, length, name, {"top": top}, "push"))
    names = ("x", "y", "grip"), ("dx", "grip")
    cameras: dict[str, dict[str, Any]] = {"top": {}}
    about = (uri, "npz", "", "toy", source.rate(10.0, ""), *names, True, cameras)
    return RobotSet(*about, tuple(episodes), files, "a0", ("state",), ("action",))


def read_rows(
    part: FilePart, first: int, count: int, keys: tuple[str, ...], reader: FileReader
) -> dict[str, np.ndarray]:
    columns = reader.once(64, load, part.uri)
    return rows_of({key: columns[key] for key in keys}, part.uri, first, count)


@contextmanager
def open_pictures(part: FilePart, key: str, reader: FileReader) -> Iterator[Pictures]:
    pictures = reader.once(64, load, part.uri)[key]
    yield len(pictures), pictures.__getitem__


def load(uri: str) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(storage.read_bytes(uri))))
