"""Video codecs by kind: what a stage file may name, and how a saved codec is found again."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gwp.errors import GwpError
from gwp.model.codecs.pca import PcaCodec, PcaCodecConfig
from gwp.model.codecs.saved import describe
from gwp.model.codecs.wan import WanCodec, WanCodecConfig

VideoCodec = PcaCodec | WanCodec
VideoCodecConfig = Annotated[PcaCodecConfig | WanCodecConfig, Field(discriminator="kind")]


def build_video_codec(config: WanCodecConfig) -> WanCodec:
    """The codec a stage file names. A linear codec is fitted instead (`PcaCodec.fit`)."""
    return WanCodec.load(config.path, config.dtype)


def load_video_codec(folder: str | Path) -> VideoCodec:
    """A codec from the local folder that `save` wrote; GwpError when there is none, or of a
    kind not known here.
    """
    about = describe(folder, "codec.json")
    if about["kind"] == "pca":
        return PcaCodec.load(folder)
    if about["kind"] == "wan":
        return WanCodec.load(Path(folder) / "vae", about["dtype"])
    raise GwpError(f"{folder}/codec.json: unknown kind '{about['kind']}'; known: pca, wan")
