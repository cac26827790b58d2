"""A set of robot episodes, whatever format it lies in: what its metadata say, and where rows and pictures are."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from gwp.data.canvas import SLOTS
from gwp.data.embodiment import Embodiment, Slot
from gwp.errors import DataError

RobotFormat = Literal["lerobot", "hdf5", "rlds"]
STATE, ACTION = "observation.state", "action"


@dataclass(frozen=True)
class VideoSpan:
    """Frames of one camera in one episode: file below the set, start and end in seconds (end None: end of the file).

    key: which pictures of the file, where it is no video: the k-th belongs to row k; offset, bytes: the part of the file that holds
    them (bytes None: all of it).
    """

    file: str
    start: float
    end: float | None
    key: str = ""
    offset: int = 0
    bytes: int | None = None


@dataclass(frozen=True)
class Episode:
    """One episode: rows, the file below the set that holds them, and one video span per camera.

    offset, bytes: the part of the file that holds the rows (bytes None: all of it).
    """

    index: int
    length: int
    data_file: str
    videos: dict[str, VideoSpan]
    text: str
    offset: int = 0
    bytes: int | None = None


@dataclass(frozen=True)
class RobotSet:
    """Metadata of a set. `cameras`: key -> what the set says of it. `files`: every file below `uri` -> bytes.

    `stills`: cameras whose pictures are not read. `named`: whether the set names its dimensions. `state_keys`, `action_keys`: columns
    that make up the vectors, joined in this order. `absent`: cameras that are declared and have no file.
    """

    uri: str
    format: RobotFormat
    version: str
    robot_type: str
    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    named: bool
    cameras: dict[str, dict[str, Any]]
    stills: tuple[str, ...]
    episodes: tuple[Episode, ...]
    files: dict[str, int]
    fingerprint: str
    state_keys: tuple[str, ...] = (STATE,)
    action_keys: tuple[str, ...] = (ACTION,)
    absent: tuple[str, ...] = ()

    def slots(self, cameras: dict[Slot, str] | None) -> dict[Slot, str]:
        """The given cameras, or the set's own in its order. DataError when one is not there, or when there are more than slots."""
        if cameras is None:
            if not 0 < len(self.cameras) <= len(SLOTS):
                have = ", ".join(self.cameras) or "none"
                raise DataError(f"{self.uri}: name up to {len(SLOTS)} `cameras` (front, left, right); the set has {have}")
            return dict(zip(SLOTS, self.cameras, strict=False))
        for camera in cameras.values():
            if camera in self.stills:
                raise DataError(f"{self.uri}: the pictures of '{camera}' lie in the Parquet files; convert the set to one with videos")
            if camera in self.absent:
                raise DataError(f"{self.uri}: camera '{camera}' is declared, but there is no file of it; name other `cameras`")
            if camera not in self.cameras:
                close = get_close_matches(camera, self.cameras, 1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise DataError(f"{self.uri}: no camera '{camera}'; {hint}The set has {', '.join(self.cameras) or 'no video'}")
        return {slot: cameras[slot] for slot in SLOTS if slot in cameras}


def rows_per_step(data: RobotSet, embodiment: Embodiment | None) -> float:
    """Rows of the set per control step of the robot; 1 where their rates are the same or there is no robot."""
    if embodiment is None or abs(data.fps - embodiment.fps) <= 1e-3 * embodiment.fps:
        return 1.0
    return data.fps / embodiment.fps


def check_embodiment(data: RobotSet, embodiment: Embodiment, resample: bool = False) -> None:
    """DataError when a set's widths or names, or without `resample` its rate, differ from those of the robot it is said to be of."""
    if rows_per_step(data, embodiment) != 1 and not resample:
        raise DataError(
            f"{data.uri} is at {data.fps:g} Hz, embodiment {embodiment.name} at {embodiment.fps:g} Hz; set `resample: true` on this "
            "source, or give it another embodiment"
        )
    pairs = (("state", data.state_names, embodiment.state_names), ("action", data.action_names, embodiment.action_names))
    for what, there, ours in pairs:
        if not there:
            raise DataError(f"{data.uri}: no {what}; set `with_actions: false` for video only")
        if len(there) != len(ours):
            raise DataError(f"{data.uri}: {len(there)} {what} dimensions, embodiment {embodiment.name} has {len(ours)}")
        if data.named and there != ours:
            i = next(i for i, (a, b) in enumerate(zip(there, ours, strict=True)) if a != b)
            raise DataError(
                f"{data.uri}: {what} {i} is '{there[i]}', embodiment {embodiment.name} has '{ours[i]}'; give it another embodiment"
            )
