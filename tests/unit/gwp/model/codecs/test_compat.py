"""What the codecs need of diffusers' private parts is there, and means what they take it for."""

import torch
from torch import nn

from gwp.model.codecs.compat import wan_parts


def test_a_wan_convolution_is_causal_and_patches_keep_every_pixel() -> None:
    convolution, patchify = wan_parts()
    layer = convolution(2, 3, 3, padding=1)
    assert isinstance(layer, nn.Conv3d)
    clip = torch.randn(1, 2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(layer(clip)[:, :, :1], layer(clip[:, :, :1]))
    patches = patchify(clip, patch_size=2)
    assert patches.shape == (1, 8, 5, 2, 2)
    assert torch.equal(patches.flatten().sort().values, clip.flatten().sort().values)
