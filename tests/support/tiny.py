"""Small real models that tests make for themselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwp.data.canvas import Canvas
from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import Stats
from gwp.data.window import Window
from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.codecs.pca import PcaCodec
from gwp.model.config import Family, ModelConfig
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.model.weights import build_model, save_weights
from gwp.policy.bundle import PolicyConfig, seal


def tiny_config(family: Family = "gwp05", **changes: Any) -> ModelConfig:
    mixture = {"action_expert_dim": 24, "action_ffn_dim": 48} if family == "gwp05" else {}
    fields: dict[str, Any] = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "ffn_dim": 64,
        "in_channels": 4,
        "action_channels": 6,
        "num_embodiments": 3,
        "text_dim": 16,
        "freq_dim": 32,
        "rope_max_seq_len": 64,
    }
    return ModelConfig(family=family, **(fields | mixture | changes))


ARMS: dict[str, dict[str, Any]] = {
    "action-centred": {"visibility": "action-centred"},
    "joint": {"visibility": "joint"},
    "video-first": {"visibility": "video-first"},
    "latent-frame": {"visibility": "joint", "actions": "latent-frame"},
}
"""Models that are compared: changes of `tiny_config`; latent frames with `gwp0` alone."""
FAMILY_ARMS = [
    (family, arm)
    for family in ("gwp0", "gwp05")
    for arm in ARMS
    if family == "gwp0" or arm != "latent-frame"
]


def tiny_model(family: Family = "gwp05", **changes: Any) -> WorldActionTransformer:
    return build_model(tiny_config(family, **changes), seed=0).eval()


def tiny_tokens(
    batch: int = 2, actions: int = 5, future: int = 1, config: ModelConfig | None = None
) -> tuple[Tokens, torch.Tensor, torch.Tensor]:
    """Tokens of all four groups, text `[B, 7, text_dim]` and embodiment ids."""
    config = config or tiny_config()
    g = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    c, d = config.in_channels, config.action_channels
    tokens = Tokens(
        randn(batch, 1, d),
        randn(batch, c, 1, 6, 4),
        randn(batch, actions, d),
        randn(batch, c, future, 6, 4),
    )
    return tokens, randn(batch, 7, config.text_dim), torch.arange(batch) % config.num_embodiments


TINY_ARM = Embodiment(
    name="tiny-arm",
    fps=20,
    state_names=("x", "y", "z", "grip"),
    action_names=("x", "y", "z", "grip"),
    delta_mask=(True, True, True, False),
    cameras={"front": "observation.images.top"},
    limits=Limits(lower=(-2, -2, -2, -2), upper=(2, 2, 2, 2)),
    chunk=8,
    replan=4,
)


def make_tiny_bundle(
    folder: Path, family: Family = "gwp05", arm: Embodiment = TINY_ARM, **changes: Any
) -> Path:
    """A whole policy bundle of one robot with an untrained model: 8 actions, one camera, a
    canvas of 32 x 32.
    """
    config = tiny_config(family, **changes)
    save_weights(folder / "model", config, tiny_model(family, **changes).state_dict())
    noise = torch.randint(
        0, 256, (4, 5, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    PcaCodec.fit([noise], channels=config.in_channels, spatial=8).save(folder / "codec")
    HashedTextEncoder(dim=config.text_dim, rows=7).save(folder / "text")
    state, action = (
        FeatureStats(*(np.full(len(names), value) for value in (0.0, 0.5, -1.0, 1.0, -0.9, 0.9)))
        for names in (arm.state_names, arm.action_names)
    )
    settings = PolicyConfig(
        family=family,
        model_dim=config.action_channels,
        canvas=Canvas(layout="single", width=32, height=32),
        window=Window(chunk=8, stride=2),
        steps=4,
        visibility=config.visibility,
        actions=config.actions,
    )
    parts = {
        "policy": settings.model_dump(mode="json"),
        "embodiments": {arm.name: arm.model_dump(mode="json")},
        "stats": {arm.name: Stats(state, action).to_json()},
        "lineage": {"made_by": "tests"},
    }
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    seal(folder)
    return folder
