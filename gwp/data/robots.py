"""Robot sets of every format: which one lies at a source, and which of its episodes can be used."""

from gwp.data.lerobot import is_lerobot, read_set
from gwp.data.lerobot_check import usable_episodes as usable_in_lerobot
from gwp.data.robot_set import Episode, RobotSet
from gwp.data.source import Source


def robots_at(source: Source) -> RobotSet | None:
    """The robot set that `source` names; None when it holds plain videos. DataError when it cannot be read."""
    if source.format == "lerobot" or (source.format == "auto" and is_lerobot(source.uri)):
        return read_set(source.uri)
    return None


def usable_episodes(data: RobotSet, source: Source, cameras: list[str]) -> tuple[list[tuple[Episode, int]], list[tuple[Episode, str]]]:
    """Chosen episodes with their first row in the data file, and those that cannot be used with the reason."""
    return usable_in_lerobot(data, source, cameras)
