"""What trains and by which rule, under every ZeRO stage as in a plain loop."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gwp.model.draws import draw_noise, generator
from gwp.model.objective import (
    ModesConfig,
    ObjectiveConfig,
    draw_video_only,
    levels_of,
    training_losses,
)
from pipelines.config.load import load_config
from pipelines.jobs.engine import OptimizerConfig
from pipelines.jobs.train_job import TrainJob
from pipelines.training.engine.deepspeed_engine import convert_to_universal, full_state
from pipelines.training.engine.ema import load_ema
from pipelines.training.engine.optimizer import choose_trained, make_optimizer, parameter_groups
from pipelines.training.finished import plain_weights, trained_state
from tests.support import ranks
from tests.support.ranks import CHUNK, DIMS, SEED, SIZE, Encoded, Rank, columns
from tests.support.tiny import tiny_config, tiny_model

STEPS = 3
# The job of the model that the ranks train.
TINY = [f"model={tiny_config().model_dump_json()}", "codec.channels=4"]
TOLERANCE = 2e-5
NO_CAME = importlib.util.find_spec("pytorch_optimizer") is None
FREEZE = ["blocks.*.attn2.to_k", "*condition_embedder.text_embedder", "blocks.0.visual_expert"]
PART = OptimizerConfig(lr=0.01, weight_decay=0.3, clip=1.0, freeze=tuple(FREEZE))
SETS = ["optimizer={lr: 0.01, weight_decay: 0.3, clip: 1.0, freeze: " + str(FREEZE) + "}"]


def in_a_loop(
    config: OptimizerConfig, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> tuple[list[float], dict[str, Tensor]]:
    """The steps of `ranks.columns` as anyone would write them: losses and weights."""
    model = tiny_model().train()
    choose_trained(model, config)
    optimizer = make(model)
    objective = ObjectiveConfig(modes=ModesConfig(video=1, ac_wm=1, wam=3))
    trained = [p for p in model.parameters() if p.requires_grad]
    told = []
    for step in range(STEPS):
        raw: Any = columns(step)
        first = generator(SEED, SIZE * step)
        video_only = draw_video_only(objective.modes, bool(raw["has_action"].any()), first)
        positions = range(SIZE * step, SIZE * (step + 1))
        levels = levels_of(objective, SEED, positions, CHUNK)
        noise = draw_noise(SEED, positions, (4, 1, 6, 4), (CHUNK, DIMS))
        batch = Encoded().batch(raw, slice(None))
        losses = training_losses(model, batch, objective, video_only, levels, noise)
        optimizer.zero_grad()
        (losses.total + 0 * sum(p.sum() for p in trained)).backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        told.append(float(losses.total.detach()))
    return told, {n: p.detach() for n, p in model.named_parameters()}


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    squares = [(some[name] - others[name]).square().sum() for name in others]
    return float(torch.stack(squares).sum().sqrt())


def test_norms_biases_and_tables_do_not_decay() -> None:
    model = tiny_model()
    kept = {id(p) for g in parameter_groups(model, OptimizerConfig())[1:] for p in g["params"]}  # type: ignore[attr-defined]
    names = {name for name, p in model.named_parameters() if id(p) in kept}
    assert {n for n, p in model.named_parameters() if p.ndim == 1} < names
    assert "blocks.0.experts.visual.scale_shift_table.value" in names
    assert "out_tables.action.value" in names
    assert {"action_encoder.in_proj.bias", "action_decoder.out_proj.bias"} < names
    assert not any(n.endswith("weight") and "norm" not in n for n in names)
    everything = parameter_groups(model, OptimizerConfig(decay="all"))
    assert len(everything) == 1
    assert len(everything[0]["params"]) == len(list(model.parameters()))  # type: ignore[arg-type]


def halves(rank: Rank, stages: list[int], sets: list[str]) -> dict[int, Any]:
    """Losses under each stage, with a checkpoint in the middle from which it goes on the same."""
    told = {}
    for stage in stages:
        rank.start(stage, *sets)
        told[stage] = rank.take(range(2))
        rank.save(f"half-{stage}")
        told[stage] += rank.take(range(2, STEPS))
        rank.save(f"whole-{stage}")
        rank.start(stage, *sets)
        rank.load(f"half-{stage}")
        assert rank.take(range(2, STEPS)) == told[stage][2:], stage
    return told


def rest(rank: Rank, stage: int, sets: list[str]) -> Any:
    """Losses of the second half, on other workers."""
    rank.start(stage, *sets, universal=True)
    rank.load(f"half-{stage}")
    return rank.take(range(2, STEPS))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_part_trains_alike_under_every_stage_and_the_rest_never_moves(tmp_path: Path) -> None:
    def adamw(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(model, PART), PART.lr, PART.betas)

    expected, weights = in_a_loop(PART, adamw)
    first = {name: p.detach() for name, p in tiny_model().named_parameters()}
    model = tiny_model()
    choose_trained(model, PART)
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed
    job = load_config("pipelines/stages/world.yaml", TrainJob, TINY)
    # ZeRO-3 last: it puts another `linear` in the place of torch's.
    told = ranks.run(halves, 2, tmp_path, [0, 1, 2, 3], SETS)
    for stage, losses in told.items():
        assert [x["loss"] for x in losses] == pytest.approx(expected, abs=TOLERANCE), stage
        folder = tmp_path / f"whole-{stage}"
        got = full_state(folder)
        assert distance(got, weights) < 0.01 * distance(weights, first), stage
        averaged = load_ema(folder)
        assert not fixed & averaged.keys()
        for state in (got, trained_state(folder, job, "ema")):
            # What leaves a run is whole, and what was frozen is what it was.
            assert state.keys() == first.keys()
            assert all(torch.equal(state[name], first[name]) for name in fixed), stage
        assert all(torch.equal(trained_state(folder, job, "ema")[n], averaged[n]) for n in averaged)
    for stage in (1, 2, 3):
        convert_to_universal(tmp_path / f"half-{stage}")
        losses = ranks.run(rest, 1, tmp_path, stage, SETS)
        assert [x["loss"] for x in losses] == pytest.approx(expected[2:], abs=TOLERANCE), stage


@pytest.mark.skipif(NO_CAME, reason="pytorch-optimizer is not installed")
def test_came_on_a_flat_shard_is_the_published_rule() -> None:
    """What the released trainers' optimiser comes to under ZeRO: see `spec` in the docs."""
    g = torch.Generator().manual_seed(0)
    config = OptimizerConfig(kind="came", lr=0.01, weight_decay=0.1)
    weights = nn.Parameter(torch.randn(1000, generator=g))
    x, v, m = weights.detach().clone(), torch.zeros(1000), torch.zeros(1000)
    groups = [{"params": [weights], "weight_decay": config.weight_decay}]
    optimizer = make_optimizer(groups, config)
    for step in range(5):
        gradient = torch.randn(1000, generator=g) * 10.0**-step
        weights.grad = gradient.clone()
        optimizer.step()
        v = 0.999 * v + 0.001 * (gradient.square() + 1e-30)
        u = gradient / v.sqrt()
        u = u / u.square().mean().sqrt().clamp(min=1.0)
        m = 0.9 * m + 0.1 * u
        x = x * (1 - 0.01 * 0.1) - 0.01 * m
        torch.testing.assert_close(weights.detach(), x, rtol=1e-5, atol=1e-6)


