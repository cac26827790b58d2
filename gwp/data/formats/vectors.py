"""State and action rows out of data files, whatever their format."""

from collections.abc import Iterator, Sequence

import numpy as np

from gwp import storage
from gwp.data.formats.files.reader import WHOLE, FileReader, several
from gwp.data.formats.format import FilePart
from gwp.data.formats.robot_set import ACTION, STATE, Episode, RobotSet
from gwp.data.formats.table import ROBOTS
from gwp.errors import DataError


def read_vectors(
    format: str,  # noqa: A002
    part: FilePart,
    first: int,
    count: int,
    reader: FileReader,
    state: Sequence[str] = (STATE,),
    action: Sequence[str] = (ACTION,),
) -> tuple[np.ndarray, np.ndarray]:
    """State `[count, ds]` and action `[count, da]`, float64 in robot units, of rows `first ..`
    of a part of a data file of `format`.

    `state`, `action`: columns, joined in this order. DataError when the file cannot be read so.
    """
    # Each once: a column may be part of both. They are a key of what the reader keeps, hence
    # the fixed order.
    keys = tuple(dict.fromkeys((*state, *action)))
    columns = ROBOTS[format].read_rows(part, first, count, keys, reader)
    return (
        np.concatenate([columns[key] for key in state], 1),
        np.concatenate([columns[key] for key in action], 1),
    )


def episode_vectors(
    data: RobotSet, episode: Episode, first: int, reader: FileReader
) -> tuple[np.ndarray, np.ndarray]:
    """All rows of an episode, as `read_vectors`. `first`: its first row, from
    `usable_episodes`.
    """
    part = FilePart(storage.join(data.uri, episode.data_file), episode.offset, episode.bytes)
    keys = data.keys(episode)
    return read_vectors(data.format, part, first, episode.length, reader, *keys)


def vectors_of(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], reader: FileReader
) -> Iterator[tuple[np.ndarray, np.ndarray] | DataError]:
    """`episode_vectors` of each, in order, or why it has none; episodes with their first rows.
    Of a set far away several are asked for at a time, as far as they are not here already.
    """

    def read(entry: tuple[Episode, int]) -> tuple[np.ndarray, np.ndarray] | DataError:
        try:
            return episode_vectors(data, *entry, reader)
        except DataError as error:
            return error

    # Small files have been fetched when they were looked at.
    here = all(data.files.get(e.data_file, 0) <= WHOLE for e, _ in episodes)
    return map(read, episodes) if here else several(data.uri, read, episodes)
