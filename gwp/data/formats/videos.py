"""Facts of the video files of a robot set."""

from gwp import storage
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import RobotSet
from gwp.data.video.decode import VideoInfo, open_to_probe, probe
from gwp.errors import DataError

_FILES = 65536
"""Videos of which the facts stay."""


def video_facts(data: RobotSet, file: str, reader: FileReader) -> VideoInfo | str:
    """Facts of a video file below a set, or why it cannot be read."""
    if file not in data.files:
        return f"{file} is missing"
    facts = reader.once(_FILES, _probe, storage.join(data.uri, file), data.files[file])
    return f"{file} {facts}" if isinstance(facts, str) else facts


def _probe(uri: str, size: int) -> VideoInfo | str:
    try:
        # A reason is returned, not raised: the reader keeps results only, and would probe a
        # broken file again and again.
        with open_to_probe(uri, size) as handle:
            return probe(handle)
    except DataError as error:
        return str(error)
