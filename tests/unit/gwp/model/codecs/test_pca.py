"""The linear codec: what it keeps, and what it refuses."""

import json

import pytest
import torch

from gwp.data.video.decode import decode_frames, open_video
from gwp.errors import GwpError
from gwp.model.codecs.pca import PcaCodec
from gwp.model.codecs.video import load_video_codec
from tests.support.paths import SHARED
from tests.unit.gwp.model.codecs.test_video import clips, pca  # noqa: F401


def error(codec, frames):
    """Mean squared error of a round trip, grey levels squared."""
    return float((codec.decode(codec.encode(frames)).float() - frames.float()).square().mean())


def test_pca_keeps_the_picture_and_more_channels_keep_more(pca):
    assert error(pca, clips()) < 200  # better than 25 dB
    assert error(PcaCodec.fit([clips()], channels=24, spatial=8), clips()) <= error(pca, clips())


def test_pca_decodes_by_the_transpose(pca):
    for name in ("first", "later"):
        basis = pca.tensors[f"{name}.basis"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(pca.channels), atol=1e-5, rtol=0)
    # Small latents decode to greys that no rounding to [0, 255] clips, so encoding finds them
    # again.
    z = 0.1 * torch.randn(2, 12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert (pca.encode(pca.decode(z)) - z).abs().max() < 0.05


def test_pca_is_deterministic_and_partly_whitened(pca):
    assert (
        PcaCodec.fit(iter(clips().split(2)), channels=12, spatial=8).digest()
        == PcaCodec.fit(clips().split(2), 12, 8).digest()
    )
    z = pca.encode(clips())
    for name, frames in (("first", z[:, :, :1]), ("later", z[:, :, 1:])):
        variance = frames.var(dim=(0, 2, 3, 4))
        spread = variance * pca.tensors[f"{name}.scale"] ** 2
        torch.testing.assert_close(
            variance[0] / variance[-1], (spread[0] / spread[-1]).sqrt(), atol=0, rtol=0.05
        )
        torch.testing.assert_close(variance.mean(), torch.tensor(1.0), atol=0.05, rtol=0)
        assert (variance.diff() < 1e-3).all()


def test_pca_fitted_on_dull_clips_does_not_blow_up():
    dull = torch.full((4, 5, 16, 16, 3), 128, dtype=torch.uint8)
    z = PcaCodec.fit([dull], channels=12, spatial=8).encode(clips(2))
    assert z.isfinite().all()
    assert z.abs().max() < 1e4


def test_pca_refuses_impossible_fits():
    with pytest.raises(GwpError, match="channels 200"):
        PcaCodec.fit([clips()], channels=200, spatial=8)
    with pytest.raises(GwpError, match="no clips to"):
        PcaCodec.fit([], channels=4, spatial=8)
    with pytest.raises(GwpError, match="no clips of 5 frames"):
        PcaCodec.fit([clips(T=1)], channels=4, spatial=8)
    with pytest.raises(GwpError, match="4n"):
        PcaCodec.fit([clips(T=6)], channels=4, spatial=8)


def test_pca_folders_that_are_not_whole_are_refused(pca, tmp_path):
    pca.save(tmp_path)
    (tmp_path / "codec.json").write_text(json.dumps({"kind": "pca", "spatial": 4}))
    with pytest.raises(GwpError, match="do not fit blocks of 4x4"):
        load_video_codec(tmp_path)
    pca.save(tmp_path)
    file = tmp_path / "codec.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(GwpError, match="not a whole linear codec"):
        load_video_codec(tmp_path)
    file.unlink()
    with pytest.raises(GwpError, match="not a whole linear codec"):
        load_video_codec(tmp_path)


def test_pca_on_real_clips():
    files = [
        SHARED / "data" / name for name in ("clips/intel_bottle.mp4", "embodied/droid_wrist.mp4")
    ]
    if not all(f.is_file() for f in files):
        pytest.skip("needs the sample clips in shared/data")
    frames = []
    for file in files:
        with open_video(str(file)) as handle:
            pixels = (
                torch.from_numpy(decode_frames(handle, [i / 5 for i in range(25)]))
                .permute(0, 3, 1, 2)
                .float()
            )
        small = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)
        frames.append(small.round().to(torch.uint8).permute(0, 2, 3, 1).reshape(5, 5, 64, 64, 3))
    codec = PcaCodec.fit(frames, channels=24, spatial=8)
    assert error(codec, torch.cat(frames)) < 255**2 / 10**2.5  # better than 25 dB
