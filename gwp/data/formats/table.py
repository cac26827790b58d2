"""The formats of recordings that are read: a line each.

The name stands in `Source.format`, in rows of the manifest and on the command line. `auto`
takes the first that is there.
"""

from gwp.data.formats.format import AnyFormat, RobotFormat, VideoFormat
from gwp.data.formats.hdf5 import format as hdf5
from gwp.data.formats.lerobot import format as lerobot
from gwp.data.formats.plain import clips, tars
from gwp.data.formats.rlds import format as rlds

AUTO = "auto"
ROBOTS: dict[str, RobotFormat] = {
    "lerobot": lerobot,
    "rlds": rlds,
    "hdf5": hdf5,
}
VIDEOS: dict[str, VideoFormat] = {
    "clips": clips,
    "tars": tars,
}


def formats() -> dict[str, AnyFormat]:
    """All of them, in the order in which `auto` looks for them."""
    # Robots first: sets of theirs hold videos too.
    return {**ROBOTS, **VIDEOS}


def format_names() -> tuple[str, ...]:
    """What may stand in `Source.format`."""
    return (AUTO, *formats())
