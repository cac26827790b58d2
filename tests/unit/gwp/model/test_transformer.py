"""Properties of the transformer that hold for both families."""

import pytest
import torch

from gwp.errors import GwpError
from gwp.model.denoise import act, imagine, joint, observe
from gwp.model.flow import euler, shifted, solver_sigmas
from gwp.model.layers import rotate
from gwp.model.transformer import Tokens, WorldActionTransformer
from tests.support.tiny import tiny_config, tiny_model, tiny_tokens

both = pytest.mark.parametrize("family", ["gwp0", "gwp05"])
LEVELS = {"A": torch.tensor([0.5, 0.04]), "F": torch.tensor([0.3, 0.9])}


@both
def test_actions_never_see_the_future(family):
    model, (tokens, text, ids) = tiny_model(family), tiny_tokens()
    other = Tokens(tokens.state, tokens.reference, tokens.action, tokens.future + 1)
    with torch.no_grad():
        a = model(tokens, LEVELS, text, ids)
        b = model(other, LEVELS | {"F": LEVELS["F"] * 0.1}, text, ids)
        alone = model(
            Tokens(tokens.state, tokens.reference, tokens.action), {"A": LEVELS["A"]}, text, ids
        )
    assert torch.equal(a.action, b.action)
    assert (a.future - b.future).abs().max() > 1e-3
    torch.testing.assert_close(alone.action, a.action, atol=1e-6, rtol=0)


@both
def test_reference_ignores_actions_and_future_sees_them(family):
    model, (tokens, text, ids) = tiny_model(family), tiny_tokens()
    other = Tokens(tokens.state, tokens.reference, tokens.action + 1, tokens.future)
    with torch.no_grad():
        a, b = (model(t, LEVELS, text, ids, heads=("R", "F")) for t in (tokens, other))
    assert torch.equal(a.reference, b.reference)
    assert (a.future - b.future).abs().max() > 1e-4


@both
def test_cached_prefix_equals_uncached(family):
    model, (tokens, text, ids) = tiny_model(family), tiny_tokens(future=2)
    with torch.no_grad():
        whole = model(tokens, LEVELS, text, ids)
        context = observe(model, tokens.state, tokens.reference, text, ids)
        after = model(Tokens(action=tokens.action, future=tokens.future), LEVELS, context=context)
        with_clean = model(tokens, {"F": LEVELS["F"]}, text, ids)
        longer = model.extend(Tokens(action=tokens.action), context=context)
        future = model(Tokens(future=tokens.future), {"F": LEVELS["F"]}, context=longer)
    torch.testing.assert_close(after.action, whole.action, atol=2e-6, rtol=0)
    torch.testing.assert_close(after.future, whole.future, atol=2e-6, rtol=0)
    torch.testing.assert_close(future.future, with_clean.future, atol=2e-6, rtol=0)


@both
def test_embodiment_routes(family):
    model, (tokens, text, ids) = tiny_model(family), tiny_tokens()
    with torch.no_grad():
        a, b = (model(tokens, LEVELS, text, e).action for e in (ids, ids + 1))
    assert (a - b).abs().max() > 1e-4
    with pytest.raises(GwpError, match="embodiment id 7"):
        model(tokens, LEVELS, text, torch.tensor([0, 7]))


@both
def test_video_only_needs_neither_state_nor_action(family):
    model, (tokens, text, _) = tiny_model(family), tiny_tokens()
    with torch.no_grad():
        out = model(
            Tokens(reference=tokens.reference, future=tokens.future), {"F": LEVELS["F"]}, text
        )
    assert out.action is None
    assert out.future.shape == tokens.future.shape


@both
def test_batch_rows_are_independent(family):
    model, (tokens, text, ids) = tiny_model(family), tiny_tokens()
    first = Tokens(*(x[:1] for x in (tokens.state, tokens.reference, tokens.action, tokens.future)))
    with torch.no_grad():
        both_rows = model(tokens, LEVELS, text, ids)
        one = model(first, {g: s[:1] for g, s in LEVELS.items()}, text[:1], ids[:1])
    torch.testing.assert_close(one.action, both_rows.action[:1], atol=2e-6, rtol=0)
    torch.testing.assert_close(one.future, both_rows.future[:1], atol=2e-6, rtol=0)


