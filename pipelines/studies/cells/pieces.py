"""The pieces of work that a study is made of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from gwp.data.source import Source
from gwp.errors import GwpError
from pipelines.jobs.train_job import TrainJob
from pipelines.studies.cells.hashes import codec_place, digest, place_of, recordings
from pipelines.studies.cells.sets import source_of
from pipelines.studies.document.judgements import ClosedLoopJudgement, Judgement
from pipelines.studies.document.study import Study


@dataclass(frozen=True)
class Shared:
    """A sequence of stages that cells start from. id: `stages/NAME`, its folder below the study's"""

    id: str
    jobs: tuple[TrainJob, ...]
    seed: int
    hash: str


@dataclass(frozen=True)
class Cell:
    """One arm with one number of demonstrations and one training seed.

    demonstrations: None: all; parent: id of the `Shared` that it starts from; hash: of all that
    makes its policy
    """

    id: str
    arm: str
    demonstrations: int | None
    seed: int
    job: TrainJob
    parent: str | None
    hash: str


@dataclass(frozen=True)
class Control:
    """Somebody who knows nothing, on the tasks of a closed loop. names: of the judgements, `judgement`
    one of them, that are the same to it
    """

    id: str
    agent: str
    judgement: ClosedLoopJudgement
    names: tuple[str, ...]
    hash: str


Piece = Shared | Cell | Control


def piece_id(name: str, count: int | None, seed: int) -> str:
    """Of an arm or a shared stage. count: demonstrations that it sees; None: all, or none of them"""
    return f"{name}-s{seed}" if count is None else f"{name}-d{count}-s{seed}"


@dataclass(frozen=True)
class StudyPlan:
    """All pieces of a study, by id, those first that others start from.

    study: as it is run, scaled; root: its folder; common: that of all studies of its storage
    """

    study: Study
    root: str
    common: str
    shared: Mapping[str, Shared]
    cells: Mapping[str, Cell]
    controls: Mapping[str, Control]

    @property
    def pieces(self) -> dict[str, Piece]:
        """All of them by id."""
        return {**self.shared, **self.cells, **self.controls}

    def place(self, name: str) -> str:
        """Folder of the set of this name."""
        return place_of(self.study, self.common, name)

    def source(self, name: str) -> Source:
        """All of the set of this name."""
        return source_of(self.study, self.common, name)

    @property
    def codec(self) -> str:
        """Folder of the codec and the text encoder of all arms."""
        return codec_place(self.study, self.common)

    @property
    def jobs(self) -> list[TrainJob]:
        """Of every stage and cell."""
        before = [job for piece in self.shared.values() for job in piece.jobs]
        return [*before, *(cell.job for cell in self.cells.values())]

    @property
    def seen(self) -> set[str]:
        """Names of the sets that something of the study reads."""
        study = self.study
        named = {name for one in study.judge if (name := getattr(one, "data", None))}
        uris = {source.uri for job in self.jobs for source in job.data.sources}
        for job in self.jobs:
            uris |= {source.uri for source in job.validation.sources} if job.validation else set()
        read = {name for name in study.data if self.place(name) in uris}
        return {*named, *study.fitted_on, study.labelled} | read

    def judgement_hash(self, cell: Cell, judgement: Judgement) -> str:
        """Of all that makes a judgement of a cell, its policy included."""
        asked = judgement.model_dump(mode="json", exclude={"name", "arms"})
        if isinstance(charge := asked.get("charge"), dict):
            asked["charge"] = charge.get(cell.arm, 0.0)
        name = getattr(judgement, "data", None)
        return digest(cell.hash, asked, recordings(self.study.data[name]) if name else None)

    def chosen(self, only: Iterable[str]) -> "StudyPlan":
        """With those cells alone whose id fits one of the patterns, and what they start from.
        GwpError when a pattern fits none.
        """
        patterns = list(only)
        if not patterns:
            return self
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.cells):
                some = ", ".join(list(self.cells)[:4])
                raise GwpError(f"--only {pattern}: no cell has this id; they are {some}, ...")
        cells = {
            name: cell
            for name, cell in self.cells.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        needed = {cell.parent for cell in cells.values()}
        shared = {name: piece for name, piece in self.shared.items() if name in needed}
        return replace(self, shared=shared, cells=cells)
