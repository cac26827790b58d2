"""Masked losses and mode draws."""

import pytest
import torch

from gwp.model.draws import Levels, draw_noise
from gwp.model.objective import (
    Batch,
    Counts,
    ModesConfig,
    ObjectiveConfig,
    action_weights,
    counts_of,
    draw_video_only,
    levels_of,
    training_losses,
)
from tests.support.tiny import tiny_model, tiny_tokens


def make_batch(**changes):
    tokens, text, ids = tiny_tokens()
    fields = {
        "latents": torch.cat([tokens.reference, tokens.future], dim=2),
        "state": tokens.state,
        "actions": tokens.action,
        "step_valid": torch.ones(2, 5, dtype=torch.bool),
        "dim_valid": torch.ones(2, 6, dtype=torch.bool),
        "text": text,
        "embodiment": ids,
        "ok": torch.ones(2, dtype=torch.bool),
    }
    return Batch(**(fields | changes))


def draws(batch, objective, positions=None):
    positions = positions or range(len(batch.ok))
    levels = levels_of(objective, 3, positions, batch.actions.shape[1])
    future = batch.latents[0, :, 1:].shape
    return levels, draw_noise(3, positions, future, batch.actions.shape[1:])


def losses(batch, objective, video_only=False, model=None):
    drawn = draws(batch, objective)
    return training_losses(model or tiny_model(), batch, objective, video_only, *drawn)


def test_padding_never_reaches_the_loss():
    steps = torch.ones(2, 5, dtype=torch.bool)
    steps[:, 3:] = False
    dims = torch.ones(2, 6, dtype=torch.bool)
    dims[:, 4:] = False
    model = tiny_model("gwp0")
    batch = make_batch(step_valid=steps, dim_valid=dims)
    # Targets of padded entries are changed through the mask only: the same inputs, other
    # validity, must weigh differently.
    masked = losses(batch, ObjectiveConfig(), model=model)
    full = losses(make_batch(), ObjectiveConfig(), model=model)
    published = losses(batch, ObjectiveConfig(masking="published"), model=model)
    assert masked.action != full.action
    assert published.action == full.action
    torch.testing.assert_close(published.video, full.video / 2)


def test_action_conditioned_batches_learn_only_the_future():
    model = tiny_model()
    result = losses(make_batch(), ObjectiveConfig(modes=ModesConfig(ac_wm=1, wam=0)), model=model)
    assert result.action == 0
    result.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.action_decoder.parameters())
    assert model.proj_out.weight.grad.abs().max() > 0


def test_clean_prefix_is_neither_noised_nor_learnt():
    seen = {}
    model = tiny_model()
    model.register_forward_pre_hook(lambda _m, args: seen.update(tokens=args[0], noise=args[1]))
    batch = make_batch()
    losses(batch, ObjectiveConfig(chunk_prefix=1.0, max_prefix=4), model=model)
    clean = seen["noise"]["A"] == 0
    assert clean.any()
    torch.testing.assert_close(seen["tokens"].action[clean], batch.actions[clean])


def test_video_only_leaves_the_action_side_untouched():
    model = tiny_model()
    result = losses(make_batch(), ObjectiveConfig(), video_only=True, model=model)
    result.total.backward()
    assert result.action is None
    assert all(p.grad is None for p in model.action_encoder.parameters())


def of(batch, rows):
    return Batch(**{name: value[rows] for name, value in vars(batch).items()})