CAME = ["optimizer={kind: came, lr: 0.003, weight_decay: 0.01, decay: all, clip: 0}"]


def came(rank: Rank, stages: list[int]) -> dict[int, Any]:
    told = {}
    for stage in stages:
        rank.start(stage, *CAME)
        told[stage] = rank.take(range(2))
        rank.save(f"half-{stage}")
        told[stage] += rank.take(range(2, STEPS))
        # ZeRO wraps it. 1-D: neither factored nor with the confidence term.
        made = rank.engine._engine.optimizer
        shapes = {
            tuple(x.shape)
            for s in getattr(made, "optimizer", made).state.values()
            for x in s.values()
            if torch.is_tensor(x) and x.numel() > 1
        }
        assert all(len(shape) == 1 for shape in shapes) == (stage > 0), shapes
        rank.start(stage, *CAME)
        rank.load(f"half-{stage}")
        assert rank.take(range(2, STEPS)) == told[stage][2:], stage
    return told


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(NO_CAME, reason="pytorch-optimizer is not installed")
def test_came_runs_and_goes_on_under_every_stage(tmp_path: Path) -> None:
    config = OptimizerConfig(kind="came", lr=0.003, decay="all", clip=0)
    flat: list[nn.Parameter] = []

    class Flat(torch.optim.Optimizer):
        """All parameters as the one vector that ZeRO-1 and 2 make of them on one rank."""

        def __init__(self, model: nn.Module) -> None:
            self.parts = list(model.parameters())
            flat.append(nn.Parameter(torch.cat([p.detach().flatten() for p in self.parts])))
            groups = [{"params": flat[-1:], "weight_decay": 0.01}]
            self.inner = make_optimizer(groups, config)

        def zero_grad(self, set_to_none: bool = True) -> None:
            for p in self.parts:
                p.grad = None

        def step(self) -> None:  # type: ignore[override]
            flat[-1].grad = torch.cat([p.grad.flatten() for p in self.parts])  # type: ignore[union-attr]
            self.inner.step()
            start = 0
            for p in self.parts:
                p.data.copy_(flat[-1].detach()[start : start + p.numel()].view_as(p))
                start += p.numel()

    expected, _ = in_a_loop(config, Flat)
    told = ranks.run(came, 1, tmp_path / "1", [0, 1, 2, 3])
    for stage in ("1", "2"):
        assert [x["loss"] for x in told[stage]] == pytest.approx(expected, abs=TOLERANCE), stage
    # It counts its steps in its groups, which the form for other workers does not have.
    for stage in (1, 2, 3):
        convert_to_universal(tmp_path / "1" / f"half-{stage}")
        losses = ranks.run(rest, 1, tmp_path / "1", stage, CAME)
        want = [x["loss"] for x in told[str(stage)][2:]]
        assert [x["loss"] for x in losses] == pytest.approx(want, abs=TOLERANCE), stage
    # Of two ranks each has a shard of its own whose update is bounded: near, not the same.
    two = ranks.run(came, 2, tmp_path / "2", [1, 2])
    for losses in two.values():
        assert [x["loss"] for x in losses] == pytest.approx(expected, abs=0.05)


