"""The Wan encoder for one picture, without the work that only later frames need.

A causal convolution pads the past with zeros, so of its kernel's three time slices only the
last one meets a single picture: a plain 2-D convolution with a third of the arithmetic. The
result is the first latent frame of any clip that begins with the picture.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.model.codecs.compat import wan_parts


class _LastSlice(nn.Module):
    """A causal convolution of one frame `[B, C, 1, H, W]`; reads the weights of the one it
    stands for.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x_BC1HW: Tensor) -> Tensor:
        """`[B, C, 1, H, W]` to `[B, C', 1, H', W']`, in the codec's arithmetic."""
        weight, stride = self.conv.weight[:, :, -1], self.conv.stride[1:]
        # Every spatial kernel of the encoder is centred.
        padding = [side // 2 for side in weight.shape[2:]]
        return F.conv2d(x_BC1HW.squeeze(2), weight, self.conv.bias, stride, padding).unsqueeze(2)


class StillEncoder:
    """Raw posterior means of single pictures by the encoder of a diffusers `AutoencoderKLWan`,
    whose parameters it shares.
    """

    def __init__(self, vae: Any) -> None:
        causal_convolution, self._patchify = wan_parts()
        self._vae = vae
        # What stands in the memo is taken in place of a copy: parameters are shared, causal
        # convolutions replaced.
        memo: dict[int, Any] = {id(p): p for p in vae.encoder.parameters()}
        memo |= {
            id(m): _LastSlice(m) for m in vae.encoder.modules() if isinstance(m, causal_convolution)
        }
        self._encoder = copy.deepcopy(vae.encoder, memo)

    def mode(self, x_BC1HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] `[B, 3, 1, H, W]` to `[B, z, 1, h, w]`, in the codec's arithmetic."""
        size = self._vae.config.patch_size
        x = x_BC1HW if size is None else self._patchify(x_BC1HW, patch_size=size)
        # Without the cache that carries frames from chunk to chunk, the temporal downsampling
        # is left out too.
        moments: Tensor = self._vae.quant_conv(self._encoder(x))
        return torch.chunk(moments, 2, dim=1)[0]
