"""Linear video codec: PCA of pixel blocks, with the layout and the temporal rule of the Wan
codec.

Latent frame 0 is a projection of frame 0 alone; latent frame k > 0 of frames 4k-3 .. 4k. So
4n+1 frames give n+1 latents and nothing looks ahead. Fitted in seconds from clips, decoded by
the transpose.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.codecs.saved import weights_digest
from gwp.paths import Location

TEMPORAL = 4
# Standard deviation that rounding to 8 bits leaves in a pixel of [-1, 1]; what varies less than
# this is no signal.
_ROUNDING = 2 / 255 / 12**0.5


class PcaCodecConfig(BaseModel):
    """A linear codec, fitted on the run's own clips or saved before."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["pca"]
    """Which video codec this is."""
    spatial: int = Field(default=8, gt=0)
    """Side of a pixel block, pixels."""
    channels: int = Field(default=24, gt=0)
    """Latent channels per block; four times this is a visual token's width, which must not
    exceed the model's.
    """
    fit_clips: int = Field(default=400, gt=0)
    """Clips of the manifest that the bases are fitted on."""
    saved: Location | None = None
    """Folder or URI of such a codec that is there, `codec/` of a run or a bundle, in place of
    fitting one; None: one is fitted.
    """

    # Hashes of jobs are of this JSON, and those of before know no saved ones.
    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if self.saved is None:
            fields.pop("saved", None)
        return fields


class PcaCodec:
    """See the module. Latents are scaled per channel; `whitening` 1 would make every channel
    unit variance.

    Full whitening lets faint channels weigh as much in the flow-matching loss as those that
    carry the picture, none leaves the first channel to drown the rest; the square root keeps
    their order and brings the mean variance to 1. On natural video with 24 channels their
    deviations then span a factor of 6 instead of 30.
    """

    kind = "pca"
    temporal = TEMPORAL
    whitening = 0.5

    def __init__(self, tensors: dict[str, Tensor], spatial: int) -> None:
        # One memory layout, so that a codec fitted and the same codec loaded round alike.
        self.tensors = {n: t.contiguous() for n, t in tensors.items()}
        self.spatial = spatial
        self.channels = tensors["first.basis"].shape[1]

    @classmethod
    def fit(cls, clips: Iterable[Tensor], channels: int, spatial: int) -> "PcaCodec":
        """Bases from uint8 clips `[B, T, H, W, 3]`, T = 4n + 1, read once and summed in fp64.

        GwpError when there are no clips or none that moves on (T = 1), or when more channels
        are asked than blocks hold.
        """
        sizes = {"first": spatial * spatial * 3, "later": spatial * spatial * 3 * TEMPORAL}
        if channels > sizes["first"]:
            raise GwpError(
                f"codec.channels {channels} is more than the {sizes['first']} numbers of a "
                f"{spatial}x{spatial} block"
            )
        second = {n: torch.zeros(s, s, dtype=torch.float64) for n, s in sizes.items()}
        total = {n: torch.zeros(s, dtype=torch.float64) for n, s in sizes.items()}
        count = dict.fromkeys(sizes, 0)
        # Sums of x x' and of x are all that a covariance needs: no clip is kept.
        for clip in clips:
            check_frames(clip, spatial)
            first, later = _blocks(clip, spatial)
            for name, x in (("first", first), ("later", later)):
                flat = x.reshape(-1, x.shape[-1]).double()
                second[name] += flat.T @ flat
                total[name] += flat.sum(0)
                count[name] += len(flat)
        tensors: dict[str, Tensor] = {}
        for name in sizes:
            if not count[name]:
                what = "clips" if name == "first" else "clips of 5 frames or more"
                raise GwpError(f"the codec saw no {what} to fit on; check data.sources")
            mean = total[name] / count[name]
            covariance = second[name] / count[name] - torch.outer(mean, mean)
            # `eigh` gives the smallest first.
            values, vectors = torch.linalg.eigh(covariance)
            basis = vectors[:, -channels:].flip(1)
            # An eigenvector's sign is arbitrary; fix it, so that the same clips always give the
            # same codec.
            basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
            # Recordings in which some direction never varies must not blow it up when a later
            # picture has it.
            std = values[-channels:].flip(0).clamp(min=_ROUNDING**2).sqrt()
            scale = std.pow(cls.whitening)
            # Noise of the model has variance 1: so has the latent then, on the mean.
            scale = scale * (std / scale).square().mean().sqrt()
            tensors |= {
                f"{name}.basis": basis.float(),
                f"{name}.mean": mean.float(),
                f"{name}.scale": scale.float(),
            }
        return cls(tensors, spatial)

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 `[B, T, H, W, 3]`, T = 4n + 1, to fp32 `[B, C, n + 1, H / spatial, W /
        spatial]`.
        """
        check_frames(frames, self.spatial)
        first, later = _blocks(frames, self.spatial)
        parts = [self._project(first, "first")]
        # A single picture has no frames after it.
        if later.shape[1]:
            parts.append(self._project(later, "later"))
        return torch.cat(parts, dim=1).permute(0, 4, 1, 2, 3)

    def decode(self, latents: Tensor) -> Tensor:
        """fp32 `[B, C, n + 1, h, w]` to uint8 `[B, 4n + 1, H, W, 3]`."""
        check_latents(latents, self.channels)
        x = latents.float().permute(0, 2, 3, 4, 1)
        first = self._restore(x[:, :1], "first")
        later = self._restore(x[:, 1:], "later")
        s = self.spatial
        B, _, h, w, _ = first.shape
        n = later.shape[1]

        # From blocks beside each other to rows of pixels; the later ones hold four frames each.
        still = first.reshape(B, h, w, s, s, 3).permute(0, 1, 3, 2, 4, 5)
        still = still.reshape(B, 1, h * s, w * s, 3)
        moving = later.reshape(B, n, h, w, TEMPORAL, s, s, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
        moving = moving.reshape(B, n * TEMPORAL, h * s, w * s, 3)

        pixels = (torch.cat([still, moving], dim=1) + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def save(self, folder: str | Path) -> None:
        """codec.safetensors (bases, means, scales) and codec.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / "codec.safetensors")
        (folder / "codec.json").write_text(
            json.dumps({"kind": self.kind, "spatial": self.spatial, "channels": self.channels})
        )

    @classmethod
    def load(cls, folder: str | Path) -> "PcaCodec":
        """From the local folder that `save` wrote; GwpError when it is not whole."""
        folder = Path(folder)
        try:
            spatial = int(json.loads((folder / "codec.json").read_text())["spatial"])
            tensors = load_file(folder / "codec.safetensors")
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise GwpError(
                f"{folder}: not a whole linear codec ({type(error).__name__}: {error}); fit it again"
            ) from error
        block = spatial * spatial * 3
        sides = {
            n: tuple(tensors[f"{n}.basis"].shape)
            for n in ("first", "later")
            if f"{n}.basis" in tensors
        }
        channels = sides.get("first", (0, 0))[-1]
        if sides != {"first": (block, channels), "later": (block * TEMPORAL, channels)}:
            raise GwpError(
                f"{folder}: bases of {sides} do not fit blocks of {spatial}x{spatial} pixels; "
                "fit the codec again"
            )
        return cls(tensors, spatial)

    def digest(self) -> str:
        """sha256 over everything that changes a latent."""
        return weights_digest({"kind": self.kind, "spatial": self.spatial}, self.tensors)

    def _project(self, blocks: Tensor, name: str) -> Tensor:
        t = {k: self.tensors[f"{name}.{k}"].to(blocks.device) for k in ("basis", "mean", "scale")}
        return (blocks - t["mean"]) @ t["basis"] / t["scale"]

    def _restore(self, latents: Tensor, name: str) -> Tensor:
        t = {k: self.tensors[f"{name}.{k}"].to(latents.device) for k in ("basis", "mean", "scale")}
        return (latents * t["scale"]) @ t["basis"].T + t["mean"]


