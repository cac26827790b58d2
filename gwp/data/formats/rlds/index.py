"""What the records of an RLDS shard hold: how many values of each feature, where the pictures
lie, what is done in each episode and what is noted of it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gwp import storage
from gwp.data.formats.instructions import Stretches, stretches
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
from gwp.errors import DataError

STEPS, EPISODE = "steps/", "episode_metadata/"
"""What features of the steps and those of the episode begin with."""
_TEXTS = (
    "steps/language_instruction",
    "steps/observation/natural_language_instruction",
    "steps/observation/language_instruction",
)


@dataclass(frozen=True)
class Told:
    """What is done in an episode: its first text, and the stretches of rows where there are
    several.

    rows: texts that there are. silent: whether some row of the chosen column has none.
    """

    text: str = ""
    stretches: Stretches = ()
    rows: int = 0
    silent: bool = False


@dataclass(frozen=True)
class Kept:
    """What the index keeps of a record.

    counts: values of each feature of the steps. pictures: where the lists of images lie.
    told, chosen: what the usual column and the chosen one say. scalars: single numbers that are
    noted of the episode. problem: why nothing of it can be used.
    """

    offset: int
    size: int
    crc: bytes
    counts: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, Field] = field(default_factory=dict)
    told: Told = Told()
    chosen: Told | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def look(uri: str, size: int, told_by: str | None) -> tuple[tuple[Kept, ...], str]:
    """Records of a shard, and what is wrong behind the last of them. told_by: full name of the
    feature that says what is done, besides the usual one
    """
    found: list[Kept] = []
    with storage.open_read(uri) as handle:
        try:
            # Where a record ends is known from its length, so a damaged one costs itself
            # alone.
            for number, record in enumerate(records(handle, size)):
                found.append(_kept(handle, record, number, told_by))
        except DataError as error:
            return tuple(found), str(error)
    return tuple(found), ""


def _kept(handle: Any, record: Record, number: int, told_by: str | None) -> Kept:
    problem = f"record {number} has a wrong checksum; it is damaged"
    if record.whole:
        try:
            return _described(handle, record, told_by)
        except DataError as error:
            problem = f"record {number} {error}"
    return Kept(record.start, record.size, record.crc, problem=problem)


def _described(handle: Any, record: Record, told_by: str | None) -> Kept:
    """DataError when it holds no Example."""
    # In memory where it may be; places in the payload are then those in the file less its start.
    shift = 0 if record.payload is None else record.start
    handle = handle if record.payload is None else io.BytesIO(record.payload)
    every = features(handle, record.start - shift, record.size)
    there = {n: f for n, f in every.items() if n.startswith(STEPS)}
    counts = {n: count(handle, f) for n, f in there.items()}
    # Only encoded pictures are lists of bytes worth a place of their own.
    shown = {n: f for n, f in there.items() if f.kind == BYTES and n not in _TEXTS}
    noted = {n: f for n, f in every.items() if n.startswith(EPISODE) and f.kind != BYTES}
    scalars = {n: numbers(handle, f) for n, f in noted.items() if count(handle, f) == 1}
    return Kept(
        record.start,
        record.size,
        record.crc,
        counts,
        {n: replace(f, start=f.start + shift, end=f.end + shift) for n, f in shown.items()},
        _usual(handle, there),
        None if told_by is None else _told(_texts(handle, every.get(told_by)), ""),
        {n: float(found[0]) for n, found in scalars.items()},
    )


def _usual(handle: Any, there: dict[str, Field]) -> Told:
    """The first of the usual columns that says something."""
    for name in _TEXTS:
        said = _texts(handle, there.get(name))
        last = next(filter(None, said), "")
        if not last:
            continue
        # A step that says nothing, mostly the last one, is still that of before.
        for row, text in enumerate(said):
            last = said[row] = text or last
        return _told(said, said[0])
    return Told()


def _told(said: Sequence[str], otherwise: str) -> Told:
    return Told(*stretches(said, otherwise), len(said), not said or not all(said))


def _texts(handle: Any, feature: Field | None) -> list[str]:
    """The texts of a feature, of the episode or of each step; none where it holds something
    else.
    """
    found: list[str] = []
    raw = b""
    for start, end in values(handle, feature) if feature and feature.kind == BYTES else ():
        handle.seek(start)
        given = bytes(handle.read(end - start))
        # Mostly every step repeats it.
        if not found or given != raw:
            found.append(given.decode("utf-8", "replace").strip())
        else:
            found.append(found[-1])
        raw = given
    return found
