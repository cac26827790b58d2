"""Actions and state as latent frames: how values fill them and are read out, and that such a model
learns as the others do, with the masks that hold for them.
"""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from gwp.errors import GwpError
from gwp.model.cost import tokens_of
from gwp.model.draws import Levels, draw_noise
from gwp.model.frames import frames_of, read_out, with_frames
from gwp.model.inference.fused import FusedTransformer
from gwp.model.objective import Batch, ObjectiveConfig, levels_of, training_losses
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.model.weights import build_model, load_model, open_checkpoint, save_weights
from gwp.model.weights.derive import convert, require_same
from gwp.policy.solver import Shapes, Solver
from tests.support.tiny import ARMS, tiny_config, tiny_model, tiny_tokens

FRAMES = ARMS["latent-frame"]
OBJECTIVE = ObjectiveConfig()
CONFIG = tiny_config("gwp0", **FRAMES)
# Rows and columns of a frame of 4 channels: 96, 16 and 32 numbers for 30 values.
SIZES = [(6, 4), (2, 2), (4, 2)]


def filled(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
    present = {"R": torch.zeros(len(x), 4, 1, h, w), "A": x}
    return with_frames(CONFIG, present)["A"]


@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_out_is_what_was_filled_in_to_the_bit(h, w, dtype):
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype) * 1e3
    frames = filled(x, h, w)
    T = frames_of(CONFIG, 5, h, w)
    assert frames.shape == (3, 4, T, h, w) == (3, 4, 2 if h * w == 4 else 1, h, w)
    assert torch.equal(read_out(frames, 5, 6), x.float())


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_every_place_counts_as_every_other_of_its_value(h, w):
    """None is left over: the last copy is cut off, and its places are read, too."""
    numbers = torch.arange(30.0).reshape(1, 5, 6)
    frames = filled(numbers, h, w)
    places = torch.bincount(frames.flatten().long(), minlength=30)
    assert places.sum() == frames.numel()
    assert places.min() >= frames.numel() // 30
    assert places.max() - places.min() <= 1
    # A frame after the other, each by channel, row and column.
    flat = frames.transpose(1, 2).flatten()
    assert torch.equal(flat, torch.arange(len(flat)).remainder(30).float())
    frames.requires_grad_()
    read_out(frames, 5, 6).sum().backward()
    expected = 1.0 / places[frames.detach().long()]
    torch.testing.assert_close(frames.grad, expected)


@torch.no_grad()
def test_it_has_the_weights_of_the_joint_model_but_for_the_projections():
    model, (tokens, text, ids) = tiny_model("gwp0", **FRAMES), tiny_tokens()
    names = {name for name, _ in model.named_parameters()}
    assert not {name for name in names if "action" in name or "state" in name}
    joint = {name for name, _ in tiny_model("gwp0", visibility="joint").named_parameters()}
    assert joint - names == {n for n in joint if n.startswith(("action_encoder", "action_decoder"))}
    # Nothing belongs to one robot.
    levels = {"A": torch.tensor([0.5, 0.2]), "F": torch.tensor([0.3, 0.9])}
    one, other = (model(tokens, levels, text, i).action for i in (ids, ids.flip(0)))
    assert torch.equal(one, other)


@torch.no_grad()
def test_the_video_stands_where_it_does_without_states_and_actions():
    """So its weights may come from stages that had none."""
    model, (tokens, text, ids) = tiny_model("gwp0", **FRAMES), tiny_tokens(future=2)
    joint = tiny_model("gwp0", visibility="joint")
    same = {n: p for n, p in joint.state_dict().items() if n in model.state_dict()}
    model.load_state_dict(same)
    bare = Tokens(reference=tokens.reference, future=tokens.future)
    level = {"F": torch.tensor([0.3, 0.9])}
    assert torch.equal(model(bare, level, text, ids).future, joint(bare, level, text, ids).future)


def test_frames_alone_have_no_size_and_too_small_ones_no_room():
    model, (tokens, text, ids) = tiny_model("gwp0", **FRAMES), tiny_tokens()
    with pytest.raises(ValueError, match="the size of those beside them"):
        model(Tokens(action=tokens.action), {}, text, ids)
    with pytest.raises(ValueError, match="5 noise levels of a group of 6 tokens"):
        model(tokens, {"A": torch.rand(2, 5)}, text, ids)
    with pytest.raises(GwpError, match=r"a latent frame has 4 numbers, and .* is 6"):
        tokens_of(tiny_config("gwp0", **FRAMES, patch_size=(1, 1, 1)), (2, 1, 1), 5)


@pytest.mark.parametrize(
    ("family", "changes"), [("gwp05", FRAMES), ("gwp0", {"actions": "latent-frame"})]
)
def test_it_has_one_expert_and_denoises_everything_together(family, changes):
    with pytest.raises(ValidationError, match="set family gwp0 and visibility joint"):
        tiny_config(family, **changes)


