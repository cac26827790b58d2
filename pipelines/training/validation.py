"""The loss on samples that a run does not train on.

The training loop asks for it at its checkpoints, or a process beside it (`pipelines.training.judge`).
It is that of the objective, with noise that is the same at every checkpoint and on any number of
workers, so two figures of a run differ by its weights alone.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gwp.data.decode import SampleSpec
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.manifest import Manifest
from gwp.data.records import Share
from gwp.model.draws import Levels, draw_noise
from gwp.model.objective import (
    Batch,
    Counts,
    action_weights,
    counts_of,
    levels_of,
    training_losses,
)
from gwp.model.transformer import WorldActionTransformer
from pipelines.training.engine.ranks import Ranks
from pipelines.training.measure.judged import SUMS, Judged, moved, named
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.decoder import block, decode_block
from pipelines.training.samples.encoders import Encoders

# Behind every position of a plan: the noise of no sample that trains.
_POSITIONS = 1 << 48
NAMES = ("loss", "loss_action", "loss_video")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """What a share has of one pass, on the CPU."""

    batch: Batch
    positions: list[int]
    levels: Levels
    video_only: bool


@dataclass(frozen=True)
class Dealt:
    """Into how many shares the samples are dealt, and which of them this process has: one for each
    worker. Who judges alone has all of them, one after another, as the workers would have had them.
    """

    world: int
    own: Sequence[int]


class Validation:
    """The samples that a run is judged by, encoded once; who judges makes it.

    picture: real frames above imagined ones, uint8 `[h, w, 3]`, of the newest `figures`
    """

    def __init__(
        self,
        prepared: PreparedRun,
        ranks: Ranks,
        model: WorldActionTransformer,
        device: torch.device,
        encoders: Encoders,
        dealt: Dealt | None = None,
    ) -> None:
        """Collective. model: whose weights are judged, as they are at each call, on the device;
        encoders: those of frames, also where training reads a cache; dealt: None, a share a rank
        """
        assert prepared.validation is not None
        job = prepared.job
        self._ranks = ranks
        self._model, self._device = model, device
        self._objective = job.objective
        self._seed = job.run.seed
        self._dealt = dealt or Dealt(ranks.world, [ranks.rank])
        world = self._dealt.world
        # As many at a time as training takes: they fit.
        most = job.share(world)
        size = min(job.engine.micro_batch or most, most)
        spec = replace(prepared.spec, augment=False)
        reader = FileReader()
        looked_at = job.validation.looked_at if job.validation else 0
        own = self._dealt.own if looked_at else ()
        sees = job.model_config_.visibility
        self._judged = {s: Judged(job.objective, spec, encoders.decode, sees) for s in own}
        acts = prepared.validation.column("has_action").any()
        self._parts = []
        action = video = 0.0
        for ids, real, labelled in passes(prepared.validation, world, size):
            for share in self._dealt.own:
                # Those beyond the last one hold a place, so that all ranks have as many passes. Who
                # is alone needs none.
                rows = slice(0, int(real[share].sum()) if dealt else None)
                mine, counted = ids[share][rows], real[share][rows]
                if not len(mine):
                    continue
                raw = self._decoded(prepared, mine, spec, reader)
                raw["ok"] &= counted
                positions = [_POSITIONS + i for i in mine.tolist()]
                part = self._part(raw, positions, labelled, encoders)
                # Where there are robots they are looked at, else the first videos.
                judged = self._judged.get(share)
                if judged and judged.wanted and (labelled or not acts):
                    self._look_at(prepared, raw, part, counted, looked_at, share)
                counts = self._counts(part)
                action += counts.action
                video += counts.video
                self._parts.append(part)
        self._counts_of_all = Counts(*ranks.summed([action, video]))

    @property
    def picture(self) -> np.ndarray | None:
        return next((judged.picture for judged in self._judged.values()), None)

    def _decoded(
        self, prepared: PreparedRun, ids: np.ndarray, spec: SampleSpec, reader: FileReader
    ) -> Any:
        """Samples of these rows, as the stream has them."""
        assert prepared.validation is not None
        size = len(ids)
        share: Share = {"first": 0, "batch": size, "rows": size, "ids": ids.tolist()}
        raw: Any = decode_block(block(prepared.validation, None, share), spec, None, reader)
        told = zip(raw["sample_id"][~raw["ok"]], raw["reason"][~raw["ok"]], strict=True)
        for name, reason in dict(told).items():
            logger.warning("%s: no sample to validate by: %s", name, reason)
        return raw

    def _look_at(
        self,
        prepared: PreparedRun,
        raw: Any,
        part: _Part,
        real: np.ndarray,
        most: int,
        share: int,
    ) -> None:
        """Have the first `most` samples of a pass, over all shares, acted on and imagined."""
        world = self._dealt.world
        # Of one alone it cannot be asked what another's actions do to it.
        rows = slice(0, min(max(2, -(-most // world)), len(real)))
        # One sample after the other is dealt to the shares.
        numbers = np.arange(len(real[rows])) * world + share
        counts = real[rows] & raw["ok"][rows].astype(bool) & (numbers < max(most, 2 * world))
        batch = moved(part.batch, torch.device("cpu"), rows)
        future, actions = batch.latents[0, :, 1:].shape, batch.actions.shape[1:]
        noise = draw_noise(self._seed, part.positions[rows], future, actions)
        ids = [position - _POSITIONS for position in part.positions[rows]]
        assert prepared.validation is not None
        robots = [row["embodiment"] for row in prepared.validation.rows(ids)]
        judged = self._judged[share]
        judged.add(raw["frames"][rows], batch, robots, counts, noise, part.video_only)

    def _part(self, raw: Any, positions: list[int], labelled: bool, encoders: Encoders) -> _Part:
        batch = moved(encoders.batch(raw, slice(None)), torch.device("cpu"))
        modes = self._objective.modes
        return _Part(
            batch,
            positions,
            levels_of(self._objective, self._seed, positions, batch.actions.shape[1]),
            # A stage that never looks at actions is not judged by them.
            not labelled or modes.ac_wm + modes.wam == 0,
        )

    def _counts(self, part: _Part) -> Counts:
        batch = part.batch
        weights = action_weights(
            self._objective, part.levels, batch.step_valid, batch.dim_valid, batch.ok
        )
        counts = counts_of(weights, batch.ok)
        return Counts(0.0, counts.video) if part.video_only else counts

    def losses(self) -> dict[str, float]:
        """`loss`, `loss_action` and `loss_video` of the weights as they are now, without those
        that the samples do not have; none when no sample can be read. Collective.
        """
        counts = self._counts_of_all
        sums = dict.fromkeys(NAMES, 0.0)
        with self._at_rest(), torch.no_grad():
            for part in self._parts:
                self._add(part, sums)
        told = dict(zip(NAMES, self._ranks.summed([sums[name] for name in NAMES]), strict=True))
        if not counts.video:
            return {}
        if not counts.action:
            del told["loss_action"]
        if self._objective.video_weight == 0:
            del told["loss_video"]
        return told

    def figures(self) -> dict[str, float]:
        """What it does and imagines, by name: see `measure.judged`. Collective."""
        if not self._judged:
            return {}
        sums = [0.0] * SUMS
        with self._at_rest():
            for judged in self._judged.values():
                found = judged.sums(self._model, self._device)
                sums = [a + b for a, b in zip(sums, found, strict=True)]
        return named(self._ranks.summed(sums))

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """The model as it acts while the block runs."""
        self._model.eval()
        try:
            yield
        finally:
            self._model.train()

    def _add(self, part: _Part, sums: dict[str, float]) -> None:
        batch = moved(part.batch, self._device)
        future, actions = batch.latents[0, :, 1:].shape, batch.actions.shape[1:]
        result = training_losses(
            self._model,
            batch,
            self._objective,
            part.video_only,
            part.levels,
            draw_noise(self._seed, part.positions, future, actions),
            self._counts_of_all,
        )
        for name, value in zip(NAMES, (result.total, result.action, result.video), strict=True):
            sums[name] += 0.0 if value is None else float(value)


def passes(manifest: Manifest, world: int, size: int) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """The samples of a manifest in passes that all ranks take together: row of each int
    `[world, size]`, which of them count bool `[world, size]`, and whether they have actions.
    Those of one pass have one shape.
    """
    names = ("kind", "bucket", "has_action")
    shapes = list(zip(*(manifest.column(name).tolist() for name in names), strict=True))
    found = []
    for shape in dict.fromkeys(shapes):
        rows = np.flatnonzero([other == shape for other in shapes])
        count = -(-len(rows) // (world * size))
        places = np.arange(count * world * size)
        # One sample after the other to the ranks, so that a short pass is short on all.
        dealt = places.reshape(count, size, world).swapaxes(1, 2)
        ids = rows[dealt % len(rows)]
        found += [(i, r, bool(shape[2])) for i, r in zip(ids, dealt < len(rows), strict=True)]
    return found