def test_mixture_with_equal_experts_is_the_dense_model():
    dense = tiny_model("gwp0")
    width, ffn = dense.config.experts["shared"]
    mixture = WorldActionTransformer(
        tiny_config("gwp05", action_expert_dim=width, action_ffn_dim=ffn)
    ).eval()
    source = dense.state_dict()
    target = {}
    for name in mixture.state_dict():
        if name.startswith("state_encoder"):
            target[name] = source[name.replace("state_encoder", "action_encoder")]
        else:
            shared = name.replace(".visual", ".shared").replace(".action.", ".shared.")
            target[name] = source[shared.replace("out_tables.action", "out_tables.shared")]
    mixture.load_state_dict(target)
    tokens, text, ids = tiny_tokens()
    with torch.no_grad():
        a, b = (m(tokens, LEVELS, text, ids) for m in (dense, mixture))
    torch.testing.assert_close(a.action, b.action, atol=2e-6, rtol=0)
    torch.testing.assert_close(a.future, b.future, atol=2e-6, rtol=0)


def test_solver_has_the_published_timesteps():
    published = [
        1000.0,
        975.743,
        946.273,
        909.707,
        863.132,
        801.786,
        717.317,
        593.619,
        395.095,
        24.414,
        0.0,
    ]
    torch.testing.assert_close(solver_sigmas(10) * 1000, torch.tensor(published), atol=6e-4, rtol=0)


def test_euler_recovers_data_from_the_true_velocity():
    data, noise = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(
        euler(noise, lambda _x, _s: noise - data, steps=10), data, atol=1e-6, rtol=0
    )
    assert shifted(torch.tensor(0.5), 5.0) == pytest.approx(5 / 6)


@both
def test_committed_actions_come_back_as_given_and_shape_the_rest(family):
    model, (tokens, text, ids) = tiny_model(family), tiny_tokens()
    committed = torch.tensor([[True, True, False, False, False], [False] * 5])
    prefix = torch.zeros_like(tokens.action)
    with torch.no_grad():
        context = observe(model, tokens.state, tokens.reference, text, ids)
        free = act(model, context, tokens.action, steps=4)
        tied = act(model, context, tokens.action, steps=4, prefix=prefix, committed=committed)
    assert torch.equal(tied[0, :2], prefix[0, :2])
    assert (tied[0, 2:] - free[0, 2:]).abs().max() > 1e-5
    torch.testing.assert_close(tied[1], free[1], atol=2e-6, rtol=0)


@both
def test_joint_decoding_acts_as_acting_alone(family):
    model, (tokens, text, ids) = tiny_model(family), tiny_tokens()
    given = Tokens(tokens.state, tokens.reference)
    with torch.no_grad():
        context = observe(model, tokens.state, tokens.reference, text, ids)
        alone = act(model, context, tokens.action, steps=4)
        plain = joint(model, given, text, tokens.action, tokens.future, ids, steps=4)
        cached = joint(model, given, text, tokens.action, tokens.future, steps=4, context=context)
        seen = imagine(model, context, alone, tokens.future, steps=4)
    for actions, future in (plain, cached):
        torch.testing.assert_close(actions, alone, atol=5e-6, rtol=0)
        torch.testing.assert_close(future, plain[1], atol=5e-6, rtol=0)
    assert seen.shape == tokens.future.shape


def test_positions_past_the_rotary_table_are_refused():
    model = tiny_model(rope_max_seq_len=4)
    tokens, text, ids = tiny_tokens()
    with pytest.raises(GwpError, match="rope_max_seq_len"):
        model(tokens, LEVELS, text, ids)


@both
def test_bf16_weights_leave_norms_positions_and_modulation_in_fp32(family):
    """What a model in bf16 computes of these is what one in fp32 does with the same weights."""
    half, (tokens, _, _) = tiny_model(family).bfloat16(), tiny_tokens()
    whole = tiny_model(family)
    whole.load_state_dict(half.state_dict())
    level = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) * 1000
    for ours, theirs in zip(half.conditions.values(), whole.conditions.values(), strict=True):
        for got, want in zip(ours.time(level), theirs.time(level), strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(got, want)
    for group, x in tokens.present().items():
        for got, want in zip(half._rotary_of(group, x), whole._rotary_of(group, x), strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(got, want)
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    norms = [m for m in half.modules() if type(m).__name__ in ("RMSNorm", "Fp32LayerNorm")]
    assert norms
    for norm in norms:
        width = norm.weight.shape[0]
        y = x.float().repeat(1, width // 24 + 1)[:, :width]
        assert torch.equal(norm(y.bfloat16()), norm.float()(y.bfloat16().float()).bfloat16())


def test_pairs_are_turned_the_same_with_and_without_complex_numbers(monkeypatch):
    x = torch.randn(2, 5, 3, 8, requires_grad=True)
    angle = torch.randn(5, 4)
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=compiling: value)
        turned = rotate(x, angle.cos(), angle.sin())
        (gradient,) = torch.autograd.grad(turned.square().sum() + turned[..., 0].sum(), x)
        found.append((turned, gradient))
    torch.testing.assert_close(*found)
