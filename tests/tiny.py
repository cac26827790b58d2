"""Small real models that tests make for themselves."""

from typing import Any

import torch

from gwp.model.config import Family, ModelConfig
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.model.weights import build_model


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
    tokens = Tokens(randn(batch, 1, d), randn(batch, c, 1, 6, 4), randn(batch, actions, d), randn(batch, c, future, 6, 4))
    return tokens, randn(batch, 7, config.text_dim), torch.arange(batch) % config.num_embodiments
