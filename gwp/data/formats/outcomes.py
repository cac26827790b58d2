"""Episodes by how they ended: those whose last row has a true value in a column."""

import numpy as np

from gwp import storage
from gwp.data.formats.format import FilePart, Usable
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.table import ROBOTS
from gwp.errors import DataError


def with_outcome(data: RobotSet, column: str, found: Usable, reader: FileReader) -> Usable:
    """Of usable episodes those whose last value of `column` is true, i.e. neither 0 nor NaN.

    An episode of which that cannot be told cannot be used. DataError when none is left of
    several.
    """
    good, bad = found
    kept: list[tuple[Episode, int]] = []
    unknown: list[tuple[Episode, str]] = []
    for episode, first in good:
        try:
            if _last(data, episode, first, column, reader):
                kept.append((episode, first))
        except DataError as error:
            unknown.append((episode, str(error)))
    if good and not kept and not unknown:
        raise DataError(
            f"{data.uri}: '{column}' is false at the end of each of {len(good)} episodes; "
            "name another column in `only`, or remove it"
        )
    return kept, [*bad, *unknown]


def _last(data: RobotSet, episode: Episode, first: int, column: str, reader: FileReader) -> bool:
    part = FilePart(storage.join(data.uri, episode.data_file), episode.offset, episode.bytes)
    keys = (episode.prefix + column,)
    row = first + episode.length - 1
    values = ROBOTS[data.format].read_rows(part, row, 1, keys, reader)[keys[0]]
    if values.size != 1:
        raise DataError(f"'{column}' has {values.size} values a row; `only` takes a column of one")
    value = float(values.ravel()[0])
    return bool(value) and not np.isnan(value)
