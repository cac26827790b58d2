"""Which recordings a study is made of: recorded for it, or there already."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from gwp.data.source import Source
from gwp.paths import Location
from gwp.sim.benchmarks import DEFAULT


class SetConfig(BaseModel):
    """Recordings that the study needs; they are made by scripted experts where none are. A set
    without `tasks` is one that is there, and written as a source of a stage file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    uri: Location | None = None
    """Where they lie, or are recorded to when nothing is there; None: in the folder that the
    studies of one storage share."""
    benchmark: str = DEFAULT
    """Which simulator they are recorded in: `metaworld`, `metaworld-wide`, `ogbench`, `aloha`,
    `libero-object`, `libero-spatial`."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks; episodes of the set alternate among them."""
    episodes: int = Field(gt=0)
    """Successful episodes of each task."""
    seed: int = Field(ge=0)
    """First seed of the starts. Four are set aside for each episode: keep those of sets apart."""
    size: int = 64
    """Side of the pictures, pixels."""
    noise: float | None = None
    """Standard deviation of the noise on executed actions; None: as the simulator has it."""
    max_steps: int | None = None
    """Control steps after which an attempt of the expert has failed; None: those of the simulator."""
    with_actions: bool = True
    """Record states and actions; off: pictures alone."""


_RECORDED, _THERE = SetConfig.__name__, Source.__name__
_OF_RECORDED = set(SetConfig.model_fields) - set(Source.model_fields)


def _kind(given: Any) -> str:
    """What is to be recorded says how: tasks, seed, size."""
    if isinstance(given, BaseModel):
        return type(given).__name__
    return _THERE if isinstance(given, Mapping) and _OF_RECORDED.isdisjoint(given) else _RECORDED


# Named as the classes, by which mistakes in them are told.
StudySet = Annotated[
    Annotated[SetConfig, Tag(_RECORDED)] | Annotated[Source, Tag(_THERE)], Discriminator(_kind)
]
