"""From the document to pieces of work: which stages and cells there are, what each of them is in
full, and a hash of all that makes it.
"""

import json
from collections.abc import Iterable
from itertools import product
from typing import Any

import torch

from gwp import storage
from gwp.errors import GwpError
from gwp.model.transformer import WorldActionTransformer
from pipelines.config.load import ConfigError, load_config, resolved
from pipelines.jobs.sequence import require_sequence
from pipelines.jobs.train_job import TrainJob
from pipelines.studies.cells.hashes import (
    SHORT,
    cache_hash,
    codec_place,
    digest,
    hash_of,
    without,
)
from pipelines.studies.cells.pieces import Cell, Control, Shared, StudyPlan, piece_id
from pipelines.studies.cells.sets import key, placed, source_of, uncut
from pipelines.studies.document.judgements import ClosedLoopJudgement
from pipelines.studies.document.scale import scaled, scaled_job
from pipelines.studies.document.study import StageStep, Study

# What the study says of every run.
_OURS = (
    "run.name",
    "run.storage",
    "run.experiment",
    "run.seed",
    "init",
    "codec",
    "text",
    "data.cache",
)
# Latents are of centre crops.
_OF_PICTURES = ("data.augment", "data.zoom", "data.light")
COMMON = "common"
"""Folder beside those of the studies."""
EQUAL = ("run.steps", "engine.global_batch", "data")
"""Fields in which the arms of a comparison have to agree."""


def make_plan(study: Study, factor: float = 1.0) -> StudyPlan:
    """All pieces of the study. factor: how much of it is done (`--scale`).

    ConfigError with every mistake in the stages and arms; GwpError when arms that are compared are
    not equal where they have to be, or a model does not fit the one it starts from.
    """
    study = scaled(study, factor)
    place = storage.absolute(study.storage)
    root, common = storage.join(place, study.name), storage.join(place, COMMON)
    build = _Build(study, common, factor)
    cells: dict[str, Cell] = {}
    problems: list[str] = []
    for arm in study.arms:
        try:
            for count, seed in product(study.counts, study.seeds):
                cell = build.cell(arm, count, seed)
                cells[cell.id] = cell
        except ConfigError as error:
            # The mistakes of all arms are told at once.
            problems += error.lines
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    plan = StudyPlan(study, root, common, build.shared, cells, _controls(study))
    for cell in cells.values():
        if cell.parent:
            require_sequence([*plan.shared[cell.parent].jobs, cell.job])
    _require_equal(plan)
    return plan


