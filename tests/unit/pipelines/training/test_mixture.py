"""Stages that mix samples with and without actions, in batches of one kind or of both: whatever a
rank has of a batch, all of them run the same graph, and take the step that one rank takes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gwp.model.draws import draw_noise
from gwp.model.objective import (
    ModesConfig,
    ObjectiveConfig,
    action_weights,
    counts_of,
    levels_of,
    training_losses,
)
from pipelines.training.samples.shares import positions_of
from tests.support import ranks
from tests.support.ranks import CHUNK, DIMS, SEED, SIZE, Encoded, Rank, columns
from tests.support.tiny import tiny_model

TOLERANCE = 2e-5
STEPS = 3
SECOND = positions_of(0, SIZE, 1, 2)
"""Places of a batch that the second of two ranks has."""


def unreadable(_: int, raw: Any) -> None:
    """Nothing of them could be read: zeros hold their places."""
    rows = np.isin(raw["position"] % SIZE, SECOND)
    raw["ok"][rows] = raw["has_action"][rows] = False
    raw["step_valid"][rows] = raw["dim_valid"][rows] = False
    for name in ("latents", "state", "actions"):
        raw[name][rows] = 0


def unlabelled(_: int, raw: Any) -> None:
    """Video without actions."""
    rows = np.isin(raw["position"] % SIZE, SECOND)
    raw["has_action"][rows] = raw["step_valid"][rows] = raw["dim_valid"][rows] = False
    raw["state"][rows] = raw["actions"][rows] = 0


def alternating(step: int, raw: Any) -> None:
    """As a plan gives them: batches with actions, and batches without."""
    if step % 2:
        raw["has_action"][:] = raw["step_valid"][:] = raw["dim_valid"][:] = False
        raw["state"][:] = raw["actions"][:] = 0


KINDS = {f.__name__: f for f in (unreadable, unlabelled, alternating)}


def steps(rank: Rank, stages: list[int]) -> list[list[Any]]:
    told = []
    for stage in stages:
        for change in KINDS.values():
            rank.start(stage, "objective.modes={video: 0, ac_wm: 1, wam: 1}")
            told.append(rank.take(range(STEPS), change))
    return told


def scattered(step: int, raw: Any) -> None:
    """As a plan of mixed batches gives them: one of three without actions, then all of a rank."""
    if step == 1:
        unlabelled(step, raw)
        return
    rows = (raw["position"] % 3 == step % 3) & raw["ok"]
    raw["has_action"][rows] = raw["step_valid"][rows] = raw["dim_valid"][rows] = False
    # Nobody may look at these.
    raw["state"][rows] = raw["actions"][rows] = np.nan


def mixed(rank: Rank, stages: list[int]) -> list[list[Any]]:
    told = []
    for stage in stages:
        micro = f"engine.micro_batch={(8, 3, 8, 2)[stage]}"
        rank.start(stage, "data.batches=mixed", micro)
        told.append(rank.take(range(STEPS), scattered))
    return told


def by_hand() -> list[dict[str, float]]:
    """The losses of these batches, each kind in passes of its own."""
    model = tiny_model().train()
    objective = ObjectiveConfig(modes=ModesConfig(video=1, ac_wm=1, wam=3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, (0.9, 0.999), weight_decay=0.01)
    told = []
    for step in range(STEPS):
        raw: Any = columns(step)
        scattered(step, raw)
        batch = Encoded().batch(raw, slice(None))
        positions = range(SIZE * step, SIZE * (step + 1))
        labelled = (raw["has_action"] | ~raw["ok"]).tolist()
        levels = levels_of(objective, SEED, positions, CHUNK, labelled)
        noise = draw_noise(SEED, positions, (4, 1, 6, 4), (CHUNK, DIMS))
        weights = action_weights(objective, levels, batch.step_valid, batch.dim_valid, batch.ok)
        counts = counts_of(weights, batch.ok)
        optimizer.zero_grad(set_to_none=False)
        sums: dict[str, float] = {}
        for i in np.flatnonzero(raw["ok"]).tolist():
            one = slice(i, i + 1)
            losses = training_losses(
                model,
                Encoded().batch(raw, one),
                objective,
                bool(levels.video_only[i]),
                levels.of(one),
                (noise[0][one], noise[1][one]),
                counts,
            )
            (losses.total + 0 * sum(p.sum() for p in model.parameters())).backward()
            for name, part in (
                ("loss", losses.total),
                ("loss_action", losses.action),
                ("loss_video", losses.video),
            ):
                if part is not None:
                    sums[name] = sums.get(name, 0.0) + float(part.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        told.append(sums)
    return told


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_mixed_batches_are_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    stages = [1, 2, 3]
    expected = by_hand()
    # The last one has no actions at all, so nobody computes any.
    assert [len(losses) for losses in expected] == [3, 3, 2]
    for world in (1, 2):
        for stage, told in zip(
            stages, ranks.run(mixed, world, tmp_path / str(world), stages), strict=True
        ):
            for got, want in zip(told, expected, strict=True):
                assert got == pytest.approx(want, abs=TOLERANCE), (world, stage)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_without_an_action_takes_the_same_step(tmp_path: Path) -> None:
    """A rank that ran another graph would wait for ever for gradients, and fail by the time limit."""
    stages = [1, 2, 3]
    alone = ranks.run(steps, 1, tmp_path / "1", stages)
    two = ranks.run(steps, 2, tmp_path / "2", stages)
    names = [(stage, kind) for stage in stages for kind in KINDS]
    for name, one, other in zip(names, alone, two, strict=True):
        for got, want in zip(other, one, strict=True):
            assert got == pytest.approx(want, abs=TOLERANCE), name
    # A batch without any action has no loss of actions, all others have one.
    seen = {kind: [set(x) for x in alone[i]] for i, kind in enumerate(KINDS)}
    whole = {"loss", "loss_action", "loss_video"}
    assert seen["unreadable"] == [whole] * 2 + [{"loss", "loss_video"}]
    assert seen["alternating"][1] == {"loss", "loss_video"}
