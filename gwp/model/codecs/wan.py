"""The real video codec: `AutoencoderKLWan` of diffusers, deterministic and normalised by its own statistics.

The causal convolutions see no future, so the first latent frame of a clip equals the encoding of its first frame alone.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.codecs.pca import check_frames


class WanCodecConfig(BaseModel):
    """A Wan 2.x video codec on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["wan"]
    path: str
    """Folder of the diffusers checkpoint (config.json and safetensors)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of encoder and decoder; latents come out in fp32."""


class WanCodec:
    """Posterior mode, `(z - mean) / std` per channel with the statistics of the codec's own configuration."""

    kind = "wan"
    temporal = 4

    def __init__(self, vae: Any, dtype: str = "float32") -> None:
        config = vae.config
        mean, std, z = list(config.latents_mean), list(config.latents_std), config.z_dim
        if len(mean) != z or len(std) != z:
            # The class defaults are those of the 16-channel codec and would give silent garbage.
            raise GwpError(f"codec config: latents_mean/latents_std have {len(mean)}/{len(std)} numbers, z_dim is {z}; take the "
                           "config.json that belongs to the weights")
        self.vae = vae.eval().requires_grad_(False).to(getattr(torch, dtype))
        self.dtype, self.channels, self.spatial = dtype, z, int(config.scale_factor_spatial)
        self._mean, self._std = (torch.tensor(x, dtype=torch.float32).view(1, -1, 1, 1, 1) for x in (mean, std))

    @classmethod
    def load(cls, folder: str | Path, dtype: str = "float32") -> "WanCodec":
        from diffusers import AutoencoderKLWan

        if not (Path(folder) / "config.json").is_file():
            raise GwpError(f"{folder}: no config.json; codec.path must be a diffusers AutoencoderKLWan folder")
        return cls(AutoencoderKLWan.from_pretrained(str(folder)), dtype)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 `[B, T, H, W, 3]`, T = 4n + 1, to fp32 `[B, C, n + 1, H / spatial, W / spatial]`."""
        check_frames(frames, self.spatial)
        self._place(frames.device)
        x = frames.permute(0, 4, 1, 2, 3).to(self.vae.dtype) / 127.5 - 1
        z = self.vae.encode(x).latent_dist.mode().float()
        return (z - self._mean.to(z.device)) / self._std.to(z.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """fp32 `[B, C, n + 1, h, w]` to uint8 `[B, 4n + 1, H, W, 3]`."""
        self._place(latents.device)
        z = latents.float() * self._std.to(latents.device) + self._mean.to(latents.device)
        x = self.vae.decode(z.to(self.vae.dtype)).sample.float()
        return ((x.permute(0, 2, 3, 4, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _place(self, device: torch.device) -> None:
        if self.vae.device != device:
            self.vae.to(device)

    def save(self, folder: str | Path) -> None:
        import json

        folder = Path(folder)
        self.vae.save_pretrained(str(folder / "vae"))
        (folder / "codec.json").write_text(json.dumps({"kind": self.kind, "dtype": self.dtype}))

    def digest(self) -> str:
        """sha256 over weights, statistics and arithmetic."""
        state = hashlib.sha256(self.dtype.encode())
        state.update(self._mean.numpy().tobytes() + self._std.numpy().tobytes())
        for name, tensor in sorted(self.vae.state_dict().items()):
            state.update(name.encode() + tensor.float().cpu().numpy().tobytes())
        return state.hexdigest()
