"""A set of robot episodes, whatever format it lies in: what its metadata say, and where rows
and pictures are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from gwp.data.canvas import SLOTS
from gwp.data.formats.cameras import colour_cameras, default_slots
from gwp.data.formats.finding import Finding
from gwp.data.robot.embodiment import Embodiment, Slot
from gwp.errors import DataError

# LeRobot's names, which our statistics use too. Sets of other formats have columns of their
# own in `state_keys` and `action_keys`.
STATE, ACTION = "observation.state", "action"


# Of a `RobotSet` these two say what the metadata say; `usable_episodes` gives them back with
# corrected places.
@dataclass(frozen=True)
class VideoSpan:
    """Frames of one camera in one episode: file below the set, start and end in seconds (end
    None: end of the file).

    key: which pictures of the file, where it is no video: the k-th belongs to row k; offset,
    bytes: the part of the file that holds them (bytes None: all of it). rate: frames per second
    of the file, where that is not quite the rate of the set (None: it is).
    """

    file: str
    start: float
    end: float | None
    key: str = ""
    offset: int = 0
    bytes: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Episode:
    """One episode: rows, the file below the set that holds them, and one video span per camera.

    offset, bytes: the part of the file that holds the rows (bytes None: all of it). prefix:
    what comes before the names of its columns in that file. problem, label_problem: why it, or
    its rows, cannot be used, where reading the metadata has shown it. texts: first row and
    instruction of each stretch of rows, where not all have the one that is `text`. scalars:
    single numbers that the set notes of it, by name. longer: columns with one value more than
    rows, which stands behind the last.
    """

    index: int
    length: int
    data_file: str
    videos: dict[str, VideoSpan]
    text: str
    offset: int = 0
    bytes: int | None = None
    prefix: str = ""
    problem: str = ""
    label_problem: str = ""
    texts: tuple[tuple[int, str], ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    longer: frozenset[str] = frozenset()

    def text_at(self, row: int) -> str:
        """The instruction of the samples that begin at a row."""
        told = [text for first, text in self.texts if first <= row]
        return told[-1] if told else self.text


@dataclass(frozen=True)
class RobotSet:
    """Metadata of a set. `format`: its name in `gwp.data.formats.table`. `cameras`: key -> what
    the set says of it. `files`: every file below `uri` -> bytes.

    `named`: whether the set names its dimensions. `state_keys`, `action_keys`: columns that
    make up the vectors, joined in this order.
    `columns`: those that could. `absent`: cameras that are declared and have no file. `own`: what
    the format keeps of the metadata for itself. `remarks`: what was chosen that its user may not
    have meant, told wherever it is used.
    """

    uri: str
    format: str
    version: str
    robot_type: str
    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    named: bool
    cameras: dict[str, dict[str, Any]]
    episodes: tuple[Episode, ...]
    files: dict[str, int]
    fingerprint: str
    state_keys: tuple[str, ...] = (STATE,)
    action_keys: tuple[str, ...] = (ACTION,)
    columns: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    own: Any = None
    remarks: tuple[Finding, ...] = ()

    def keys(self, episode: Episode) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Columns of state and action as the file of `episode` calls them."""
        return tuple(episode.prefix + k for k in self.state_keys), tuple(
            episode.prefix + k for k in self.action_keys
        )

    def slots(self, cameras: dict[Slot, str] | None) -> dict[Slot, str]:
        """The given cameras, or the set's own by their names and their order. DataError when
        one is not there, or when there are more than slots.
        """
        if cameras is None:
            if not 0 < len(colour_cameras(self.cameras)) <= len(SLOTS):
                have = ", ".join(self.cameras) or "none"
                raise DataError(
                    f"{self.uri}: name up to {len(SLOTS)} `cameras` (front, left, right); the "
                    f"set has {have}"
                )
            return default_slots(self.cameras)
        for camera in cameras.values():
            # Asked first: absent cameras are not among `self.cameras` either.
            if camera in self.absent:
                raise DataError(
                    f"{self.uri}: camera '{camera}' is declared, but there is no file of it; "
                    "name other `cameras`"
                )
            if camera not in self.cameras:
                close = get_close_matches(camera, self.cameras, 1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise DataError(
                    f"{self.uri}: no camera '{camera}'; {hint}The set has "
                    f"{', '.join(self.cameras) or 'no video'}"
                )
        # In canonical order, so that rows of all sources list their views alike.
        return {slot: cameras[slot] for slot in SLOTS if slot in cameras}


def rows_per_step(data: RobotSet, embodiment: Embodiment | None) -> float:
    """Rows of the set per control step of the robot; 1 where their rates are the same or there
    is no robot.
    """
    # 0.1 %: rates are written with few digits. Exactly 1 then, so that rows are taken as they
    # are.
    if embodiment is None or abs(data.fps - embodiment.fps) <= 1e-3 * embodiment.fps:
        return 1.0
    return data.fps / embodiment.fps


def check_embodiment(data: RobotSet, embodiment: Embodiment, resample: bool = False) -> None:
    """DataError when a set's widths or names, or without `resample` its rate, differ from those
    of the robot it is said to be of.
    """
    if rows_per_step(data, embodiment) != 1 and not resample:
        raise DataError(
            f"{data.uri} is at {data.fps:g} Hz, embodiment {embodiment.name} at "
            f"{embodiment.fps:g} Hz; set `resample: true` on this "
            "source, or give it another embodiment"
        )
    pairs = (
        ("state", data.state_names, embodiment.state_names),
        ("action", data.action_names, embodiment.action_names),
    )
    for what, there, ours in pairs:
        # Nothing was chosen: none of the format's usual columns is in the set.
        if not there:
            have = f" (the set has {', '.join(data.columns)})" if data.columns else ""
            raise DataError(
                f"{data.uri}: no {what}; name its columns in `{what}`{have}, or set "
                "`with_actions: false` for video only"
            )
        if len(there) != len(ours):
            raise DataError(
                f"{data.uri}: {len(there)} {what} dimensions, embodiment {embodiment.name} has "
                f"{len(ours)}"
            )
        # Made-up names (`state_0`) say nothing, so only widths are compared then.
        if data.named and there != ours:
            i = next(i for i, (a, b) in enumerate(zip(there, ours, strict=True)) if a != b)
            raise DataError(
                f"{data.uri}: {what} {i} is '{there[i]}', embodiment {embodiment.name} has "
                f"'{ours[i]}'; give it another embodiment"
            )


def choose_columns(
    uri: str,
    what: str,
    given: Sequence[str] | None,
    defaults: Sequence[tuple[str, ...]],
    have: Sequence[str],
) -> tuple[str, ...]:
    """The columns of the state or action: those `given`, else the first of `defaults` that is
    there; () where none is. DataError.
    """
    for name in given or ():
        if name not in have:
            close = get_close_matches(name, have, 1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise DataError(
                f"{uri}: no column '{name}' for `{what}`; {hint}The set has {', '.join(have) or 'none'}"
            )
    # A default counts only where all of its columns are there.
    return tuple(given) if given else next((d for d in defaults if set(d) <= set(have)), ())


def vector_names(keys: Sequence[str], widths: dict[str, int]) -> tuple[str, ...]:
    """Names of the dimensions of columns that name none: by the last part of each path, and by
    as much before it as tells columns of one name apart.
    """
    # Paths of HDF5 and RLDS, hence the slash; LeRobot's columns are named in `lerobot.read`.
    short = [_shortest(key, keys) for key in keys]
    return tuple(f"{s}_{i}" for s, key in zip(short, keys, strict=True) for i in range(widths[key]))


def _shortest(path: str, paths: Sequence[str]) -> str:
    """The fewest last parts of a path that no other path ends with."""
    parts = path.split("/")
    ends = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
    others = [f"/{other}" for other in paths if other != path]
    alone = (end for end in ends if not any(other.endswith(f"/{end}") for other in others))
    return next(alone, path)


def embodiment_of(
    data: RobotSet,
    name: str,
    chunk: int,
    replan: int,
    cameras: dict[Slot, str] | None = None,
    delta_mask: tuple[bool, ...] | None = None,
    id: int = 0,  # noqa: A002
) -> Embodiment:
    """The robot of a set: names, rate and cameras as the set tells them.

    `cameras`: slot -> camera key; None: the set's cameras by their names. `delta_mask`: one entry
    per action; None: all absolute. DataError when the set has no state or action, lacks a
    camera, or the mask does not fit.
    """
    for what, names, usual in (
        ("state", data.state_names, STATE),
        ("action", data.action_names, ACTION),
    ):
        if not names:
            have = (
                f"the set has {', '.join(data.columns)}"
                if data.columns
                else f"the usual one is {usual}"
            )
            raise DataError(
                f"{data.uri}: no {what}; name its columns in `{what}` ({have}), or use the set "
                "without an embodiment"
            )
    try:
        return Embodiment(
            name=name,
            id=id,
            fps=data.fps,
            state_names=data.state_names,
            action_names=data.action_names,
            delta_mask=delta_mask or (),
            cameras=data.slots(cameras),
            chunk=chunk,
            replan=replan,
        )
    except ValidationError as error:
        # pydantic writes "Value error, " before what a validator of ours says.
        reasons = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise DataError(f"{data.uri}: cannot describe robot '{name}': {reasons}") from error
