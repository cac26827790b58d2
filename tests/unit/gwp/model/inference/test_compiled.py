"""Compiled layers: the numbers of torch's operators at any shape, on any processor and number
of threads; and how they are built.
"""

import ctypes
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from gwp.model.config import ModelConfig
from gwp.model.inference.compiled import NativeLayers
from gwp.model.inference.fused import FusedTransformer
from gwp.model.transformer import WorldActionTransformer
from gwp.native import build
from gwp.policy.solver import Shapes, Solver


@dataclass(frozen=True)
class Shape:
    """Numbers that divide nothing evenly: rows of a product, vectors of a tile, tokens of a
    vector.
    """

    heads: int
    head: int
    ffn: int
    narrow: tuple[int, int]
    chunk: int
    text: int
    batch: int


SHAPES = [
    Shape(heads=3, head=10, ffn=37, narrow=(19, 23), chunk=1, text=3, batch=1),
    Shape(heads=2, head=18, ffn=50, narrow=(20, 41), chunk=17, text=8, batch=3),
    Shape(heads=1, head=32, ffn=64, narrow=(33, 31), chunk=50, text=5, batch=2),
    Shape(heads=5, head=6, ffn=24, narrow=(24, 25), chunk=97, text=1, batch=1),
]


def chunks(model, shape):
    """Actions, imagined futures, and both together, by whatever layers a fused model takes now."""
    g = torch.Generator().manual_seed(1)
    config = model.config

    def randn(*size):
        return torch.randn(shape.batch, *size, generator=g)

    solver = Solver(FusedTransformer(model), Shapes(shape.chunk, (config.in_channels, 6, 4), 2), 3)
    state, reference, text = (
        randn(1, config.action_channels),
        randn(config.in_channels, 1, 6, 4),
        randn(shape.text, config.text_dim),
    )
    noise, future = randn(shape.chunk, config.action_channels), randn(config.in_channels, 2, 6, 4)
    committed = (
        torch.arange(shape.chunk).expand(shape.batch, -1) < torch.arange(shape.batch)[:, None]
    )
    with torch.inference_mode():
        prefix = solver.observe(
            state,
            reference,
            solver.model.text_keys(text),
            torch.zeros(shape.batch, dtype=torch.long),
        )
        actions = solver.act(prefix, noise, noise.flip(0), committed)
        return solver, torch.cat(
            [actions.flatten(), solver.imagine(prefix, actions, future).flatten()]
        )


def model_of(shape, family):
    mixture = (
        {"action_expert_dim": shape.narrow[0], "action_ffn_dim": shape.narrow[1]}
        if family == "gwp05"
        else {}
    )
    config = ModelConfig(
        family=family,
        num_layers=2,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head,
        ffn_dim=shape.ffn,
        in_channels=4,
        action_channels=5,
        text_dim=12,
        **mixture,
    )
    torch.manual_seed(0)
    model = WorldActionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_gives_the_numbers_of_the_operators(monkeypatch, shape, family):
    model = model_of(shape, family)
    solver, ours = chunks(model, shape)
    assert isinstance(solver.model.layers, NativeLayers)
    monkeypatch.setattr("gwp.model.inference.fused.library", lambda name: None)
    solver, theirs = chunks(model, shape)
    assert not isinstance(solver.model.layers, NativeLayers)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_the_number_of_threads_changes_no_bit():
    solver, _ = chunks(model_of(SHAPES[1], "gwp05"), SHAPES[1])
    model, config, before = solver.model, solver.model.config, torch.get_num_threads()
    g = torch.Generator().manual_seed(3)
    x = torch.randn(3, 17, SHAPES[1].narrow[0], generator=g)
    found = []
    try:
        with torch.inference_mode():
            prefix = solver.empty(3, 8, config.experts)
            for tensor in (
                prefix.cache.keys,
                prefix.cache.values,
                *prefix.text.keys.values(),
                *prefix.text.values.values(),
            ):
                tensor.copy_(torch.randn(tensor.shape, generator=g))
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(
                    solver.acting(prefix).layers(
                        {"action": x.clone()}, {"A": solver.level(1)}, True
                    )["action"]
                )
    finally:
        torch.set_num_threads(before)
    assert isinstance(model.layers, NativeLayers)
    assert not torch.equal(found[0], x)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("instructions", ["haswell", "x86-64"])
