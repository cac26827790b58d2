"""The study document: what is compared, on which data, and by which measures."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gwp.errors import GwpError
from gwp.model.codecs.hashed import HashedConfig
from gwp.model.codecs.pca import PcaCodecConfig
from gwp.model.codecs.text import TextEncoderConfig
from gwp.model.codecs.video import VideoCodecConfig
from gwp.paths import Location
from gwp.sim.benchmarks import BENCHMARKS, DEFAULT
from gwp.storage.names import relative_name
from pipelines.config.errors import did_you_mean
from pipelines.studies.document.judgements import Judgement

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

STEPS_TO_ERROR = "steps-to-error"
"""Measure of a comparison: optimiser steps until the validation error of actions is reached."""


class SetConfig(BaseModel):
    """Recordings that the study needs; they are made by scripted experts where none are."""

    model_config = _CONFIG

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


class StageStep(BaseModel):
    """A stage file in a study, and what is other than in the file."""

    model_config = _CONFIG

    file: Location
    """A `kind: TrainJob`. Of its `data.sources`, those whose last folder is the name of a set of
    the study are read there."""
    set: dict[str, Any] = {}
    """Dotted field -> value, as `--set` of `gwp train`."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        return {"file": data} if isinstance(data, str) else data


class ArmConfig(BaseModel):
    """One way to train the last stage."""

    model_config = _CONFIG

    start: str | None = None
    """Which of `stages` its weights come from; None: random weights."""
    set: dict[str, Any] = {}
    """Dotted field of the stage file -> value, as `--set` of `gwp train`."""
    note: str = ""
    """A line about it, for the table's reader."""


class Comparison(BaseModel):
    """Two arms and what they are compared by, paired by seed and by start."""

    model_config = _CONFIG

    arms: tuple[str, str]
    """The first less the second; of steps, the second's over the first's."""
    measure: str
    """Name of a judgement; or `steps-to-error`: how many optimiser steps each took to a fixed
    error of actions on the validation samples of their stage file."""
    error: float | None = Field(default=None, gt=0)
    """For `steps-to-error`: the error, in units of a range; None: the worst that a seed of the second arm
    ends with."""
    unequal: tuple[str, ...] = ()
    """Fields of the stage file that may differ although they make arms unequal: `run.steps`,
    `engine.global_batch`, `data`. They are named beside the result."""


