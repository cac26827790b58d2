"""One entry of a data mixture."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from gwp.data.formats.table import VIDEOS, format_names
from gwp.data.ranges import as_ranges as as_ranges
from gwp.data.ranges import parse_ranges as parse_ranges
from gwp.data.robot.embodiment import Slot
from gwp.errors import DataError
from gwp.paths import Location

# The names are those of the table, which a type checker cannot know.
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[format_names()]


Colours = Literal["rgb", "bgr"]
_LATER = ("instruction", "only")


class Source(BaseModel):
    """A data set of the mixture and how it is used."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    uri: Location
    """Folder or `s3://bucket/prefix` of a robot set or of plain videos; a single video, HDF5 or
    tar file works too.
    """
    format: FormatName = "auto"
    """Format of the recordings there, each described in docs/data.md; auto: the first of these
    that is there.
    """
    embodiment: str | None = None
    """Name of the robot that recorded it; None: video only."""
    weight: float = Field(default=1.0, gt=0)
    """How often an epoch shows each sample: 1 once, 2 twice, 0.5 every second epoch."""
    episodes: str | None = None
    """Which episodes (of plain videos: files in name order): `0:100` (end excluded), `0,3,5`,
    `3::8` (every eighth from 3 on; `3:80:8` up to 80), or a mixture; None: all.
    """
    with_actions: bool = True
    """Use the action labels; off: video only, even where there are labels."""
    cameras: dict[Slot, str] | None = None
    """Canvas slot -> camera key of this set; None: those of the embodiment, or the first camera
    where there is none.
    """
    colours: Colours | dict[str, Colours] = "rgb"
    """Order of the colours in its pictures and videos as they decode; bgr where they were written
    from RGB arrays by a program that takes BGR (OpenCV), or the other way round: red and blue are
    exchanged then. Of a robot set also by camera key; those that are not named are rgb.
    """
    state: tuple[str, ...] | None = None
    """Columns that make up the state, joined in this order; None: the usual ones of the format."""
    action: tuple[str, ...] | None = None
    """Columns that make up the action, joined in this order; None: the usual ones of the
    format.
    """
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Rate that the set was recorded at, Hz, where it does not say so itself (HDF5 mostly,
    RLDS).
    """
    split: str | None = None
    """Split of a set that has some; None: the only one, or in LeRobot and HDF5 all episodes."""
    instruction: str | None = None
    """What says what is done, of the episode or row by row. LeRobot: a column of texts, or of
    numbers of its tasks (`annotation.*`, `subtask_index`). RLDS: a text of the steps
    (`language_instruction_2`) or of the episode (`episode_metadata/...`). HDF5: an attribute or
    a column of texts of each episode. None: the usual one of the format.
    """
    only: str | None = None
    """What tells how an episode ended: a column (`next.success`), of which the last value has to
    be true, or a number of the episode: an attribute or a single value in HDF5, one of
    `episode_metadata` in RLDS, of the list of episodes in LeRobot. None: all.
    """
    resample: bool = False
    """Bring a set of another rate to the rate of its robot; off: such a set is an error."""
    task: str | None = None
    """Instruction or caption for every sample, in place of the recorded ones."""

    @field_validator("episodes")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        # For its ValueError alone: a mistake is told with the file's other ones.
        if text is not None:
            parse_ranges(text, open_ended=True)
        return text

    # Digests of this JSON name manifests and caches. Those of before know no colours.
    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if not self._some_bgr:
            fields.pop("colours", None)
        return fields

    @property
    def _some_bgr(self) -> bool:
        named = self.colours.values() if isinstance(self.colours, dict) else [self.colours]
        return "bgr" in named

    def is_bgr(self, camera: str) -> bool:
        """Whether red and blue of the pictures of a camera are exchanged; "" for a plain video."""
        if isinstance(self.colours, dict):
            return self.colours.get(camera) == "bgr"
        return self.colours == "bgr"

    @property
    def rule(self) -> dict[str, Any]:
        """What its samples depend on, besides the set."""
        # Fields of later versions count where they are used: other manifests keep their
        # fingerprints.
        later = {name for name in _LATER if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"uri", *later})

    @property
    def labelled(self) -> bool:
        """Whether its samples carry actions."""
        return self.embodiment is not None and self.with_actions and self.format not in VIDEOS

    def rate(self, stated: float | None, hint: str) -> float:
        """Rate of the set, Hz: the one it states, else `fps`. DataError when there is none,
        with `hint`, or when the two differ.
        """
        if stated is None and self.fps is None:
            raise DataError(
                f"{self.uri}: the set does not say at what rate it was recorded; set `fps` on "
                f"this source ({hint})"
            )
        # 0.1 %, as in `robot_set.rows_per_step`: rates are written with few digits.
        if stated is not None and self.fps is not None and abs(stated - self.fps) > 1e-3 * stated:
            raise DataError(
                f"{self.uri}: the set was recorded at {stated:g} Hz, `fps` says {self.fps:g}; "
                "remove `fps`"
            )
        # One of the two is there; 0.0 is for the type checker.
        return float(stated if stated is not None else self.fps or 0.0)

    def select(self, available: list[int]) -> list[int]:
        """The chosen ones of `available`, in their order. DataError when none of a part exists."""
        if self.episodes is None:
            return available
        chosen: set[int] = set()
        parts = parse_ranges(self.episodes, open_ended=True)
        for text, part in zip(self.episodes.split(","), parts, strict=True):
            # Numbers may be missing inside a part, but a part without any is a mistake of the
            # user.
            hits = {i for i in available if i in part}
            if not hits:
                have = f"{available[0]} to {available[-1]}" if available else "none"
                raise DataError(f"{self.uri}: no episode in {text.strip()}; there are {have}")
            chosen |= hits
        return [i for i in available if i in chosen]
