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
    description = describe(folder, "codec.json")
    kind = description["kind"]
    if kind == "pca":
        return PcaCodec.load(folder)
    if kind == "wan":
        return WanCodec.load(Path(folder) / "vae", description["dtype"])
    raise GwpError(f"{folder}/codec.json: unknown kind '{kind}'; known: pca, wan")
