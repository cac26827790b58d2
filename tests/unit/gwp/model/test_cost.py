"""The closed form of a pass's arithmetic is what torch counts of it."""

from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gwp.model.config import Family, Group, ModelConfig
from gwp.model.cost import forward_flop, parameter_counts, tokens_of, training_flop
from gwp.model.draws import draw_noise
from gwp.model.objective import Batch, Counts, ObjectiveConfig, levels_of, training_losses
from gwp.model.transformer import Tokens, WorldActionTransformer
from tests.support.tiny import ARMS, FAMILY_ARMS, tiny_config

MODES: dict[str, tuple[int | None, bool]] = {
    "wam": (5, True),
    "video": (None, True),
    "actions alone": (5, False),
}


def counted(config: ModelConfig, latent: Sequence[int], actions: int | None, future: bool) -> int:
    """FLOP of one sample's pass, by torch."""
    frames, rows, columns = latent
    channels, d = config.in_channels, config.action_channels
    with torch.device("meta"):
        model = WorldActionTransformer(config)
        tokens = Tokens(
            reference=torch.empty(1, channels, 1, rows, columns),
            future=torch.empty(1, channels, frames - 1, rows, columns) if future else None,
            state=torch.empty(1, 1, d) if actions else None,
            action=torch.empty(1, actions, d) if actions else None,
        )
        noise: dict[Group, torch.Tensor] = {"F": torch.empty(1)} if future else {}
        if actions:
            # One level for each action, as real-time chunking has it, or for the frames of all.
            frames = config.actions == "latent-frame"
            noise["A"] = torch.empty(1) if frames else torch.empty(1, actions)
        text = torch.empty(1, 7, config.text_dim)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(tokens, noise, text, torch.zeros(1, dtype=torch.long))
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("family", "arm"), FAMILY_ARMS)
@pytest.mark.parametrize("mode", MODES)
def test_the_closed_form_is_what_torch_counts(family: Family, arm: str, mode: str) -> None:
    config = tiny_config(family, num_layers=3, **ARMS[arm])
    actions, future = MODES[mode]
    tokens = tokens_of(config, (3, 6, 4), actions, future)
    assert forward_flop(config, tokens, 7) == counted(config, (3, 6, 4), actions, future)


@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
def test_a_step_is_what_torch_counts_of_it_forward_and_backward(family: Family) -> None:
    """But for what nobody asks the derivative of: the inputs."""
    config = tiny_config(family, num_layers=8)
    latent, actions, text_rows = (3, 6, 4), 5, 7
    with torch.device("meta"):
        model = WorldActionTransformer(config)
        batch = Batch(
            latents=torch.empty(2, config.in_channels, *latent),
            state=torch.empty(2, 1, config.action_channels),
            actions=torch.empty(2, actions, config.action_channels),
            step_valid=torch.ones(2, actions, dtype=torch.bool),
            dim_valid=torch.ones(2, config.action_channels, dtype=torch.bool),
            text=torch.empty(2, text_rows, config.text_dim),
            embodiment=torch.zeros(2, dtype=torch.long),
            ok=torch.ones(2, dtype=torch.bool),
        )
    objective = ObjectiveConfig()
    levels = levels_of(objective, 0, range(2), actions)
    noise = draw_noise(
        0, range(2), (config.in_channels, 2, 6, 4), (actions, config.action_channels)
    )
    with FlopCounterMode(display=False) as counter:
        losses = training_losses(model, batch, objective, False, levels, noise, Counts(1.0, 1.0))
        losses.total.backward()
    told = 2 * training_flop(config, tokens_of(config, latent, actions), text_rows)
    assert 0.97 * told < counter.get_total_flops() <= told


@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
def test_parameters_are_those_of_the_module(family: Family) -> None:
    config = tiny_config(family)
    counts = parameter_counts(config)
    assert set(counts) == {*config.experts, "rest"}
    real = WorldActionTransformer(config)
    assert sum(counts.values()) == sum(p.numel() for p in real.parameters())


def test_the_released_shapes_by_hand() -> None:
    """240 visual and 49 action tokens of a robot's sample; the papers' 5.0 and 6.0 billion."""
    mixture, dense = ModelConfig.released("gwp05"), ModelConfig.released("gwp0")
    tokens = tokens_of(mixture, (2, 24, 20), 48)
    assert tokens == {"S": 1, "R": 120, "A": 48, "F": 120}
    assert sum(parameter_counts(mixture).values()) == pytest.approx(6.0e9, rel=0.02)
    assert sum(parameter_counts(dense).values()) == pytest.approx(5.0e9, rel=0.02)
    # Six times parameters times tokens, and a little for attention and the text.
    by_hand = 6 * (4.91e9 * 240 + 1.01e9 * 49)
    assert training_flop(mixture, tokens, 64) == pytest.approx(by_hand, rel=0.1)
