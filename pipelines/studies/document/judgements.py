"""How a cell can be judged, as a study document says it."""

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gwp.errors import GwpError
from gwp.sim.benchmarks import BENCHMARKS, DEFAULT
from gwp.storage.names import relative_name
from pipelines.evaluation.charge import Chunking, check_charge

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

Named = Iterator[tuple[str, str, Collection[str]]]


class _Judged(BaseModel):
    """What all judgements have."""

    model_config = _CONFIG

    name: str
    """Of the judgement, in the table and in comparisons."""
    arms: tuple[str, ...] = ()
    """Arms that it is made of; empty: all."""
    steps: int = Field(default=10, gt=0)
    """Euler steps of the solver."""

    @field_validator("name")
    @classmethod
    def _names_a_file(cls, name: str) -> str:
        try:
            if "/" in relative_name(name, "judge.name"):
                raise ValueError("a plain name, without a slash")
        except GwpError as error:
            raise ValueError(str(error)) from error
        return name

    def of(self, arm: str) -> bool:
        """Whether it judges cells of an arm."""
        return not self.arms or arm in self.arms

    def names(self, data: Collection[str], arms: Collection[str]) -> Named:
        """Field, name, and which names there are."""
        for arm in self.arms:
            yield "arms", arm, arms
        if (name := getattr(self, "data", None)) is not None:
            yield "data", name, data
        if (benchmark := getattr(self, "benchmark", None)) is not None:
            yield "benchmark", benchmark, BENCHMARKS
        for arm in charge if isinstance(charge := getattr(self, "charge", ""), dict) else ():
            yield "charge", arm, arms


class ClosedLoopJudgement(_Judged):
    """Success in simulation, on starts that no recording uses and that are the same for all arms."""

    kind: Literal["closed-loop"]
    """Which judgement this is."""
    benchmark: str = DEFAULT
    """The simulator: `metaworld`, `metaworld-wide`, `ogbench`, `aloha`, `libero-object`,
    `libero-spatial`."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks."""
    episodes: int = Field(gt=0, le=1000)
    """Starts of each task."""
    max_steps: int | None = Field(default=None, gt=0)
    """Control steps after which an episode has failed; None: those of the simulator."""
    size: int = Field(default=64, gt=0)
    """Side of the pictures, pixels."""
    charge: str | dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = "0"
    """Simulated time that passes while a chunk is computed, as `--charge-latency`: `40ms`; `1x`, of
    what one chunk takes on this machine alone; or milliseconds by arm, of each that is judged. 0:
    the world waits."""
    chunking: Chunking = "recommended"
    """How a late chunk takes over."""
    shift: str = "none"
    """What is other than in the recordings: `none`, `camera`, `colours`, `distractors`, `starts`, as
    far as the simulator offers it."""

    @field_validator("charge")
    @classmethod
    def _readable(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(value, dict):
            return value
        try:
            check_charge(value)
        except GwpError as error:
            raise ValueError(str(error).removeprefix("--charge-latency ")) from error
        if value != "0" and not value.endswith(("ms", "x")):
            raise ValueError(f"{value}: write the table here, as milliseconds by arm")
        return value

    @property
    def measured(self) -> bool:
        """Whether it needs to know how long this machine takes for a chunk."""
        return isinstance(self.charge, str) and self.charge.endswith("x")


class OpenLoopJudgement(_Judged):
    """Predicted against recorded actions."""

    kind: Literal["open-loop"]
    """Which judgement this is."""
    data: str
    """A set of the study that no stage sees."""


class VideoJudgement(_Judged):
    """Imagined against recorded frames, given the recorded actions, beside repeating the first
    frame: PSNR of all pixels and of those that move.
    """

    kind: Literal["video"]
    """Which judgement this is."""
    data: str
    """A set of the study that no stage sees."""
    clips: int = Field(default=24, gt=0)
    """Windows, of as many episodes."""


class LatencyJudgement(_Judged):
    """Time of one chunk for one robot, measured when nothing else of the study runs."""

    kind: Literal["latency"]
    """Which judgement this is."""
    benchmark: str = DEFAULT
    """The simulator, whose robot asks."""
    repeats: int = Field(default=30, gt=0)
    """Chunks; the median counts."""


Judgement = ClosedLoopJudgement | OpenLoopJudgement | VideoJudgement | LatencyJudgement
