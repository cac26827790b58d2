"""Every private interface of diffusers that the codecs need, with the reason.

`tests/unit/gwp/model/codecs/test_compat.py` notices when one changes with an update.
"""

from typing import Any


def wan_parts() -> tuple[Any, Any]:
    """The class of the causal convolutions of a Wan encoder, and the function that folds
    pictures into patches, `(pixels [B, C, F, H, W], patch_size=p)`.

    diffusers exports only the whole autoencoder, which always computes clips.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify

    return WanCausalConv3d, patchify
