"""Three orders of segments and latent frames, one transformer: what each token sees, and what
denoising makes of it.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from gwp.errors import GwpError
from gwp.model.config import VISIBILITIES, Group
from gwp.model.denoise import act, imagine, observe
from gwp.model.draws import draw_noise
from gwp.model.flow import solver_sigmas
from gwp.model.objective import (
    Batch,
    ObjectiveConfig,
    idle_loss,
    levels_of,
    training_losses,
)
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.model.weights import load_model, read_config, save_weights
from tests.support.tiny import ARMS, FAMILY_ARMS, tiny_config, tiny_model, tiny_tokens

both = pytest.mark.parametrize("family", ["gwp0", "gwp05"])
arms = pytest.mark.parametrize(("family", "arm"), FAMILY_ARMS)
RIVALS = ("joint", "video-first", "latent-frame")
LEVELS = {"A": torch.tensor([0.5, 0.04]), "F": torch.tensor([0.3, 0.9])}
FIELDS: dict[Group, str] = {"S": "state", "R": "reference", "A": "action", "F": "future"}
# Written out, so that a wrong table of segments does not check itself.
SEES: dict[str, dict[Group, str]] = {
    "action-centred": {"R": "SR", "A": "SRA", "F": "SRAF"},
    "joint": {"R": "SR", "A": "SRAF", "F": "SRAF"},
    "video-first": {"R": "SR", "A": "SRAF", "F": "SRF"},
    "latent-frame": {"R": "SR", "A": "SRAF", "F": "SRAF"},
}
STEPS, SHIFT = 3, 5.0


def of(velocity, group: Group) -> torch.Tensor:
    found = getattr(velocity, FIELDS[group])
    assert found is not None
    return found


@arms
@torch.no_grad()
def test_a_token_sees_its_segment_and_those_before_it_and_no_other(family, arm):
    model, (tokens, text, ids) = tiny_model(family, **ARMS[arm]), tiny_tokens(future=2)
    before = model(tokens, LEVELS, text, ids, heads="RAF")
    for changed, field in FIELDS.items():
        other = replace(tokens, **{field: getattr(tokens, field) + 0.5})
        levels = LEVELS | ({changed: LEVELS[changed] * 0.3} if changed in LEVELS else {})
        after = model(other, levels, text, ids, heads="RAF")
        for query, seen in SEES[arm].items():
            if changed in seen:
                assert (of(before, query) - of(after, query)).abs().max() > 1e-4, (query, changed)
            else:
                assert torch.equal(of(before, query), of(after, query)), (query, changed)


@arms
@torch.no_grad()
def test_cached_segments_are_those_of_one_pass(family, arm):
    model, (tokens, text, ids) = tiny_model(family, **ARMS[arm]), tiny_tokens(future=2)
    whole = model(tokens, LEVELS, text, ids)
    context = observe(model, tokens.state, tokens.reference, text, ids)
    after = model(Tokens(action=tokens.action, future=tokens.future), LEVELS, context=context)
    for group in ("A", "F"):
        torch.testing.assert_close(of(after, group), of(whole, group), atol=2e-6, rtol=0)
    segments = model.config.segments
    assert context.groups == ("S", "R")
    if len(segments) < 3:
        return
    (middle,), (last,) = segments[1:]
    clean = model(tokens, {last: LEVELS[last]}, text, ids)
    longer = model.extend(
        Tokens(**{FIELDS[middle]: getattr(tokens, FIELDS[middle])}), context=context
    )
    assert longer.groups == ("S", "R", middle)
    behind = Tokens(**{FIELDS[last]: getattr(tokens, FIELDS[last])})
    out = model(behind, {last: LEVELS[last]}, context=longer)
    torch.testing.assert_close(of(out, last), of(clean, last), atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("visibility", "first", "then"),
    [
        ("joint", "A", "F"),
        ("joint", "F", "A"),
        ("video-first", "A", "F"),
        ("action-centred", "F", "A"),
    ],
)
def test_a_context_takes_no_tokens_that_those_in_it_should_have_seen(visibility, first, then):
    model, (tokens, text, ids) = tiny_model(visibility=visibility), tiny_tokens()
    context = observe(model, tokens.state, tokens.reference, text, ids)
    parts = {g: Tokens(**{FIELDS[g]: getattr(tokens, FIELDS[g])}) for g in ("A", "F")}
    longer = model.extend(parts[first], context=context)
    with pytest.raises(ValueError, match="must follow the context's"):
        model(parts[then], LEVELS, context=longer)


@arms
@pytest.mark.parametrize("alone", [torch.tensor([False, True])])
@torch.no_grad()
def test_a_sample_that_is_video_only_is_so_among_others(family, arm, alone):
    model, (tokens, text, ids) = tiny_model(family, **ARMS[arm]), tiny_tokens(future=2)
    mixed = model(replace(tokens, video_only=alone), LEVELS, text, ids)
    bare = Tokens(reference=tokens.reference, future=tokens.future)
    video = model(bare, {"F": LEVELS["F"]}, text, ids)
    whole = model(tokens, LEVELS, text, ids)
    torch.testing.assert_close(mixed.future[1], video.future[1], atol=2e-6, rtol=0)
    torch.testing.assert_close(mixed.future[0], whole.future[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(mixed.action[0], whole.action[0], atol=2e-6, rtol=0)


def plain(
    model: WorldActionTransformer,
    tokens: Tokens,
    text: torch.Tensor,
    ids: torch.Tensor,
    promised: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions and future by whole passes, without any cache. promised: bool `[B, p]`, actions that
    are 0.25
    """
    x, y = tokens.action, tokens.future
    committed = torch.zeros(x.shape[:2], dtype=torch.bool) if promised is None else promised
    together = model.config.visibility == "joint"
    sigmas = solver_sigmas(STEPS, SHIFT)

    def velocities(action, sigma_a, future, sigma_f):
        if model.config.actions == "tokens":
            action = torch.where(committed[..., None], 0.25, action)
            level = torch.where(committed, 0.0, sigma_a)
        else:
            # All of a frame have one level, those promised too.
            shown = sigma_a * tokens.action + (1 - sigma_a) * 0.25
            action = torch.where(committed[..., None], shown, action)
            level = torch.full((len(action),), float(sigma_a))
        full = Tokens(tokens.state, tokens.reference, action, future)
        return model(full, {"A": level, "F": torch.full((len(x),), float(sigma_f))}, text, ids)

    if not together:
        for now, after in pairwise(sigmas):
            # Whatever the actions are: the future does not see them.
            y = y + (after - now) * velocities(x * 7, 1.0, y, now).future
    for now, after in pairwise(sigmas):
        out = velocities(x, now, y, now if together else 0.0)
        x = x + (after - now) * out.action
        y = y + (after - now) * out.future if together else y
    return torch.where(committed[..., None], 0.25, x), y


