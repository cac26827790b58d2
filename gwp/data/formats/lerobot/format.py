"""LeRobot sets as one of the formats: its parts put together."""

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import SetSource
from gwp.data.formats.lerobot import check, read, rows
from gwp.data.formats.lerobot import findings as lerobot_findings
from gwp.data.formats.robot_set import RobotSet

title = "LeRobot"
signs = f"LeRobot set ({read.INFO})"
endings: tuple[str, ...] = ()
options: tuple[str, ...] = ("split", "instruction")
usable_episodes = check.usable_episodes
findings = lerobot_findings.findings
read_rows = rows.read_rows
open_pictures = rows.open_pictures


def is_at(uri: str, files: dict[str, int]) -> bool:  # noqa: ARG001
    """Whether the metadata of a set are there."""
    return read.INFO in files


def read_set(
    uri: str,
    files: dict[str, int],
    source: SetSource,
    reader: FileReader,
) -> RobotSet:
    """As `read.read_set`, with the columns and the split of the source. DataError when it gives
    another rate than the set.
    """
    data = read.read_set(
        uri, source.state, source.action, files, source.split, source.instruction, reader
    )
    # For its error alone: the rate is the one of info.json.
    source.rate(data.fps, "")
    return data
