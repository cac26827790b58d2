"""Masked losses and mode draws."""

import pytest
import torch

from gwp.model.objective import (
    Batch,
    ModesConfig,
    ObjectiveConfig,
    draw_video_only,
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
    }
    return Batch(**(fields | changes))


def losses(batch, objective, video_only=False, model=None):
    return training_losses(
        model or tiny_model(), batch, objective, video_only, torch.Generator().manual_seed(3)
    )


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


def test_the_same_generator_gives_the_same_loss():
    assert (
        losses(make_batch(), ObjectiveConfig()).total
        == losses(make_batch(), ObjectiveConfig()).total
    )


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