def test_narrower_vectors_give_the_same(monkeypatch, tmp_path, instructions):
    known = build._processor().split()
    if "avx2" not in known or "fma" not in known:
        pytest.skip("the narrower instructions of this test are those of x86 with AVX2")
    monkeypatch.setenv("GWP_CACHE", str(tmp_path))
    changed = {"-march=native": f"-march={instructions}", "-O3": "-O1"}
    flags = tuple(changed.get(f, f) for f in build._FLAGS)
    other = ctypes.CDLL(str(build.compiled("passes", flags)))
    model = model_of(SHAPES[2], "gwp05")
    _, wide = chunks(model, SHAPES[2])
    monkeypatch.setattr("gwp.model.inference.fused.library", lambda name: other)
    torch.testing.assert_close(chunks(model, SHAPES[2])[1], wide, atol=2e-5, rtol=0)


def test_a_pass_serves_fewer_observations_than_it_was_made_for():
    solver, _ = chunks(model_of(SHAPES[1], "gwp05"), SHAPES[1])
    g = torch.Generator().manual_seed(4)
    noise = torch.randn(3, 17, 5, generator=g)
    with torch.inference_mode():
        text = solver.model.text_keys(torch.randn(3, 8, 12, generator=g))
        state, reference = (
            torch.randn(3, 1, 5, generator=g),
            torch.randn(3, 4, 1, 6, 4, generator=g),
        )
        prefix = solver.observe(state, reference, text, torch.zeros(3, dtype=torch.long))
        through = solver.acting(prefix)
        steps = solver.levels(torch.tensor([[0], [2], [1]]))
        for count in (2, 3, 1):
            some, index = prefix.rows(0, count), solver.levels(steps.index[:count])
            alone = solver.velocity(solver.acting(some), noise[:count], index)
            # What stands around the layers is torch's, whose sums depend on the size of a batch.
            torch.testing.assert_close(
                solver.velocity(through, noise[:count], index), alone, atol=2e-6, rtol=0
            )
        with pytest.raises(ValueError, match="2 observations in a pass for 1"):
            solver.velocity(solver.acting(prefix.rows(0, 1)), noise[:2], solver.level(0))


def test_what_is_no_number_stays_none():
    """A NaN in one observation is seen in its actions, and in no other's."""
    shape = SHAPES[1]
    model = model_of(shape, "gwp05")
    solver, _ = chunks(model, shape)
    g = torch.Generator().manual_seed(2)
    state, reference = torch.randn(3, 1, 5, generator=g), torch.randn(3, 4, 1, 6, 4, generator=g)
    state[1] = float("nan")
    with torch.inference_mode():
        text = solver.model.text_keys(torch.randn(3, shape.text, 12, generator=g))
        prefix = solver.observe(state, reference, text, torch.zeros(3, dtype=torch.long))
        actions = solver.act(prefix, torch.randn(3, shape.chunk, 5, generator=g))
    assert [bool(torch.isfinite(a).all()) for a in actions] == [True, False, True]


@pytest.mark.slow
def test_compiling_at_the_same_time_leaves_one_whole_library(monkeypatch, tmp_path):
    monkeypatch.setenv("GWP_CACHE", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: build.compiled("passes"), range(2)))
    assert len(set(paths)) == 1
    assert [p.name for p in (tmp_path / "native").iterdir()] == [paths[0].name]
    assert ctypes.CDLL(str(paths[0])).gwp_run


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CXX": "false"}, "false: exit code 1"),
        ({"CXX": "no-such-compiler"}, "no-such-compiler"),
        ({"PATH": "", "CXX": ""}, "install g++"),
    ],
)
def test_without_a_compiler_the_reason_is_told_and_the_operators_act(
    monkeypatch, tmp_path, caplog, environment, said
):
    for name, value in {"GWP_CACHE": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__("passes") is None
    assert said in caplog.text


def test_the_switch_is_silent(monkeypatch, caplog):
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.library.__wrapped__("passes") is None
    assert not caplog.text