class Study(BaseModel):
    """Arms, seeds and numbers of demonstrations, each cell trained, judged and compared."""

    model_config = _CONFIG

    kind: Literal["Study"]
    """Kind of this document."""
    version: Literal[1]
    """Version of this kind."""
    name: str
    """Of the study: its folder below `storage`, and the MLflow experiment."""
    claim: str
    """What it shall show or refute, one sentence."""
    storage: Location = "runs/studies"
    """Folder or `s3://bucket/prefix` below which it keeps everything."""
    data: dict[str, SetConfig] = Field(min_length=1)
    """Sets by name; recorded where they are missing."""
    codec: VideoCodecConfig = PcaCodecConfig(kind="pca")
    """Video codec of all arms. A linear one is fitted once."""
    codec_data: tuple[str, ...] = ()
    """Sets that a linear codec is fitted on; empty: `labelled`. Others make another codec, and all
    cells anew."""
    text: TextEncoderConfig = HashedConfig(kind="hashed", dim=64, rows=8)
    """Text encoder of all arms."""
    set: dict[str, Any] = {}
    """Dotted field -> value, of every stage file."""
    stages: dict[str, tuple[StageStep, ...]] = {}
    """Sequences of stages that arms start from, trained once for each seed."""
    stage: StageStep
    """The last stage, which each cell trains."""
    labelled: str = "policy"
    """The set whose episodes are counted by `demonstrations`."""
    demonstrations: tuple[int, ...] = Field(min_length=1)
    """Episodes of each task that the last stage sees, ascending; fewer are among more."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Training seeds: of weights, plan, noise."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """What is compared, by name."""
    judge: tuple[Annotated[Judgement, Field(discriminator="kind")], ...] = Field(min_length=1)
    """How each cell is judged."""
    controls: tuple[Literal["random", "blind"], ...] = ("random", "blind")
    """Who else does the tasks of a closed loop, once for the study: chance, and an expert's actions
    from another start."""
    compare: tuple[Comparison, ...] = ()
    """Pairs of arms."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return _folder(name, "name")

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """Sets that a linear codec is fitted on."""
        return self.codec_data or (self.labelled,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if wrong := list(self._mistakes()):
            raise ValueError("; ".join(wrong))
        return self

    def _mistakes(self) -> Iterator[str]:
        for kind, names in (("data", self.data), ("stages", self.stages), ("arms", self.arms)):
            for name in names:
                _folder(name, f"{kind}.{name}")
        yield from self._wrong_sets()
        if self.labelled not in self.data:
            yield _unknown("labelled", self.labelled, self.data)
            return
        labelled = self.data[self.labelled]
        if not labelled.with_actions:
            yield f"labelled: {self.labelled} is recorded without actions"
        if list(self.demonstrations) != sorted({*self.demonstrations} - {0}):
            yield f"demonstrations: {list(self.demonstrations)} should ascend from 1 on"
        elif self.demonstrations[-1] > labelled.episodes:
            yield (
                f"demonstrations: {self.demonstrations[-1]} of each task, and data."
                f"{self.labelled}.episodes is {labelled.episodes}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            yield "seeds: name each once"
        for name, arm in self.arms.items():
            if arm.start is not None and arm.start not in self.stages:
                yield _unknown(f"arms.{name}.start", arm.start, self.stages)
        yield from self._wrong_judgements()
        for number, pair in enumerate(self.compare):
            yield from self._wrong_with(f"compare.{number}", pair)

    def _wrong_sets(self) -> Iterator[str]:
        for name, one in self.data.items():
            if one.benchmark not in BENCHMARKS:
                yield _unknown(f"data.{name}.benchmark", one.benchmark, BENCHMARKS)
        for name in self.codec_data:
            if name not in self.data:
                yield _unknown("codec_data", name, self.data)

    def _wrong_judgements(self) -> Iterator[str]:
        judged = [judgement.name for judgement in self.judge]
        if len(set(judged)) < len(judged):
            yield f"judge: {', '.join(judged)}: give each another name"
        for judgement in self.judge:
            for where, word, known in judgement.names(self.data, self.arms):
                if word not in known:
                    yield _unknown(f"judge.{judgement.name}.{where}", word, known)
            yield from self._wrong_judgement(judgement)

    def _wrong_judgement(self, judgement: Judgement) -> Iterator[str]:
        where = f"judge.{judgement.name}"
        charge = getattr(judgement, "charge", None)
        judged = [arm for arm in self.arms if judgement.of(arm)]
        if isinstance(charge, dict) and (free := [arm for arm in judged if arm not in charge]):
            yield f"{where}.charge: says nothing of {', '.join(free)}; 0 charges nothing"
        name = getattr(judgement, "data", None)
        if name in self.data and not self.data[name].with_actions:
            yield f"{where}.data: {name} is recorded without actions"

    def _wrong_with(self, where: str, pair: Comparison) -> Iterator[str]:
        for arm in pair.arms:
            if arm not in self.arms:
                yield _unknown(f"{where}.arms", arm, self.arms)
        if pair.arms[0] == pair.arms[1]:
            yield f"{where}.arms: {pair.arms[0]} with itself"
        known = {judgement.name: judgement for judgement in self.judge}
        if pair.measure != STEPS_TO_ERROR and pair.measure not in known:
            yield _unknown(f"{where}.measure", pair.measure, [*known, STEPS_TO_ERROR])
        judgement = known.get(pair.measure)
        if judgement and (missing := [arm for arm in pair.arms if not judgement.of(arm)]):
            yield f"{where}.measure: {pair.measure} does not judge {', '.join(missing)}"


def _folder(name: str, field: str) -> str:
    try:
        # Of cells and runs: one name, not a path.
        if "/" in relative_name(name, field):
            raise ValueError(f"{field}: a plain name, without a slash")
    except GwpError as error:
        raise ValueError(str(error)) from error
    return name


def _unknown(where: str, word: str, known: Any) -> str:
    names = ", ".join(known) or "none"
    return f"{where}: '{word}' is unknown{did_you_mean(word, known)}; there are: {names}"
