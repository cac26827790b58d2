"""Models to measure: time does not depend on the values of weights, so they are random; shapes
are what counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gwp.data.canvas import Canvas
from gwp.data.robot.embodiment import Embodiment
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import Stats
from gwp.data.window import Window
from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.codecs.pca import PcaCodec
from gwp.model.codecs.wan import WanCodec
from gwp.model.config import Family, ModelConfig, Visibility
from gwp.model.transformer import WorldActionTransformer
from gwp.policy.bundle import Bundle, PolicyConfig
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation

Arm = Visibility | Literal["latent-frame"]
"""Which model is measured: by its visibility, or the joint one with actions as latent frames."""


@dataclass(frozen=True)
class Size:
    """Shape of a policy. `latent`: rows and columns of one latent frame; `spatial`: pixels per
    latent row; `text`: rows and width.
    """

    layers: int
    heads: int
    head_dim: int
    ffn: int
    action_expert: tuple[int, int]
    channels: int
    latent: tuple[int, int]
    spatial: int
    chunk: int
    dims: int
    text: tuple[int, int]

    def config(self, family: Family, arm: Arm = "action-centred") -> ModelConfig:
        """The model of one family at this size."""
        width, ffn = self.action_expert
        mixture = {"action_expert_dim": width, "action_ffn_dim": ffn} if family == "gwp05" else {}
        return ModelConfig(
            family=family,
            num_layers=self.layers,
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            ffn_dim=self.ffn,
            in_channels=self.channels,
            action_channels=self.dims,
            text_dim=self.text[1],
            visibility="joint" if arm == "latent-frame" else arm,
            actions="latent-frame" if arm == "latent-frame" else "tokens",
            **mixture,
        )


WAN_SPATIAL = 16

# Layers, heads, head width, ffn; width and ffn of the action expert; latent channels, rows
# and columns, pixels per latent row; chunk, action dimensions; rows and width of a text.
SIZES = {
    # The demo's model.
    "tiny": Size(4, 4, 32, 512, (96, 384), 24, (8, 8), 8, 12, 8, (8, 64)),
    "small": Size(6, 6, 48, 1152, (128, 512), 48, (12, 12), 8, 24, 8, (16, 128)),
    # Token counts of the released shape at a width that two CPU cores can run.
    "mid": Size(8, 8, 64, 2304, (176, 768), 48, (24, 20), 16, 48, 16, (64, 512)),
    "released": Size(30, 24, 128, 14336, (1024, 4096), 48, (24, 20), 16, 48, 16, (64, 4096)),
}


def random_policy(
    size: Size,
    family: Family,
    steps: int,
    device: str,
    dtype: torch.dtype,
    codec: str = "pca",
    arm: Arm = "action-centred",
) -> Policy:
    """A whole policy of this shape with random weights, made where they will be used.

    codec: `pca`, or `wan` for the released architecture, which takes its time
    """
    rows, columns = size.latent
    config = size.config(family, arm)
    names = tuple(f"joint {i}" for i in range(size.dims))
    robot = Embodiment(
        name="arm",
        fps=30,
        state_names=names,
        action_names=names,
        cameras={"front": "front"},
        chunk=size.chunk,
        replan=size.chunk // 2,
    )
    # Mean, deviation, extremes and quantiles of every dimension.
    feature = FeatureStats(
        *(np.full(size.dims, value) for value in (0.0, 0.5, -1.0, 1.0, -0.9, 0.9))
    )
    settings = PolicyConfig(
        family=family,
        model_dim=size.dims,
        canvas=Canvas(layout="single", width=columns * size.spatial, height=rows * size.spatial),
        window=Window(chunk=size.chunk, stride=size.chunk // 4),
        steps=steps,
        visibility=config.visibility,
        actions=config.actions,
    )
    bundle = Bundle(
        Path(f"random {family}"),
        "random",
        settings,
        {"arm": robot},
        {"arm": Stats(feature, feature).to_json()},
        {},
    )
    model = random_model(config, torch.device(device), dtype)
    video = _random_wan(size.channels, dtype) if codec == "wan" else random_pca(size)
    return Policy(bundle, model, video, HashedTextEncoder(dim=size.text[1], rows=size.text[0]))


def random_model(
    config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> WorldActionTransformer:
    """A model with random weights, the same at each call, made where it will be used."""
    # On the meta device first: initialising billions of weights on the CPU takes minutes.
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            # Scaled by their width, so that activations stay of ordinary size.
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return model.eval()


def random_pca(size: Size) -> PcaCodec:
    """A linear codec fitted to noise."""
    noise = torch.randint(0, 256, (2, 5, 4 * size.spatial, 4 * size.spatial, 3), dtype=torch.uint8)
    return PcaCodec.fit([noise], channels=size.channels, spatial=size.spatial)


def _random_wan(channels: int, dtype: torch.dtype) -> WanCodec:
    from diffusers import AutoencoderKLWan

    # The video codec of Wan 2.2 TI2V-5B; 12 channels are the pixels of patches of 2 x 2.
    vae = AutoencoderKLWan(
        base_dim=160,
        decoder_base_dim=256,
        z_dim=channels,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    return WanCodec(vae, str(dtype).removeprefix("torch."))


def observation(size: Size, seed: int, prompt: str = "put it there") -> Observation:
    """What a robot of `random_policy` would send."""
    rng = np.random.default_rng(seed)
    # Of a camera's size, so that a request has to scale it to the canvas.
    image = rng.integers(0, 256, (240, 320, 3), np.uint8)
    return Observation(
        {"front": image}, rng.uniform(-0.5, 0.5, size.dims).astype(np.float32), prompt, seed=seed
    )
