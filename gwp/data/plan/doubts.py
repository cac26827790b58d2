"""What looks wrong to somebody who lists samples, and costs none: it is told."""

from collections.abc import Iterator, Sequence

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.vectors import vectors_of
from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.units import unit_doubts
from gwp.errors import DataError

_EPISODES = 16
"""Episodes of which the rows are read."""


def angle_doubts(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], robot: Embodiment, reader: FileReader
) -> Iterator[str]:
    """Angles of a robot that look as if they were in the other unit; of robots without angles
    nothing is read. episodes: each with its first row
    """
    meanings = (robot.state_meaning, robot.action_meaning)
    if not any(meaning is not None and len(meaning.turns) for meaning in meanings):
        return
    # Some from everywhere in the set: one alone may hardly move.
    some = episodes[:: max(1, len(episodes) // _EPISODES)][:_EPISODES]
    widths = (len(robot.state_names), len(robot.action_names))
    found = [
        rows
        for rows in vectors_of(data, some, reader)
        # Rows that cannot be read, or have another width, are told elsewhere.
        if not isinstance(rows, DataError) and (rows[0].shape[1], rows[1].shape[1]) == widths
    ]
    yield from unit_doubts(robot, [state for state, _ in found], [act for _, act in found])