def test_a_configuration_of_before_is_dumped_as_before():
    assert "actions" not in tiny_config().model_dump()
    again = tiny_config("gwp0", **FRAMES)
    assert type(again).model_validate(again.model_dump()) == again


def test_latent_frames_start_from_tokens_without_their_projections_and_not_the_other_way(tmp_path):
    tokens, frames = tiny_config("gwp0"), tiny_config("gwp0", **ARMS["latent-frame"])
    for name, config in (("tokens", tokens), ("frames", frames)):
        save_weights(tmp_path / name, config, build_model(config, 0).state_dict())
    source = open_checkpoint(tmp_path / "tokens")
    require_same(source, frames, "x")
    with pytest.raises(GwpError, match=r"num_layers is 2, the job's `model` says 3; copy"):
        require_same(source, frames.model_copy(update={"num_layers": 3}), "x")
    words = "x: actions is latent-frame, the job's `model` says tokens; copy its widths"
    with pytest.raises(GwpError, match=words):
        require_same(open_checkpoint(tmp_path / "frames"), tokens, "x")
    # What is made of one is one.
    convert(open_checkpoint(tmp_path / "frames"), tmp_path / "out", frames)
    assert load_model(tmp_path / "out").config == frames


def batch(actions: torch.Tensor, state: torch.Tensor, latents: torch.Tensor, dims: int) -> Batch:
    n, p, d = actions.shape
    return Batch(
        latents=latents,
        state=state,
        actions=actions,
        step_valid=torch.ones(n, p, dtype=torch.bool),
        dim_valid=(torch.arange(d) < dims).expand(n, d),
        text=torch.zeros(n, 3, 16),
        embodiment=torch.zeros(n, dtype=torch.long),
        ok=torch.ones(n, dtype=torch.bool),
    )


def toy(n: int, seed: int) -> Batch:
    """Actions and future that the state tells: the first two of six channels belong to a robot."""
    g = torch.Generator().manual_seed(seed)
    state = torch.zeros(n, 1, 6)
    state[:, :, :2] = torch.randn(n, 1, 2, generator=g)
    slope = torch.linspace(-1, 1, 5)[None, :, None]
    future = torch.ones(n, 4, 1, 6, 4) * state[:, 0, :1, None, None, None]
    latents = torch.cat([torch.zeros(n, 4, 1, 6, 4), future], dim=2)
    return batch(slope * state, state, latents, 2)


def losses_of(model, data: Batch, levels: Levels, noise):
    return training_losses(model, data, OBJECTIVE, False, levels, noise)


def drawn(seed: int, n: int):
    positions = list(range(seed * n, seed * n + n))
    return (
        levels_of(OBJECTIVE, 0, positions, 5),
        draw_noise(0, positions, (4, 1, 6, 4), (5, 6)),
    )


class Watched:
    """A model, as engines wrap them, that keeps the velocities that it gave."""

    def __init__(self, model: WorldActionTransformer) -> None:
        self.module = model
        self.action = torch.empty(0)

    def __call__(self, *args, **kwargs):
        out = self.module(*args, **kwargs)
        out.action.retain_grad()
        self.action = out.action
        return out


def test_padding_and_steps_that_are_not_there_teach_nothing():
    watched, data = Watched(tiny_model("gwp0", **FRAMES)), toy(4, 0)
    levels, noise = drawn(0, 4)
    lengths = torch.tensor([[5], [3], [1], [4]])
    data = replace(data, step_valid=torch.arange(5).expand(4, 5) < lengths)
    told = losses_of(watched, data, levels, noise)
    assert told.counts_each[0].tolist() == [10, 6, 2, 8]
    told.total.backward()
    learnt = data.step_valid[:, :, None] & data.dim_valid[:, None]
    assert torch.equal(watched.action.grad != 0, learnt)
    error = (watched.action.detach() - (noise[1] - data.actions)).square() * learnt
    torch.testing.assert_close(told.action_each, error.flatten(1).sum(1))


def test_it_learns_what_a_state_means_and_acts_upon_it():
    torch.manual_seed(0)
    model = tiny_model("gwp0", **FRAMES, num_attention_heads=4).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    found = []
    for step in range(250):
        losses = losses_of(model, toy(16, step), *drawn(step, 16))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        found.append(float(losses.action))
    first, last = sum(found[:20]) / 20, sum(found[-20:]) / 20
    assert last < 0.25 * first
    data = toy(16, 999)
    model.eval()
    with torch.inference_mode():
        solver = Solver(FusedTransformer(model), Shapes(5, (4, 6, 4), 1), 10)
        text = solver.model.text_keys(data.text)
        prefix = solver.observe(data.state, data.latents[:, :, :1], text, data.embodiment)
        future, noise = drawn(999, 16)[1]
        acted = solver.act(prefix, noise, padding_Bd=~data.dim_valid, future_BCThw=future)
    error = (acted - data.actions)[..., :2].square().mean()
    assert error < 0.25 * data.actions[..., :2].square().mean()
    # Channels that nobody has end as they are in training: at nothing.
    assert not acted[..., 2:].any()