@pytest.mark.parametrize(("family", "arm"), [kind for kind in FAMILY_ARMS if kind[1] in RIVALS])
@pytest.mark.parametrize(
    "promised", [None, torch.arange(5).expand(2, 5) < torch.tensor([[2], [0]])]
)
@torch.no_grad()
def test_acting_on_a_context_is_the_plain_loop_without_one(family, arm, promised):
    model, (tokens, text, ids) = tiny_model(family, **ARMS[arm]), tiny_tokens(future=2)
    expected, future = plain(model, tokens, text, ids, promised)
    context = observe(model, tokens.state, tokens.reference, text, ids)
    given = torch.full_like(tokens.action, 0.25)
    found = act(model, context, tokens.action, STEPS, SHIFT, given, promised, future=tokens.future)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    if arm == "video-first":
        seen = imagine(model, context, None, tokens.future, STEPS, SHIFT)
        torch.testing.assert_close(seen, future, atol=5e-6, rtol=0)
    with pytest.raises(ValueError, match="give its noise"):
        act(model, context, tokens.action, STEPS)


@pytest.mark.parametrize(("family", "arm"), [("gwp05", "joint"), ("gwp0", "latent-frame")])
@torch.no_grad()
def test_joint_futures_are_imagined_with_given_actions_beside_them(family, arm):
    model, (tokens, text, ids) = tiny_model(family, **ARMS[arm]), tiny_tokens(future=2)
    context = observe(model, tokens.state, tokens.reference, text, ids)
    y = tokens.future
    for now, after in pairwise(solver_sigmas(STEPS, SHIFT)):
        full = Tokens(tokens.state, tokens.reference, tokens.action, y)
        y = y + (after - now) * model(full, {"F": now.expand(2)}, text, ids).future
    found = imagine(model, context, tokens.action, tokens.future, STEPS, SHIFT)
    torch.testing.assert_close(found, y, atol=5e-6, rtol=0)