def test_parts_of_a_batch_add_up_to_it_whatever_is_learnt_in_each():
    """Not so with means of means: one part has five actions to learn, the other one."""
    steps = torch.ones(2, 5, dtype=torch.bool)
    steps[1, 1:] = False
    dims = torch.ones(2, 6, dtype=torch.bool)
    dims[0, 4:] = False
    batch = make_batch(step_valid=steps, dim_valid=dims)
    for masking in ("valid", "published"):
        objective = ObjectiveConfig(masking=masking)
        model = tiny_model()
        whole = losses(batch, objective, model=model)
        learnt, parts = [], []
        for i in (0, 1):
            one = of(batch, slice(i, i + 1))
            drawn = draws(one, objective, [i])
            weights = action_weights(objective, drawn[0], one.step_valid, one.dim_valid, one.ok)
            learnt.append(counts_of(weights, one.ok))
            parts.append((one, drawn))
        counts = Counts(sum(c.action for c in learnt), sum(c.video for c in learnt))
        shares = [
            training_losses(model, one, objective, False, *drawn, counts) for one, drawn in parts
        ]
        for name in ("total", "action", "video"):
            total = sum(getattr(share, name) for share in shares)
            torch.testing.assert_close(total, getattr(whole, name), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("video_only", [False, True])
@pytest.mark.parametrize("masking", ["valid", "published"])
def test_a_sample_that_could_not_be_read_counts_for_nothing(masking, video_only):
    objective, model = ObjectiveConfig(masking=masking), tiny_model()
    alone = losses(of(make_batch(), slice(0, 1)), objective, video_only, model)
    beside = losses(make_batch(ok=torch.tensor([True, False])), objective, video_only, model)
    torch.testing.assert_close(beside.total, alone.total, atol=1e-6, rtol=1e-6)
    none = losses(make_batch(ok=torch.zeros(2, dtype=torch.bool)), objective, video_only, model)
    assert none.total == 0


def test_what_can_teach_nothing_is_refused():
    for modes in ({"video": 1}, {"ac_wm": 0.5}):
        with pytest.raises(ValueError, match="video_weight 0 leaves nothing to learn"):
            ObjectiveConfig(video_weight=0, modes=ModesConfig(**modes))
    # A batch without actions among others: no loss, and no weight of 1 instead of 0.
    result = losses(make_batch(), ObjectiveConfig(video_weight=0), video_only=True)
    assert result.total == 0


def test_weights_scale_the_total():
    one = losses(make_batch(), ObjectiveConfig(action_weight=5.0, video_weight=1.0))
    torch.testing.assert_close(one.total.detach(), 5 * one.action + one.video)
    no_video = losses(make_batch(), ObjectiveConfig(video_weight=0.0))
    assert no_video.video is None


def test_batches_without_actions_are_video_only():
    g = torch.Generator().manual_seed(0)
    assert draw_video_only(ModesConfig(), has_action=False, generator=g)
    assert not draw_video_only(ModesConfig(), has_action=True, generator=g)
    share = sum(draw_video_only(ModesConfig(video=1, wam=3), True, g) for _ in range(2000)) / 2000
    assert share == pytest.approx(0.25, abs=0.04)


def test_the_model_may_be_told_timesteps_as_the_released_trainers_round_them(monkeypatch):
    """What is mixed is exact; what is told has steps of 4 above 512, of 2 above 256."""
    model, batch = tiny_model(), make_batch()
    levels = Levels(
        torch.tensor([0.817, 0.301]),
        torch.full((2, 5), 0.729),
        torch.ones(2, 5, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.bool),
    )
    noise = draw_noise(0, [0, 1], batch.latents[0, :, 1:].shape, batch.actions.shape[1:])
    told = []

    def spy(tokens, levels, *args, **kwargs):
        told.append((tokens, levels))
        return type(model).forward(model, tokens, levels, *args, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    for timesteps in ("exact", "bf16"):
        objective = ObjectiveConfig(timesteps=timesteps)
        training_losses(model, batch, objective, False, levels, noise)
    (exact, as_they_are), (same, rounded) = told
    assert torch.equal(exact.action, same.action)
    assert torch.equal(exact.future, same.future)
    assert torch.equal(as_they_are["F"], levels.future)
    torch.testing.assert_close(rounded["F"], torch.tensor([0.816, 0.300]), atol=1e-6, rtol=0)
    torch.testing.assert_close(rounded["A"], torch.full((2, 5), 0.728), atol=1e-6, rtol=0)


@pytest.mark.parametrize("video_only", [False, True])
def test_a_dropped_instruction_is_zeros_to_the_model_and_others_stay(monkeypatch, video_only):
    model, batch = tiny_model(), make_batch()
    told = []

    def spy(tokens, levels, text, *args, **kwargs):
        told.append(text)
        return type(model).forward(model, tokens, levels, text, *args, **kwargs)

    monkeypatch.setattr(model, "forward", spy)
    objective = ObjectiveConfig(text_dropout=0.5)
    # A sample with its instruction beside one without.
    positions = next(
        [i, i + 1]
        for i in range(100)
        if levels_of(objective, 3, [i, i + 1], 5).told.tolist() == [True, False]
    )
    training_losses(model, batch, objective, video_only, *draws(batch, objective, positions))
    assert torch.equal(told[0][0], batch.text[0])
    assert not told[0][1].any()
    shares = levels_of(objective, 3, range(1000), 5).told.float().mean()
    assert float(shares) == pytest.approx(0.5, abs=0.06)
    # Whatever share: all else that is drawn is the same.
    plain = levels_of(ObjectiveConfig(), 3, range(50), 5)
    dropped = levels_of(objective, 3, range(50), 5)
    assert plain.told.all()
    for name in ("future", "action", "learnt"):
        assert torch.equal(getattr(plain, name), getattr(dropped, name))
