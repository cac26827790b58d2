"""`gwp bench train`: its sides train the same model, and what it reads of a run is what is there."""

from pathlib import Path

import pytest
import torch

from gwp.model import block
from pipelines.bench.train import sides
from pipelines.bench.train.problem import Problem
from pipelines.bench.train.show import table
from pipelines.bench.train.stack import read_whole
from pipelines.compat import operators_of
from pipelines.tracking.curves import write_figures

TINY = Problem("tiny", "gwp05", 2, "cpu", "fp32", 1)


def loss_of(problem: Problem) -> float:
    torch.manual_seed(0)
    return float(sides._Loss(problem)(sides._model(problem)).detach())


@pytest.mark.parametrize("materialised", [False, True])
@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
def test_one_masked_attention_is_attention_by_segments(
    family: str, materialised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem("tiny", family, 2, "cpu", "fp32", 1)  # type: ignore[arg-type]
    expected = loss_of(problem)
    # Put back behind the test.
    monkeypatch.setattr(block, "block_causal", block.block_causal)
    before = block.block_causal
    sides._mask_attention(materialised)
    assert block.block_causal is not before
    assert loss_of(problem) == pytest.approx(expected, rel=1e-5)


def test_the_batch_has_the_shapes_that_the_stage_trains_on() -> None:
    job, batch = TINY.job(), TINY.tensors()
    window, canvas, codec = job.data.window, job.data.canvas, job.codec
    assert codec is not None
    assert codec.kind == "pca"
    frames = (window.frames - 1) // 4 + 1
    sides_ = (canvas.height // codec.spatial, canvas.width // codec.spatial)
    assert batch.latents.shape == (2, codec.channels, frames, *sides_)
    assert batch.actions.shape == (2, window.chunk, job.model_config_.action_channels)


def test_the_bare_loop_learns_what_the_losses_say() -> None:
    step = sides._Bare(TINY)
    before = [p.detach().clone() for p in step._model.parameters()]
    step.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, step._model.parameters(), strict=True)]
    assert all(moved)
    assert all(p.grad is None for p in step._model.parameters())


def test_in_bf16_masters_are_fp32_and_weights_follow_them() -> None:
    step = sides._Bare(Problem("tiny", "gwp05", 2, "cpu", "bf16", 1))
    step.step()
    for master, parameter in zip(step._masters, step._model.parameters(), strict=True):
        assert (master.dtype, parameter.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(master.detach().bfloat16(), parameter.detach())


def test_products_are_those_of_forward_and_backward() -> None:
    losses: list[torch.Tensor] = []
    forward = operators_of(
        lambda: losses.append(sides._Loss(TINY)(sides._model(TINY))), sides.PRODUCTS
    )
    backward = operators_of(losses[0].backward, sides.PRODUCTS)
    layers, segments, experts = 4, 3, 2
    # Self-attention by segment, then that to the text by expert.
    attention = [call for call in forward if "attention" in str(call.func)]
    assert len(attention) == layers * (segments + experts)
    # Each product has one for its input and one for its weight.
    assert len(backward) > 1.5 * len(forward)


def test_the_whole_stack_is_read_from_the_figures_of_its_run(tmp_path: Path) -> None:
    uri = str(tmp_path)

    def points(step: int, data: float, forward: float) -> list[tuple[str, float, int, int]]:
        found = {"time/data": data, "time/checkpoint": 0.1, "time/forward": forward}
        told = found | {"time/step": sum(found.values()), "loss": 1.0}
        return [(name, value, 0, step) for name, value in told.items()]

    # The first steps do not count; the last stretch is half as long.
    write_figures(uri, 30, 0, points(10, 9.0, 9.0) + points(20, 9.0, 9.0) + points(30, 0.1, 0.8))
    write_figures(uri, 35, 0, points(35, 0.4, 0.8))
    whole = read_whole(uri, 35)
    assert whole.step_s == pytest.approx(1.1)
    assert whole.data_share == pytest.approx(0.2 / 1.1)
    assert whole.checkpoint_share == pytest.approx(0.1 / 1.1)
    assert set(whole.phases) == {"data", "checkpoint", "forward"}


def test_the_table_says_all_ratios() -> None:
    side = {"wall_s": 0.1, "cpu_s": 0.1, "fastest_s": 0.09, "slowest_s": 0.2}
    found = {
        **vars(TINY),
        "parameters": 2_000_000,
        "gflop_per_step": 2.0,
        "tflop_per_s": 0.02,
        "sides": {"bare": side, "zero 1": side},
        "ratios": {
            "zero": {"1": 0.77},
            "zero_cpu_time": {"1": 0.78},
            "segment_vs_masked": 1.2,
            "segment_vs_materialised": 1.7,
            "compiled": 1.04,
            "vs_bare_loop": 0.91,
        },
        "step_vs_products": 1.35,
        "compiled_vs_products": 1.31,
        "whole": {"zero_stage": 1, "step_s": 0.11, "phases": {"forward": 0.1, "data": 0.0}},
        "data_wait_share": 0.015,
        "checkpoint_share": 0.02,
    }
    shown = table(found)
    for told in (
        "0.77x",
        "0.78",
        "1.20x",
        "1.70x",
        "1.04x",
        "1.31x",
        "0.91x",
        "1.35x",
        "1.5%",
        "2.0%",
        "forward 100.0",
    ):
        assert told in shown
    assert "data 0.0" not in shown