def test_a_visibility_is_named_or_listed_and_nothing_else():
    listed = {
        "action-centred": [["R", "S"], ["A"], ["F"]],
        "joint": [["S", "R"], ["F", "A"]],
        "video-first": (("S", "R"), ("F",), ("A",)),
    }
    for name, segments in listed.items():
        assert tiny_config(visibility=segments) == tiny_config(visibility=name)
    assert tiny_config() == tiny_config(visibility="action-centred")
    for wrong in (
        "motus",
        [["S"], ["R"], ["A"], ["F"]],
        [["S", "R", "A", "F"]],
        [["S", "R"], 3],
        1,
    ):
        with pytest.raises(ValidationError, match=r"video-first \(\[\[S, R\], \[F\], \[A\]\]\)"):
            tiny_config(visibility=wrong)


@arms
def test_checkpoints_carry_it_and_published_ones_need_not(family, arm, tmp_path):
    model = tiny_model(family, **ARMS[arm])
    visibility = model.config.visibility
    save_weights(tmp_path, model.config, model.state_dict())
    assert read_config(tmp_path) == load_model(tmp_path).config == model.config
    # As the released models are written, to the key.
    named = "visibility" in model.config.to_published()
    assert named == (visibility != "action-centred")
    assert ("actions" in model.config.to_published()) == (arm == "latent-frame")
    about = (tmp_path / "config.json").read_text().replace("{", '{"visibility": "odd",', 1)
    (tmp_path / "config.json").write_text(about.replace(f'"visibility": "{visibility}",', ""))
    if not named:
        with pytest.raises(GwpError, match=r"config\.json: visibility 'odd' is unknown"):
            read_config(tmp_path)


def test_weights_of_one_visibility_are_those_of_another():
    shapes = [
        {n: p.shape for n, p in tiny_model(visibility=v).named_parameters()} for v in VISIBILITIES
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@arms
def test_a_step_of_training_reaches_every_parameter(family, arm):
    model = tiny_model(family, **ARMS[arm]).train()
    tokens, text, ids = tiny_tokens(batch=2, future=1)
    batch = Batch(
        latents=torch.cat([tokens.reference, tokens.future], dim=2),
        state=tokens.state,
        actions=tokens.action,
        step_valid=torch.ones(2, 5, dtype=torch.bool),
        dim_valid=torch.ones(2, 6, dtype=torch.bool),
        text=text,
        embodiment=ids,
        ok=torch.ones(2, dtype=torch.bool),
    )
    objective = ObjectiveConfig()
    levels = levels_of(objective, 3, [0, 1], 5)
    # Actions and future have levels of their own.
    assert (levels.future != levels.action[:, 0]).all()
    noise = draw_noise(3, [0, 1], (4, 1, 6, 4), (5, 6))
    losses = training_losses(model, batch, objective, False, levels, noise)
    losses.total.backward()
    # The rows of other robots, for one, are reached by an idle pass.
    idle_loss(model, text).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@both
@pytest.mark.parametrize("visibility", ["joint", "video-first"])
def test_the_loss_of_actions_teaches_how_the_future_is_read(family, visibility):
    found = []
    for seen in ("action-centred", visibility):
        model, (tokens, text, ids) = tiny_model(family, visibility=seen), tiny_tokens()
        future = tokens.future.clone().requires_grad_()
        model(replace(tokens, future=future), LEVELS, text, ids).action.square().sum().backward()
        found.append(future.grad is not None and bool(future.grad.any()))
    assert found == [False, True]
