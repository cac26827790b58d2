"""A sample without state and actions, in a pass beside others that have them, is what it is in a
pass without those groups.
"""

import pytest
import torch
from torch import Tensor

from gwp.model.recompute import Recompute
from gwp.model.transformer import Tokens, Velocity, WorldActionTransformer
from tests.support.tiny import tiny_model, tiny_tokens

both = pytest.mark.parametrize("family", ["gwp0", "gwp05"])
LEVELS = {"A": torch.tensor([0.5, 0.04, 0.7, 0.1]), "F": torch.tensor([0.3, 0.9, 0.6, 0.2])}
ALONE = torch.tensor([False, True, False, True])


def mixed(alone: Tensor | None = ALONE) -> tuple[Tokens, Tensor, Tensor]:
    tokens, text, ids = tiny_tokens(batch=4, future=2)
    fields = (tokens.state, tokens.reference, tokens.action, tokens.future)
    return Tokens(*fields, video_only=alone), text, ids


def learnt(out: Velocity) -> Tensor:
    """What trains: videos of all, actions of those that have some."""
    return out.action[~ALONE].square().sum() + out.future.square().sum()


def gradients(model: WorldActionTransformer, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


@both
@pytest.mark.parametrize("how", [False, True, "selective"])
def test_its_state_and_actions_reach_nothing_that_is_learnt(family, how: Recompute):
    model, (tokens, text, ids) = tiny_model(family).train(), mixed()
    model.gradient_checkpointing = how
    found = []
    for noise in (0.0, 100.0):
        state, action = tokens.state.clone(), tokens.action.clone()
        state[ALONE] += noise
        action[ALONE] -= noise
        given = Tokens(state, tokens.reference, action, tokens.future, ALONE)
        levels = LEVELS | {"A": LEVELS["A"] + noise * ALONE / 1000}
        out = model(given, levels, text, ids, heads=("R", "A", "F"))
        found.append((out, gradients(model, learnt(out))))
    (a, of_a), (b, of_b) = found
    assert torch.equal(a.future, b.future)
    assert torch.equal(a.reference, b.reference)
    assert torch.equal(a.action[~ALONE], b.action[~ALONE])
    # The change was one: where it is not hidden it is seen.
    assert (a.action[ALONE] - b.action[ALONE]).abs().max() > 1e-3
    assert of_a.keys() == of_b.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(of_a[name], of_b[name]) for name in of_a)


@both
def test_its_video_and_gradients_are_those_of_a_pass_without_the_groups(family):
    model, (tokens, text, ids) = tiny_model(family).double(), mixed()
    tokens = Tokens(*(x.double() for x in tokens.present().values()), video_only=ALONE)
    text = text.double()
    out = model(tokens, LEVELS, text, ids, heads=("R", "A", "F"))
    rest = Tokens(*(x[~ALONE] for x in tokens.present().values()))
    labelled = model(rest, {g: s[~ALONE] for g, s in LEVELS.items()}, text[~ALONE], ids[~ALONE])
    plain = Tokens(reference=tokens.reference[ALONE], future=tokens.future[ALONE])
    video = model(plain, {"F": LEVELS["F"][ALONE]}, text[ALONE], heads=("R", "F"))
    close = {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(out.future[ALONE], video.future, **close)
    torch.testing.assert_close(out.reference[ALONE], video.reference, **close)
    torch.testing.assert_close(out.future[~ALONE], labelled.future, **close)
    torch.testing.assert_close(out.action[~ALONE], labelled.action, **close)
    parts = labelled.action.square().sum() + labelled.future.square().sum()
    apart = gradients(model, parts)
    for name, gradient in gradients(model, video.future.square().sum()).items():
        apart[name] = apart.get(name, 0) + gradient
    together = gradients(model, learnt(out))
    assert together.keys() == apart.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], atol=1e-5, rtol=1e-5)


@both
def test_where_none_is_video_only_the_mask_changes_nothing(family):
    model = tiny_model(family)
    with torch.no_grad():
        plain, masked = (
            model(tokens, LEVELS, text, ids)
            for tokens, text, ids in (mixed(None), mixed(torch.zeros(4, dtype=torch.bool)))
        )
    torch.testing.assert_close(masked.action, plain.action, atol=2e-6, rtol=0)
    torch.testing.assert_close(masked.future, plain.future, atol=2e-6, rtol=0)


def test_a_context_is_of_samples_that_have_a_state():
    model, (tokens, text, ids) = tiny_model(), mixed()
    prefix = Tokens(tokens.state, tokens.reference, video_only=ALONE)
    with pytest.raises(ValueError, match="video only"):
        model.extend(prefix, text=text, embodiment=ids)
    context = model.extend(Tokens(tokens.state, tokens.reference), text=text, embodiment=ids)
    rest = Tokens(action=tokens.action, future=tokens.future, video_only=ALONE)
    with pytest.raises(ValueError, match="video only"):
        model(rest, LEVELS, context=context)


@both
def test_compiled_blocks_hide_it_too(family):
    model, (tokens, text, ids) = tiny_model(family, num_layers=1), mixed()
    plain = model(tokens, LEVELS, text, ids)
    for block in model.blocks:
        block.compile(backend="aot_eager")
    compiled = model(tokens, LEVELS, text, ids)
    torch.testing.assert_close(compiled.action, plain.action, atol=2e-6, rtol=0)
    torch.testing.assert_close(compiled.future, plain.future, atol=2e-6, rtol=0)
