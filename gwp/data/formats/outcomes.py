"""Episodes by how they ended: those whose last row has a true value in a column, or of which
their set notes that.
"""

import numpy as np

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import FilePart, Usable
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.table import ROBOTS
from gwp.errors import DataError
from gwp.storage.names import shown_all


def with_outcome(data: RobotSet, column: str, found: Usable, reader: FileReader) -> Usable:
    """Of usable episodes those whose last value of `column` is true, i.e. neither 0 nor NaN; of
    a number that is noted of each episode, its value.

    An episode of which that cannot be told cannot be used. DataError when no episode has it, or
    none is left of several.
    """
    good, bad = found
    scalar = _scalar(data, column)
    kept: list[tuple[Episode, int]] = []
    unknown: list[tuple[Episode, str]] = []
    for episode, first in good:
        try:
            if scalar is not None and scalar in episode.scalars:
                value = episode.scalars[scalar]
            elif scalar is None or column in data.columns:
                value = _last(data, episode, first, column, reader)
            else:
                raise DataError(f"'{column}' is not noted of it")
            if value and not np.isnan(value):
                kept.append((episode, first))
        except DataError as error:
            unknown.append((episode, str(error)))
    # Files may have columns that the metadata do not name: all of them were asked.
    if good and scalar is None and len(unknown) == len(good) and column not in data.columns:
        have = shown_all({*data.columns, *_scalars(data)}) or "none"
        raise DataError(f"{data.uri}: no column '{column}' for `only`; the set has {have}")
    if good and not kept and not unknown:
        raise DataError(
            f"{data.uri}: '{column}' is false at the end of each of {len(good)} episodes; "
            "name another column in `only`, or remove it"
        )
    return kept, [*bad, *unknown]


def _scalars(data: RobotSet) -> set[str]:
    return {name for episode in data.episodes for name in episode.scalars}


def _scalar(data: RobotSet, column: str) -> str | None:
    """The number noted of episodes that is called so, whole or by the end of its path; None
    where there is none. DataError when it may be several.
    """
    known = _scalars(data)
    if column in known or column in data.columns:
        return column if column in known else None
    alike = {name for name in known if name.endswith(f"/{column}")}
    if len(alike) > 1:
        raise DataError(
            f"{data.uri}: '{column}' may be {shown_all(alike)}; name one of them in `only`"
        )
    return next(iter(alike), None)


def _last(data: RobotSet, episode: Episode, first: int, column: str, reader: FileReader) -> float:
    part = FilePart(storage.join(data.uri, episode.data_file), episode.offset, episode.bytes)
    keys = (episode.prefix + column,)
    row = first + episode.length - (column not in episode.longer)
    values = ROBOTS[data.format].read_rows(part, row, 1, keys, reader)[keys[0]]
    if values.size != 1:
        raise DataError(f"'{column}' has {values.size} values a row; `only` takes a column of one")
    return float(values.ravel()[0])