def check_frames(frames: Tensor, spatial: int) -> None:
    """GwpError unless `frames` is uint8 `[B, 4n + 1, H, W, 3]` with sides divisible by
    `spatial`.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise GwpError(
            f"video codec: got {frames.dtype} {list(frames.shape)}, expected uint8 [B, T, H, W, 3]"
        )
    _, T, H, W, _ = frames.shape
    if T % TEMPORAL != 1:
        raise GwpError(
            f"video codec: {T} frames; it takes 4n + 1 (1, 5, 9, ...), change the window"
        )
    if H % spatial or W % spatial:
        raise GwpError(
            f"video codec: {W}x{H} pixels are not divisible by {spatial}; change the canvas"
        )


def check_latents(latents: Tensor, channels: int) -> None:
    """GwpError unless `latents` is `[B, channels, n + 1, h, w]`."""
    if latents.ndim != 5 or latents.shape[1] != channels or not latents.shape[2]:
        raise GwpError(
            f"video codec: got latents {list(latents.shape)}, expected [B, {channels}, n + 1, h, w]"
        )


def _blocks(frames: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Pixel blocks in [-1, 1]: first `[B, 1, h, w, s*s*3]`, later `[B, n, h, w, 4*s*s*3]`."""
    x = frames.float() / 127.5 - 1
    B, T, H, W, _ = x.shape
    h, w = H // s, W // s
    n = (T - 1) // TEMPORAL
    still = x[:, :1].reshape(B, 1, h, s, w, s, 3).permute(0, 1, 2, 4, 3, 5, 6)
    moving = x[:, 1:].reshape(B, n, TEMPORAL, h, s, w, s, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
    first = still.reshape(B, 1, h, w, s * s * 3)
    later = moving.reshape(B, n, h, w, TEMPORAL * s * s * 3)
    return first, later