class _Build:
    """Makes cells, and what they start from; ConfigError with what is wrong in a stage or an arm.

    common: folder of all that studies of one storage share
    """

    def __init__(self, study: Study, common: str, factor: float) -> None:
        self.study, self.common, self.factor = study, common, factor
        self.cached = study.train_from == "latents"
        self.shared: dict[str, Shared] = {}

    def cell(self, arm: str, count: int | None, seed: int) -> Cell:
        study, config = self.study, self.study.arms[arm]
        parent = self._parent(config.start, count, seed) if config.start else None
        name = piece_id(arm, count, seed)
        step = StageStep(file=study.stage.file, set={**study.stage.set, **config.set})
        init = parent.jobs[-1].run.name if parent and parent.jobs else None
        job = self._job(f"arms.{arm}", step, name, seed, init, count)
        whole = hash_of(job, study, self.common, parent.hash if parent else None)
        # Without the arm: the same cell of another arm or study is the same run.
        own = f"s{seed}" if count is None else f"d{count}-s{seed}"
        job = _named(job, f"{own}-{whole[:SHORT]}")
        return Cell(name, arm, count, seed, job, parent.id if parent else None, whole)

    def _parent(self, start: str, count: int | None, seed: int) -> Shared:
        """Trained once for each seed; once for each number of demonstrations, too, where it sees
        some of them.
        """
        steps = self.study.stages[start]
        plain = [
            self._job(f"stages.{start}", step, f"{start}-s{seed}", seed, None, None)
            for step in steps
        ]
        labelled = key(self.study, source_of(self.study, self.common, self.study.labelled))
        seen = [key(self.study, source) for job in plain for source in job.data.sources]
        sees = labelled in seen
        name = piece_id(start, count if sees else None, seed)
        # Names have no slash, so that no cell is called like it.
        piece = f"stages/{name}"
        if piece in self.shared:
            return self.shared[piece]
        jobs: list[TrainJob] = []
        whole = None
        for number, step in enumerate(steps, start=1):
            where, own = f"stages.{start}", f"{name}-{number}"
            before = jobs[-1].run.name if jobs else None
            job = self._job(where, step, own, seed, before, count if sees else None)
            whole = hash_of(job, self.study, self.common, whole)
            jobs.append(_named(job, f"{own}-{job.stage}-{whole[:SHORT]}"))
        self.shared[piece] = Shared(piece, tuple(jobs), seed, whole or digest())
        return self.shared[piece]

    def _job(
        self, where: str, step: StageStep, name: str, seed: int, init: str | None, count: int | None
    ) -> TrainJob:
        """A stage as the study runs it. count: demonstrations of the labelled set; None: all"""
        study = self.study
        given = {**study.set, **step.set}
        if taken := _taken(given, _OURS):
            text = f"{where}.set: the study itself says {', '.join(taken)}; remove it"
            raise ConfigError([text])
        if study.train_from == "latents" and (of := _taken(given, _OF_PICTURES)):
            text = (
                f"{where}.set: {', '.join(of)} would need the study to say `train_from: pictures`"
            )
            raise ConfigError([text])
        first = init is None
        fields = given | {
            "run.name": name,
            "run.storage": storage.join(self.common, "runs"),
            "run.experiment": study.name,
            "run.seed": seed,
            "init": init,
            "codec": self._codec() if first else None,
            "text": study.text.model_dump(mode="json") if first else None,
        }
        fields |= {"data.augment": False} if self.cached else {"data.cache": None}
        sets = [f"{field}={json.dumps(value)}" for field, value in fields.items()]
        try:
            job = load_config(step.file, TrainJob, sets)
        except ConfigError as error:
            raise ConfigError([f"{where}: {line}" for line in error.lines]) from error
        try:
            return self._placed(scaled_job(job, self.factor), count)
        except ValueError as error:
            raise ConfigError([f"{where}: {error}"]) from error

    def _codec(self) -> dict[str, Any]:
        """The one codec of all arms. With latents it comes from where they lie."""
        codec = self.study.codec.model_dump(mode="json")
        if self.cached or self.study.codec.kind != "pca":
            return codec
        return codec | {"saved": storage.join(codec_place(self.study, self.common), "codec")}

    def _placed(self, job: TrainJob, count: int | None) -> TrainJob:
        """With the sets of the study where sources name them, and the cache of what it reads.
        ValueError: as of `placed`.
        """
        study, common = self.study, self.common
        sources = tuple(placed(study, common, source, count) for source in job.data.sources)
        update: dict[str, Any] = {"sources": sources}
        if self.cached:
            whole = tuple(uncut(study, source) for source in sources)
            data = job.data.model_copy(update={"sources": whole})
            update["cache"] = storage.join(common, "cache", cache_hash(data, study, common))
        data = job.data.model_copy(update=update)
        validation = job.validation
        if validation:
            judged = tuple(placed(study, common, source, None) for source in validation.sources)
            validation = validation.model_copy(update={"sources": judged})
        return job.model_copy(update={"data": data, "validation": validation})


def _taken(given: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those of the fields given that are, hold, or are in one of some names."""
    return [field for field in given if any(_same(field, name) for name in names)]


def _same(key: str, ours: str) -> bool:
    return key == ours or key.startswith(f"{ours}.") or ours.startswith(f"{key}.")


def _named(job: TrainJob, name: str) -> TrainJob:
    return job.model_copy(update={"run": job.run.model_copy(update={"name": name})})


def _controls(study: Study) -> dict[str, Control]:
    """One for each agent and different closed loop."""
    found: dict[str, Control] = {}
    for judgement in study.judge:
        if not isinstance(judgement, ClosedLoopJudgement):
            continue
        # Neither solver nor latency is theirs.
        fields = {"benchmark", "tasks", "episodes", "max_steps", "size", "shift"}
        whole = digest(judgement.model_dump(mode="json", include=fields))
        for agent in study.controls:
            name = f"{agent}-{whole[:SHORT]}"
            names = found[name].names if name in found else ()
            found[name] = Control(name, agent, judgement, (*names, judgement.name), whole)
    return found


def parameters(job: TrainJob) -> int:
    """How many numbers its model has."""
    # On the meta device, so that a model is counted that this machine could not hold.
    with torch.device("meta"):
        return sum(p.numel() for p in WorldActionTransformer(job.model_config_).parameters())


def _require_equal(plan: StudyPlan) -> None:
    """GwpError where arms of a comparison differ in what has to be equal, and it is not said."""
    for pair in plan.study.compare:
        a, b = (
            next(cell.job for cell in plan.cells.values() if cell.arm == arm) for arm in pair.arms
        )
        for field in differences(a, b):
            if field not in pair.unequal:
                raise GwpError(
                    f"compare: {pair.arms[0]} and {pair.arms[1]} differ in {field}; make them equal, "
                    f"or name it in `unequal` of this comparison"
                )


def differences(a: TrainJob, b: TrainJob) -> list[str]:
    """Fields of `EQUAL` in which two jobs differ."""
    found = []
    for field in EQUAL:
        one, other = (without(resolved(job), ("data.cache",)) for job in (a, b))
        for name in field.split("."):
            one, other = one[name], other[name]
        if one != other:
            found.append(field)
    return found
