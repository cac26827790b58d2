"""A sample without state and actions, in a pass beside others that have them, is what it is in a
pass without those groups.
"""

import pytest
import torch
from torch import Tensor

from gwp.model.draws import draw_noise
from gwp.model.objective import (
    Batch,
    Losses,
    ModesConfig,
    ObjectiveConfig,
    action_weights,
    counts_of,
    levels_of,
    training_losses,
)
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


OBJECTIVES = [
    ObjectiveConfig(modes=ModesConfig(video=1, ac_wm=1, wam=2), action_weight=5, video_weight=0.5),
    ObjectiveConfig(chunk_prefix=0.5, max_prefix=3, text_dropout=0.3, shared_noise=True),
    ObjectiveConfig(masking="published", timesteps="bf16"),
]
SIZE = 8
LABELLED = [True, False, True, True, False, True, False, True]


def batch_of(size: int = SIZE) -> Batch:
    tokens, text, ids = tiny_tokens(batch=size, future=2)
    some = torch.Generator().manual_seed(5)
    return Batch(
        latents=torch.cat([tokens.reference, tokens.future], dim=2),
        state=tokens.state,
        actions=tokens.action,
        step_valid=torch.arange(5) < torch.randint(1, 6, (size, 1), generator=some),
        dim_valid=torch.arange(6) < torch.randint(2, 7, (size, 1), generator=some),
        text=text,
        embodiment=ids,
        ok=torch.arange(size) != size - 1,
    )


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    return Batch(**{name: value[rows] for name, value in vars(batch).items()})


def loss_of(
    model: WorldActionTransformer, batch: Batch, objective: ObjectiveConfig, parts: bool
) -> list[Losses]:
    """Of a mixed batch as it is, or of its two parts apart, of video alone and with actions."""
    labelled = LABELLED[: len(batch.ok)]
    levels = levels_of(objective, 1, range(len(labelled)), 5, labelled)
    noise = draw_noise(1, range(len(labelled)), batch.latents[0, :, 1:].shape, (5, 6))
    weights = action_weights(objective, levels, batch.step_valid, batch.dim_valid, batch.ok)
    counts = counts_of(weights, batch.ok)
    alone = levels.video_only
    assert alone.any()
    assert not alone.all()
    if not parts:
        return [training_losses(model, batch, objective, False, levels, noise, counts)]
    found = []
    for rows, video_only in ((~alone, False), (alone, True)):
        # Slices are what `Levels` takes; a mask is what this takes.
        some = type(levels)(*(value[rows] for value in vars(levels).values()))
        its = (noise[0][rows], noise[1][rows])
        own = rows_of(batch, rows)
        found.append(training_losses(model, own, objective, video_only, some, its, counts))
    return found


@both
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_mixed_batch_is_the_sum_of_its_parts(family, objective: ObjectiveConfig):
    model, batch = tiny_model(family).train(), batch_of()
    (whole,), (acting, video) = (loss_of(model, batch, objective, parts) for parts in (False, True))
    close = {"atol": 2e-6, "rtol": 2e-5}
    torch.testing.assert_close(whole.total, acting.total + video.total, **close)
    torch.testing.assert_close(whole.action, acting.action, **close)
    torch.testing.assert_close(whole.video, acting.video + video.video, **close)
    together = gradients(model, whole.total)
    apart = gradients(model, acting.total)
    for name, gradient in gradients(model, video.total).items():
        apart[name] = apart[name] + gradient
    # Every parameter takes part, so that no rank has another graph.
    assert together.keys() == apart.keys() == dict(model.named_parameters()).keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], atol=1e-5, rtol=1e-4)


@both
def test_numbers_in_place_of_what_is_absent_count_for_nothing(family):
    """Not even those that are none."""
    model, objective = tiny_model(family).train(), OBJECTIVES[0]
    found = []
    for junk in (0.0, 1e4, torch.nan):
        batch = batch_of()
        absent = ~torch.tensor(LABELLED)
        batch.state[absent] = junk
        batch.actions[absent] = junk
        batch.step_valid[absent] = bool(junk)
        (losses,) = loss_of(model, batch, objective, parts=False)
        found.append((losses.total.detach(), gradients(model, losses.total)))
    (first, gradient), *others = found
    assert first.isfinite()
    for total, other in others:
        assert torch.equal(total, first)
        assert all(torch.equal(other[name], gradient[name]) for name in gradient)


@pytest.mark.parametrize("labelled", [None, [True] * SIZE])
def test_where_all_have_actions_there_is_no_mask_and_the_same_loss(labelled):
    model, batch, objective = tiny_model(), batch_of(), ObjectiveConfig()
    seen = []
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0].video_only))
    levels = levels_of(objective, 1, range(SIZE), 5, labelled)
    noise = draw_noise(1, range(SIZE), batch.latents[0, :, 1:].shape, (5, 6))
    plain = levels_of(objective, 1, range(SIZE), 5)
    losses = [
        training_losses(model, batch, objective, False, drawn, noise).total
        for drawn in (levels, plain)
    ]
    assert seen == [None, None]
    assert torch.equal(*losses)


def test_a_stage_of_video_alone_has_no_sample_that_acts():
    objective = ObjectiveConfig(modes=ModesConfig(video=1, ac_wm=0, wam=0))
    assert levels_of(objective, 0, range(50), 5, [True] * 50).video_only.all()
