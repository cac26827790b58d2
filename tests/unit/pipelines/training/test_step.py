"""A run is the same run whatever the workers, micro-batches and ZeRO stage, and the same as a
plain loop in PyTorch.
"""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gwp.model.draws import draw_noise, generator
from gwp.model.objective import (
    ModesConfig,
    ObjectiveConfig,
    draw_video_only,
    levels_of,
    training_losses,
)
from pipelines.training.control.stopped import StoppedError
from pipelines.training.engine.deepspeed_engine import convert_to_universal, full_state
from pipelines.training.engine.ema import decay_at, load_ema
from pipelines.training.step import micro_batches
from tests.support import ranks
from tests.support.ranks import CHUNK, DIMS, SEED, SIZE, STEPS, Encoded, Rank, columns
from tests.support.tiny import tiny_model

TOLERANCE = 2e-5
"""Of losses around 1, fp32: the order of sums differs between ranks."""


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Between two sets of weights. AdamW takes a step of the same length where a gradient is
    nothing but rounding, so single weights may differ by as much.
    """
    squares = [(some[name] - others[name]).detach().square().sum() for name in others]
    return float(torch.stack(squares).sum().sqrt())


def same(rank: Rank, stages: Sequence[int]) -> dict[int, Any]:
    """All steps under each ZeRO stage; their losses."""
    told = {}
    for stage in stages:
        # All of its share at once, or two or one sample after another, or half of it. Of three
        # ranks the last has nothing but padding in its last micro-batch.
        share = SIZE // rank.ranks.world
        micro = f"engine.micro_batch={(SIZE, 2, 1, share // 2)[stage]}"
        rank.start(stage, micro)
        told[stage] = rank.take(range(3))
        rank.save(f"half-{stage}")
        told[stage] += rank.take(range(3, STEPS))
        rank.save(f"whole-{stage}")
        # As a process that is started again: to the last bit.
        rank.start(stage, micro)
        rank.load(f"half-{stage}")
        again = rank.take(range(3, STEPS))
        assert again == told[stage][3:], (stage, again, told[stage])
        # A run that had no average before begins with the weights that it goes on from.
        rank.engine.load(rank.folder / f"half-{stage}")
        rank.ema.load(rank.folder / "none")
        masters = {m.name: m.part for m in rank.engine.masters()}
        assert all(torch.equal(rank.ema.shadow[name], part) for name, part in masters.items())
    return told


def plain() -> tuple[list[dict[str, float]], dict[str, Tensor], dict[str, Tensor]]:
    """The same run, in a loop as anyone would write it: losses, weights, average."""
    model = tiny_model().train()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, (0.9, 0.999), weight_decay=0.01)
    objective = ObjectiveConfig(modes=ModesConfig(video=1, ac_wm=1, wam=3))
    told = []
    for step in range(STEPS):
        raw: Any = columns(step)
        batch = Encoded().batch(raw, slice(None))
        first = generator(SEED, SIZE * step)
        video_only = draw_video_only(objective.modes, bool(raw["has_action"].any()), first)
        positions = range(SIZE * step, SIZE * (step + 1))
        levels = levels_of(objective, SEED, positions, CHUNK)
        noise = draw_noise(SEED, positions, (4, 1, 6, 4), (CHUNK, DIMS))
        losses = training_losses(model, batch, objective, video_only, levels, noise)
        optimizer.zero_grad(set_to_none=False)
        # What takes no part gets zeros here, too: AdamW moves it by what it remembers.
        (losses.total + 0 * sum(p.sum() for p in model.parameters())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, p in model.named_parameters():
            average[name].lerp_(p.detach(), 1 - decay_at(step, 0.9))
        parts = {"loss": losses.total, "loss_action": losses.action, "loss_video": losses.video}
        told.append(
            {name: float(part.detach()) for name, part in parts.items() if part is not None}
        )
    return told, {n: p.detach() for n, p in model.named_parameters()}, average


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_is_the_same_run_whatever_its_workers(tmp_path: Path) -> None:
    expected, weights, average = plain()
    first = dict(tiny_model().named_parameters())
    # Steps of video alone, and steps with actions: else it would show less than it says.
    assert {len(step) for step in expected} == {2, 3}

    def of(world: int) -> Any:
        # ZeRO-3 last: it puts another `linear` in the place of torch's, for the whole process.
        stages = {3: (3,), 4: (2,)}.get(world, (0, 1, 2, 3))
        return ranks.run(same, world, tmp_path / str(world), stages)

    worlds = (1, 2, 3, 4)
    with ThreadPoolExecutor(2) as pool:
        told = dict(zip(worlds, pool.map(of, worlds), strict=True))
    for world, stages in told.items():
        for stage, losses in stages.items():
            for step, (got, want) in enumerate(zip(losses, expected, strict=True)):
                assert got == pytest.approx(want, abs=TOLERANCE), (world, stage, step)
            folder = tmp_path / str(world) / f"whole-{stage}"
            for got, want in ((full_state(folder), weights), (load_ema(folder), average)):
                assert got.keys() == want.keys()
                assert distance(got, want) < 0.01 * distance(want, first), (world, stage)


# Of four runs, the ZeRO stage of each third of them.
STAGES = ((1, 2, 1), (2, 1, 2), (3, 3, 3), (0, 0, 0))


def moved(rank: Rank, third: int) -> list[Any]:
    """Two steps of every run, from the checkpoint of the third before; their losses."""
    told = []
    # ZeRO-3 last, as above.
    for run in sorted(range(len(STAGES)), key=lambda run: STAGES[run][third]):
        stage = STAGES[run][third]
        rank.start(stage, "engine.micro_batch=4", universal=third > 0 and stage > 0)
        if third:
            rank.load(f"{run}-{third - 1}")
        told.append((run, rank.take(range(2 * third, 2 * third + 2))))
        rank.save(f"{run}-{third}")
    return [losses for _, losses in sorted(told)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_with_other_workers_and_another_stage(tmp_path: Path) -> None:
    """2 workers, then 1, then 2: losses and average as if there had always been one."""
    expected, _, average = plain()
    first = dict(tiny_model().named_parameters())
    told: list[list[Any]] = [[] for _ in STAGES]
    for third, world in enumerate((2, 1, 2)):
        for run, losses in enumerate(ranks.run(moved, world, tmp_path, third)):
            told[run] += losses
            if STAGES[run][third]:
                convert_to_universal(tmp_path / f"{run}-{third}")
    for run, losses in enumerate(told):
        for step, (got, want) in enumerate(zip(losses, expected, strict=True)):
            assert got == pytest.approx(want, abs=TOLERANCE), (STAGES[run], step)
        got = load_ema(tmp_path / f"{run}-2")
        assert distance(got, average) < 0.01 * distance(average, first), STAGES[run]


def test_micro_batches_are_even_and_none_is_empty() -> None:
    assert micro_batches(8, 3) == [slice(0, 2), slice(2, 5), slice(5, 8)]
    assert micro_batches(2, 4) == [slice(0, 1), slice(1, 2)]
    for size in range(1, 9):
        for passes in range(1, 9):
            parts = micro_batches(size, passes)
            assert [i for part in parts for i in range(part.start, part.stop)] == list(range(size))
            sizes = {part.stop - part.start for part in parts}
            assert max(sizes) - min(sizes) <= 1


def halves(rank: Rank) -> dict[int, Any]:
    """All steps in bf16, in micro-batches; losses, and what of the model is how precise."""
    told = {}
    for stage in (1, 2, 3):
        rank.start(stage, "engine.precision=bf16", "engine.micro_batch=2")
        own = {m.name: m.part.clone() for m in rank.engine.masters()}
        losses = []
        for step in range(STEPS):
            losses += rank.take(range(step, step + 1))
            for m in rank.engine.masters():
                own[m.name].lerp_(m.part, 1 - decay_at(step, 0.9))
        # Of the masters, and those are no bf16.
        assert all(torch.equal(own[name], part) for name, part in rank.ema.shadow.items())
        masters = torch.cat([m.part for m in rank.engine.masters()])
        assert not torch.equal(masters, masters.bfloat16().float())
        assert {p.dtype for p in rank.engine.parameters().values()} == {torch.bfloat16}
        assert {m.part.dtype for m in rank.engine.masters()} == {torch.float32}
        tables = rank.engine.module.module._rotary.values()
        assert {table.dtype for pair in tables for table in pair} == {torch.float32}
        told[stage] = losses
    return told


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_bf16_follows_fp32_and_averages_its_masters(tmp_path: Path) -> None:
    expected, _, _ = plain()
    for stage, losses in ranks.run(halves, 2, tmp_path).items():
        for got, want in zip(losses, expected, strict=True):
            # Gradients of one micro-batch that count twice are 3 % in the fourth loss.
            assert got == pytest.approx(want, rel=0.01), stage


def bad(rank: Rank) -> list[str]:
    """Steps with a sample of the last rank that is no number; what the stop says."""
    told = []

    def spoil(step: int, raw: Any) -> None:
        if step in spoilt and rank.ranks.rank == rank.ranks.world - 1:
            raw["latents"][-1] = np.nan

    for stage in (0, 2, 3):
        rank.start(stage, "engine.micro_batch=2", "optimizer.max_skipped=2")
        spoilt = (1,)
        losses = rank.take(range(3), spoil)
        assert losses[1] == {}, losses
        assert all(map(math.isfinite, losses[2].values())), losses
        assert rank.steps.skipped == 1
        assert rank.engine.finite()
        spoilt = (3, 4, 5)
        try:
            rank.take(range(3, 6), spoil)
        except StoppedError as error:
            told.append(str(error))
    return told


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_loss_that_is_no_number_costs_its_step_and_several_stop_all_workers(
    tmp_path: Path,
) -> None:
    told = ranks.run(bad, 2, tmp_path)
    assert len(told) == 3
    for message in told:
        assert message.startswith("steps 4 to 6: the loss is nan, the gradient's norm nan; ")
        # Those of the rank whose loss it was.
        assert message.endswith("samples of the last step: s5/4, s5/5, s5/6, s5/7")
    note = json.loads((tmp_path / "skipped_steps" / "step_000001.json").read_text())
    assert note["losses"][1] == "nan"
    assert note["losses"][0] != "nan"
    assert note["samples"] == ["s1/4", "s1/5", "s1/6", "s1/7"]


def unused(rank: Rank, stages: Sequence[int]) -> list[float]:
    """The length of the head of the future, of which nothing is learnt, after some steps."""
    told = []
    objective = "objective={modes: {video: 0, ac_wm: 0, wam: 1}, video_weight: 0}"
    for stage in stages:
        rank.start(stage, objective, "optimizer.weight_decay=0.5")
        # Of batches with actions.
        rank.take(range(2))
        told.append(float(rank.engine.parameters()["proj_out.weight"].detach().norm()))
    return told


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_no_step_uses_decays_whatever_the_workers(tmp_path: Path) -> None:
    first = float(tiny_model().proj_out.weight.detach().norm())
    lengths = [
        *ranks.run(unused, 1, tmp_path / "1", [0, 1]),
        *ranks.run(unused, 2, tmp_path / "2", [0, 1]),
    ]
    assert lengths[0] < 0.999 * first
    assert lengths == pytest.approx([lengths[0]] * 4)
