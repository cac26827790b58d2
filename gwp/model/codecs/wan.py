"""The real video codec: `AutoencoderKLWan` of diffusers, deterministic and normalised by its
own statistics.

The causal convolutions see no future, so the first latent frame of a clip equals the encoding
of its first frame alone, which takes a third of the work (`wan_still`).
"""

import json
import threading
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.codecs.pca import TEMPORAL, check_frames, check_latents
from gwp.model.codecs.saved import pretrained, weights_digest
from gwp.model.codecs.wan_still import StillEncoder
from gwp.paths import Location


class WanCodecConfig(BaseModel):
    """A Wan 2.x video codec on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["wan"]
    """Which video codec this is."""
    path: Location
    """Folder of the diffusers checkpoint (config.json and safetensors), or a pipeline folder
    with `vae/`.
    """
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of encoder and decoder; latents come out in fp32."""


class WanCodec:
    """Posterior mode, `(z - mean) / std` per channel with the statistics of the codec's own
    configuration. Never tiled.

    Safe to use from several threads, which take turns.
    """

    kind = "wan"
    temporal = TEMPORAL

    def __init__(self, vae: Any, dtype: str = "float32") -> None:
        config = vae.config
        mean, std = list(config.latents_mean), list(config.latents_std)
        z = config.z_dim
        if len(mean) != z or len(std) != z:
            # The class defaults are those of the 16-channel codec and would give silent garbage.
            raise GwpError(
                f"codec config: latents_mean/latents_std have {len(mean)}/{len(std)} numbers, "
                f"z_dim is {z}; take the "
                "config.json that belongs to the weights"
            )
        if min(std) <= 0:
            raise GwpError(
                f"codec config: latents_std holds {min(std)}; take the config.json that "
                "belongs to the weights"
            )
        temporal = 2 ** sum(config.temperal_downsample)
        if temporal != TEMPORAL:
            raise GwpError(
                f"codec config: {temporal} frames make one latent frame; only codecs with "
                f"{TEMPORAL} are supported"
            )
        self.vae = vae.eval().requires_grad_(False)
        if self.vae.dtype != getattr(torch, dtype):
            self.vae.to(getattr(torch, dtype))
        self.dtype = dtype
        self.channels = z
        # From the layers: scale_factor_spatial is absent from older configurations, and its
        # default is that of the 16-channel codec.
        self.spatial: int = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._still = StillEncoder(self.vae)
        # The model keeps the frames it has passed in attributes of its own: two calls at once
        # would read each other's.
        self._alone = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, dtype: str = "float32") -> "WanCodec":
        """From a local diffusers folder; GwpError when it is another model, or lacks weights."""
        from diffusers import AutoencoderKLWan

        folder = Path(folder)
        if (folder / "vae" / "config.json").is_file():
            folder = folder / "vae"
        if not (folder / "config.json").is_file():
            raise GwpError(
                f"{folder}: no config.json; codec.path must be a diffusers AutoencoderKLWan folder"
            )
        name = json.loads((folder / "config.json").read_text()).get("_class_name")
        if name != "AutoencoderKLWan":
            raise GwpError(
                f"{folder}: holds {name}; codec.path must be a diffusers AutoencoderKLWan folder"
            )
        vae = pretrained(
            AutoencoderKLWan.from_pretrained,
            folder,
            all_used=True,
            torch_dtype=getattr(torch, dtype),
        )
        return cls(vae, dtype)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 `[B, T, H, W, 3]`, T = 4n + 1, to fp32 `[B, C, n + 1, H / spatial, W /
        spatial]`.
        """
        check_frames(frames, self.spatial)
        # Scaled before the cast: in bf16 the subtraction would cost a bit of every bright pixel.
        x = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with self._alone:
            self._move(frames.device)
            x = x.to(self.vae.dtype)
            z = self._stills(x) if x.shape[2] == 1 else self.vae.encode(x).latent_dist.mode()
        z = z.float()
        return (z - self._mean.to(z.device)) / self._std.to(z.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """fp32 `[B, C, n + 1, h, w]` to uint8 `[B, 4n + 1, H, W, 3]`."""
        check_latents(latents, self.channels)
        z = latents.float() * self._std.to(latents.device) + self._mean.to(latents.device)
        with self._alone:
            self._move(latents.device)
            x = self.vae.decode(z.to(self.vae.dtype)).sample.float()
        return ((x.permute(0, 2, 3, 4, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _stills(self, x_BC1HW: Tensor) -> Tensor:
        # A CPU gains nothing by a batch, in which a picture would get other last bits than alone.
        parts = x_BC1HW.split(1) if x_BC1HW.device.type == "cpu" else [x_BC1HW]
        return torch.cat([self._still.mode(part) for part in parts])

    def _move(self, device: torch.device) -> None:
        # Moved when it is first used: where that will be, a job knows only then.
        if self.vae.device != device:
            self.vae.to(device)

    def save(self, folder: str | Path) -> None:
        """`vae/` in the diffusers form, in the codec's own arithmetic, and codec.json."""
        folder = Path(folder)
        self.vae.save_pretrained(str(folder / "vae"))
        (folder / "codec.json").write_text(json.dumps({"kind": self.kind, "dtype": self.dtype}))

    def digest(self) -> str:
        """sha256 over weights, architecture, statistics and arithmetic."""
        # Names with an underscore tell where a configuration came from.
        config = {
            name: value for name, value in self.vae.config.items() if not name.startswith("_")
        }
        return weights_digest(
            {"kind": self.kind, "dtype": self.dtype, "config": config}, self.vae.state_dict()
        )
