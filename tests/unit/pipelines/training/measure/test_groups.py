"""Losses by group are means over the samples of the group, and together those of the objective."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gwp.model.draws import draw_noise
from gwp.model.objective import (
    ModesConfig,
    ObjectiveConfig,
    counts_of,
    levels_of,
    training_losses,
)
from pipelines.training.measure.groups import GroupedLosses, source_names
from tests.support.ranks import CHUNK, DIMS, SEED, SIZE, Encoded, columns
from tests.support.tiny import tiny_model

OBJECTIVE = ObjectiveConfig(
    modes=ModesConfig(video=1, ac_wm=1, wam=2), action_weight=5, video_weight=0.5
)


def taken(
    steps: list[int], size: int = SIZE, objective: ObjectiveConfig = OBJECTIVE
) -> tuple[list[float], dict[str, float], list[dict[str, float]]]:
    """Sums over steps in micro-batches of a size, what is told of them, and the losses of each."""
    model = tiny_model()
    groups = GroupedLosses(objective, ["left", "right"])
    found = []
    for step in steps:
        raw = columns(step)
        positions = list(range(SIZE * step, SIZE * (step + 1)))
        levels = levels_of(objective, SEED, positions, CHUNK)
        noise = draw_noise(SEED, positions, (4, 1, 6, 4), (CHUNK, DIMS))
        for start in range(0, SIZE, size):
            rows = slice(start, start + size)
            with torch.no_grad():
                losses = training_losses(
                    model,
                    Encoded().batch(raw, rows),
                    objective,
                    # That batch has no actions.
                    step == 2,
                    levels.of(rows),
                    (noise[0][rows], noise[1][rows]),
                )
            groups.add(losses, levels.of(rows), raw["source"][rows])
            found.append({"total": float(losses.total), "video": float(losses.video or 0)})
    sums = groups.sums()
    assert len(sums) == groups.length
    return sums, groups.told(sums), found


def test_all_of_one_mode_is_the_loss_of_the_objective() -> None:
    for step, name in ((2, "video"), (0, "wam")):
        modes = ModesConfig(video=0, ac_wm=0, wam=1)
        objective = OBJECTIVE.model_copy(update={"modes": modes})
        _, told, (losses,) = taken([step], objective=objective)
        assert {key for key in told if "/mode/" in key} == {f"loss/mode/{name}"}
        assert told[f"loss/mode/{name}"] == pytest.approx(losses["total"], rel=1e-5)


def test_sums_do_not_depend_on_micro_batches() -> None:
    whole, told, _ = taken([0, 1, 2])
    parts, _, _ = taken([0, 1, 2], size=2)
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert {"loss/mode/video", "loss/mode/ac_wm", "loss/mode/wam"} <= told.keys()
    assert {"loss/source/left", "loss/source/right"} <= told.keys()


def test_each_group_is_the_mean_over_its_own_samples() -> None:
    """By hand, sample after sample: those of one source, of one step without actions."""
    _, told, found = taken([2], size=1)
    raw = columns(2)
    for number, name in enumerate(("left", "right")):
        mine = [
            losses["video"]
            for losses, source, ok in zip(found, raw["source"], raw["ok"], strict=True)
            if source == number and ok
        ]
        assert told[f"loss/source/{name}"] == pytest.approx(0.5 * np.mean(mine), rel=1e-5)
    levels = levels_of(OBJECTIVE, SEED, range(2 * SIZE, 3 * SIZE), CHUNK).future.numpy()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        mine = [
            losses["video"]
            for losses, level, ok in zip(found, levels, raw["ok"], strict=True)
            if low <= level < low + 0.2 and ok
        ]
        name = f"loss/noise/video/{low:g}"
        assert (name in told) is bool(mine)
        if mine:
            assert told[name] == pytest.approx(np.mean(mine), rel=1e-5)


def test_samples_of_a_mixed_pass_have_modes_of_their_own() -> None:
    """By hand: each is the same in a pass of its mode."""
    raw, positions = columns(1), range(SIZE)
    labelled = [i % 3 > 0 for i in positions]
    levels = levels_of(OBJECTIVE, SEED, positions, CHUNK, labelled)
    noise = draw_noise(SEED, positions, (4, 1, 6, 4), (CHUNK, DIMS))
    groups = GroupedLosses(OBJECTIVE, ["left", "right"])
    batch = Encoded().batch(raw, slice(None))
    with torch.no_grad():
        losses = training_losses(tiny_model(), batch, OBJECTIVE, False, levels, noise)
        alone = training_losses(tiny_model(), batch, OBJECTIVE, True, levels, noise)
    groups.add(losses, levels, raw["source"])
    told = groups.told(groups.sums())
    assert losses.video_each is not None
    assert alone.video_each is not None
    rows = levels.video_only & batch.ok
    assert 0 < rows.sum() < SIZE
    assert told["loss/mode/video"] == pytest.approx(
        0.5 * float(alone.video_each[rows].mean()), rel=1e-5
    )
    given = ~levels.learnt.any(1) & ~levels.video_only & batch.ok
    assert given.any()
    assert told["loss/mode/ac_wm"] == pytest.approx(
        0.5 * float(losses.video_each[given].mean()), rel=1e-5
    )


def test_what_is_no_number_and_what_stands_for_no_sample_is_left_out() -> None:
    raw = columns(0)
    levels = levels_of(OBJECTIVE, SEED, range(SIZE), CHUNK)
    noise = draw_noise(SEED, range(SIZE), (4, 1, 6, 4), (CHUNK, DIMS))
    with torch.no_grad():
        losses = training_losses(
            tiny_model(), Encoded().batch(raw, slice(None)), OBJECTIVE, False, levels, noise
        )
    assert losses.video_each is not None
    clean = GroupedLosses(OBJECTIVE, ["left", "right"])
    clean.add(losses, levels, raw["source"])
    expected = clean.told(clean.sums())
    torn = GroupedLosses(OBJECTIVE, ["left", "right"])
    torn.add(losses, levels, raw["source"])
    broken = replace(losses, video_each=torch.full_like(losses.video_each, torch.nan))
    torn.add(broken, levels, np.full(SIZE, -1))
    told = torn.told(torn.sums())
    assert {n: v for n, v in told.items() if "source" in n or "noise/video" in n} == pytest.approx(
        {n: v for n, v in expected.items() if "source" in n or "noise/video" in n}
    )
    # And nothing is counted twice.
    assert not any(torn.sums())


def test_counts_are_those_of_the_objective() -> None:
    raw = columns(0)
    levels = levels_of(OBJECTIVE, SEED, range(SIZE), CHUNK)
    noise = draw_noise(SEED, range(SIZE), (4, 1, 6, 4), (CHUNK, DIMS))
    batch = Encoded().batch(raw, slice(None))
    with torch.no_grad():
        losses = training_losses(tiny_model(), batch, OBJECTIVE, False, levels, noise)
    weights = (levels.learnt & batch.step_valid & batch.ok[:, None])[:, :, None]
    counts = counts_of((weights & batch.dim_valid[:, None]).float(), batch.ok)
    assert losses.counts_each.sum(1).tolist() == [counts.action, counts.video]


def test_names_of_sources_are_apart_and_such_as_mlflow_takes() -> None:
    uris = ["s3://a/pick", "/data/pick/", "x/Ärm 1:2", "..", "s3://b/" + "n" * 200]
    assert source_names(uris) == ["pick", "pick-1", "-rm-1-2", "data", "n" * 60]
