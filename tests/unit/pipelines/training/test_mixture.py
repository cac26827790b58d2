"""Stages that mix samples with and without actions: whatever a rank has of a batch, all of them run
the same graph, and take the step that one rank takes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.training.samples.shares import positions_of
from tests.support import ranks
from tests.support.ranks import SIZE, Rank

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