LORA = ["lora={rank: 2, alpha: 4}", "optimizer={lr: 0.02}", *TINY]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_adapters_train_alike_under_every_stage_and_leave_as_plain_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    job = load_config("pipelines/stages/world.yaml", TrainJob, LORA)
    # ZeRO-3 last: it puts another `linear` in the place of torch's.
    told = ranks.run(halves, 2, tmp_path, [0, 1, 2, 3], LORA)
    expected = [x["loss"] for x in told["0"]]
    first = {name: p.detach() for name, p in tiny_model().named_parameters()}
    plain_of = {}
    for stage, losses in told.items():
        assert [x["loss"] for x in losses] == pytest.approx(expected, abs=TOLERANCE), stage
        folder = tmp_path / f"whole-{stage}"
        for weights in ("raw", "ema"):
            trained = trained_state(folder, job, weights)  # type: ignore[arg-type]
            plain = plain_weights(trained, job)
            assert plain.keys() == first.keys(), stage
            moved = {n for n in first if not torch.equal(plain[n], first[n])}
            assert "proj_out.weight" not in moved
            assert {
                "blocks.0.experts.visual.attn1.to_q.weight",
                "action_encoder.mid_proj.bias",
            } <= moved
            plain_of[stage, weights] = plain
    for stage in ("1", "2", "3"):
        for weights in ("raw", "ema"):
            ours, theirs = plain_of[stage, weights], plain_of["0", weights]
            assert distance(ours, theirs) < 0.01 * distance(theirs, first), (stage, weights)
    for stage in (1, 2, 3):
        convert_to_universal(tmp_path / f"half-{stage}")
        losses = ranks.run(rest, 1, tmp_path, stage, LORA)
        assert [x["loss"] for x in losses] == pytest.approx(expected[2:], abs=TOLERANCE), stage


def in_bf16(rank: Rank) -> None:
    for name, sets in (("part", SETS), ("lora", LORA)):
        for stage in (1, 2, 3):
            rank.start(stage, *sets, "engine.precision=bf16", "engine.micro_batch=2")
            rank.take(range(STEPS))
            rank.save(f"{name}-{stage}")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_in_bf16_what_is_frozen_leaves_as_it_was_trained_beside(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    ranks.run(in_bf16, 2, tmp_path)
    first = {name: p.detach() for name, p in tiny_model().named_parameters()}
    model = tiny_model()
    choose_trained(model, PART)
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, sets in (("part", [*SETS, *TINY]), ("lora", LORA)):
        job = load_config("pipelines/stages/world.yaml", TrainJob, sets)
        for stage in (1, 2, 3):
            for weights in ("raw", "ema"):
                trained = trained_state(tmp_path / f"{name}-{stage}", job, weights)  # type: ignore[arg-type]
                plain = plain_weights(trained, job)
                assert plain.keys() == first.keys(), (name, stage)
                assert all(p.dtype == torch.float32 for p in plain.values())
                still = fixed if name == "part" else {"proj_out.weight", "patch_embedding.bias"}
                for one in still:
                    assert torch.equal(plain[one], first[one].bfloat16().float()), (
                        name,
                        stage,
                        one,
                    )


def compiled(rank: Rank) -> dict[str, Any]:
    told = {}
    for name, sets in (
        ("plain", []),
        ("compiled", ["engine.compile=true"]),
        ("again", ["engine.compile=true", "engine.gradient_checkpointing=true"]),
    ):
        rank.start(2, *SETS, *sets)
        told[name] = rank.take(range(STEPS))
    rank.save("compiled")
    return told


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_blocks_take_the_same_steps(tmp_path: Path) -> None:
    told = ranks.run(compiled, 1, tmp_path, timeout=560)
    for name, losses in told.items():
        for got, want in zip(losses, told["plain"], strict=True):
            assert got == pytest.approx(want, abs=TOLERANCE), name
    # Names are those of a model that is not compiled.
    assert full_state(tmp_path / "compiled").keys() == dict(tiny_model().named_parameters()).keys()
