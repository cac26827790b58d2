"""How much arithmetic a pass of the transformer is: a closed form of its matrix products.

A test holds it to what torch counts of the same pass. Elementwise work (norms, rotations, GELU)
is not counted, as is usual.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch

from gwp.model.config import GROUPS, Group, ModelConfig
from gwp.model.frames import frames_of
from gwp.model.layers import ACTION_WIDTHS
from gwp.model.transformer import WorldActionTransformer


def tokens_of(
    config: ModelConfig, latent: tuple[int, int, int], actions: int | None, future: bool = True
) -> dict[Group, int]:
    """Tokens of one sample by group.

    latent: its latent frames (the reference first), rows and columns; actions: rows of its chunk,
    None: video only, without the state; future: whether the frames behind the reference take part.
    GwpError where states are latent frames and do not fit into one.
    """
    frames, rows, columns = latent
    _, ph, pw = config.patch_size
    each = (rows // ph) * (columns // pw)
    tokens: dict[Group, int] = {"R": each}
    if future and frames > 1:
        tokens["F"] = (frames - 1) * each
    if actions is not None:
        tokens |= {"S": 1, "A": actions}
        if config.actions == "latent-frame":
            tokens |= {"S": each, "A": frames_of(config, actions, rows, columns) * each}
    return {group: tokens[group] for group in GROUPS if group in tokens}


def forward_flop(config: ModelConfig, tokens: Mapping[Group, int], text_rows: int) -> int:
    """FLOP of one sample's forward pass with these tokens, a multiplication and an addition
    counted as two.
    """
    inner = config.width
    # A query of a segment sees all keys up to its end.
    pairs = seen = 0
    for segment in config.segments:
        queries = sum(tokens.get(group, 0) for group in segment)
        seen += queries
        pairs += queries * seen
    # Products of queries with keys, and of what comes of it with values.
    layer = 4 * pairs * inner
    outside = 0
    for expert, (width, ffn) in config.experts.items():
        members = [group for group in tokens if config.expert_of[group] == expert]
        if not members:
            continue
        own = sum(tokens[group] for group in members)
        # Queries, keys, values and output; then the same for the text, whose keys are its own.
        layer += 2 * own * width * inner * 4
        layer += 2 * width * inner * 2 * (own + text_rows)
        layer += 4 * own * text_rows * inner
        layer += 2 * own * width * ffn * 2
        outside += 2 * text_rows * (config.text_dim * width + width * width)
        # Each action may have a noise level of its own; other groups have one, frames of actions too.
        each = config.actions == "tokens"
        levels = sum(tokens[group] if group == "A" and each else 1 for group in members)
        outside += 2 * levels * (config.freq_dim * width + width * width + 6 * width * width)
    visual, _ = config.experts[config.expert_of["F"]]
    acting, _ = config.experts[config.expert_of["A"]]
    patches = tokens.get("R", 0) + tokens.get("F", 0)
    predicted, vectors = tokens.get("F", 0), tokens.get("S", 0) + tokens.get("A", 0)
    if config.actions == "latent-frame":
        patches, predicted = patches + vectors, predicted + tokens.get("A", 0)
    outside += 2 * (patches + predicted) * config.token_width * visual
    if config.actions == "latent-frame":
        return config.num_layers * layer + outside
    narrow, wide = ACTION_WIDTHS
    way = config.action_channels * narrow + narrow * wide + wide * acting
    outside += 2 * (vectors + tokens.get("A", 0)) * way
    return config.num_layers * layer + outside


def training_flop(config: ModelConfig, tokens: Mapping[Group, int], text_rows: int) -> int:
    """FLOP of one sample, forward and backward: a backward pass is two forward ones."""
    return 3 * forward_flop(config, tokens, text_rows)


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Numbers of the model by part: each expert of the blocks, and the `rest`."""
    return dict(_counted(config))


@lru_cache(maxsize=16)
def _counted(config: ModelConfig) -> dict[str, int]:
    # There nothing is allocated.
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    counts = dict.fromkeys((*config.experts, "rest"), 0)
    for name, parameter in model.named_parameters():
        part = next((e for e in config.experts if f".experts.{e}." in name), "rest")
        counts[part] += parameter.numel()
    return counts
