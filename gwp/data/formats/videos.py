"""Facts of the video files of a robot set."""

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.robot_set import RobotSet
from gwp.data.video.probe import VideoInfo, probe
from gwp.errors import DataError

_WHOLE = 2 * storage.ENDS
"""Bytes of a video that is fetched whole to look at it; of larger ones an end has the index."""
_FILES = 65536
"""Videos of which the facts stay."""


def video_facts(data: RobotSet, file: str, reader: FileReader) -> VideoInfo | str:
    """Facts of a video file below a set, or why it cannot be read."""
    if file not in data.files:
        return f"{file} is missing"
    uri = storage.join(data.uri, file)
    facts = reader.once(_FILES, _probe, reader, uri, data.files[file])
    return f"{file} {facts}" if isinstance(facts, str) else facts


def fetch_video(data: RobotSet, file: str, reader: FileReader) -> None:
    """What `video_facts` will need of a file that is far away."""
    if file in data.files:
        reader.fetch(storage.join(data.uri, file), data.files[file], _WHOLE)


def _probe(reader: FileReader, uri: str, size: int) -> VideoInfo | str:
    try:
        # A reason is returned, not raised: the reader keeps results only, and would probe a
        # broken file again and again.
        with reader.open(uri, size, _WHOLE, keep=False) as handle:
            return probe(handle, reader.kinds)
    except DataError as error:
        return str(error)
