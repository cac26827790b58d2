"""Video codecs and text encoders by their properties; real architectures with tiny random weights."""

import json

import pytest
import torch

from gwp.errors import GwpError
from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.codecs.pca import PcaCodec
from gwp.model.codecs.text import TextTable, load_text_encoder
from gwp.model.codecs.umt5 import UMT5TextEncoder
from gwp.model.codecs.video import load_video_codec
from gwp.model.codecs.wan import WanCodec


def clips(count=6, T=5, size=32):
    """Smooth moving pictures, uint8 `[B, T, H, W, 3]`."""
    g = torch.Generator().manual_seed(0)
    base = torch.rand(count, 3, 6, 6, generator=g)
    picture = torch.nn.functional.interpolate(base, (size + T, size + T), mode="bicubic", align_corners=True).clamp(0, 1)
    frames = [picture[:, :, t : t + size, t : t + size] for t in range(T)]
    return (torch.stack(frames, 1).permute(0, 1, 3, 4, 2) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def wan():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.0, 2.0, 1.5],
    )
    return WanCodec(vae)


@pytest.fixture(scope="module")
def pca():
    return PcaCodec.fit([clips()], channels=12, spatial=8)


@pytest.mark.parametrize("name", ["wan", "pca"])
def test_layout_and_the_causal_first_frame(name, request):
    codec, frames = request.getfixturevalue(name), clips(count=2)
    z = codec.encode(frames)
    side = 32 // codec.spatial
    assert z.shape == (2, codec.channels, 2, side, side)
    assert z.dtype == torch.float32
    torch.testing.assert_close(codec.encode(frames[:, :1]), z[:, :, :1], atol=1e-5, rtol=0)
    later = frames.clone()
    later[:, 1:] = 255 - later[:, 1:]
    torch.testing.assert_close(codec.encode(later)[:, :, :1], z[:, :, :1], atol=1e-5, rtol=0)
    assert codec.decode(z).shape == frames.shape
    assert codec.decode(z).dtype == torch.uint8


@pytest.mark.parametrize("name", ["wan", "pca"])
def test_saved_codecs_come_back_the_same(name, request, tmp_path):
    codec = request.getfixturevalue(name)
    codec.save(tmp_path)
    again = load_video_codec(tmp_path)
    assert torch.equal(again.encode(clips(2)), codec.encode(clips(2)))
    assert again.digest() == codec.digest()


@pytest.mark.parametrize("name", ["wan", "pca"])
def test_wrong_frames_are_refused_with_the_fix(name, request):
    codec = request.getfixturevalue(name)
    for frames, word in [(clips(1, T=4), "4n"), (clips(1, size=36), "divisible"), (clips(1).float(), "uint8")]:
        with pytest.raises(GwpError, match=word):
            codec.encode(frames)


def test_wan_latents_use_the_codecs_own_statistics(wan):
    frames = clips(1)
    raw = wan.vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode()
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (wan.vae.config.latents_mean, wan.vae.config.latents_std))
    torch.testing.assert_close(wan.encode(frames), (raw - mean) / std, atol=1e-5, rtol=0)


def test_wan_statistics_of_another_codec_are_refused(wan):
    from diffusers import AutoencoderKLWan

    config = dict(wan.vae.config) | {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    with pytest.raises(GwpError, match="z_dim is 4"):
        WanCodec(AutoencoderKLWan.from_config(config))


def test_pca_keeps_the_picture_and_more_channels_keep_more(pca):
    frames = clips()

    def error(codec):
        return (codec.decode(codec.encode(frames)).float() - frames.float()).square().mean()

    assert error(pca) < 200  # squared grey levels: better than 25 dB
    assert error(PcaCodec.fit([frames], channels=24, spatial=8)) <= error(pca)


def test_pca_is_deterministic_and_latents_are_of_unit_scale(pca):
    assert PcaCodec.fit([clips()], channels=12, spatial=8).digest() == pca.digest()
    z = pca.encode(clips())
    for frame in range(2):
        assert 0.3 < float(z[:, :, frame].std()) < 3.0


def test_pca_refuses_impossible_fits():
    with pytest.raises(GwpError, match="channels 200"):
        PcaCodec.fit([clips()], channels=200, spatial=8)
    with pytest.raises(GwpError, match="no clips"):
        PcaCodec.fit([], channels=4, spatial=8)


def test_unknown_kinds_are_named(tmp_path):
    (tmp_path / "codec.json").write_text(json.dumps({"kind": "cubist"}))
    (tmp_path / "text.json").write_text(json.dumps({"kind": "runes"}))
    with pytest.raises(GwpError, match="cubist"):
        load_video_codec(tmp_path)
    with pytest.raises(GwpError, match="runes"):
        load_text_encoder(tmp_path)


def test_hashed_text_is_stable_and_tells_instructions_apart(tmp_path):
    encoder = HashedTextEncoder(16, 4)
    a, b, padded, empty = encoder.encode(["open the door", "close the door", "open", ""])
    assert torch.equal(encoder.encode(["open  the &amp;quot;".replace("&amp;quot;", "door")])[0], a)
    assert (a - b).abs().max() > 0.1
    assert torch.equal(a[1], b[1])
    assert not padded[1:].any()
    assert not empty.any()
    encoder.save(tmp_path)
    assert torch.equal(load_text_encoder(tmp_path).encode(["open the door"])[0], a)


@pytest.fixture(scope="module")
def umt5():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = {w: i for i, w in enumerate(["<pad>", "<unk>", "open", "the", "door", "now"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>")
    torch.manual_seed(0)
    model = UMT5EncoderModel(UMT5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    return UMT5TextEncoder(model, tokenizer, rows=4)


def test_umt5_rows_are_cut_and_zero_padded(umt5, tmp_path):
    long, short = umt5.encode(["open the door now open", "open"])
    assert long.shape == (4, 16)
    assert not short[1:].any()
    # A text is encoded at its own length, whoever is in the batch.
    torch.testing.assert_close(umt5.encode(["open"])[0], short, atol=1e-5, rtol=0)
    umt5.save(tmp_path)
    torch.testing.assert_close(load_text_encoder(tmp_path).encode(["open"])[0], short, atol=1e-5, rtol=0)


def test_a_text_is_encoded_once(tmp_path):
    class Counting(HashedTextEncoder):
        seen = 0

        def encode(self, texts):
            type(self).seen += len(texts)
            return super().encode(texts)

    table = TextTable(Counting(8, 4), cache=str(tmp_path))
    first = table.lookup(["a b", "c", "a b"])
    assert torch.equal(table.lookup(["c", "a b"])[1], first[0])
    assert Counting.seen == 2
    assert torch.equal(TextTable(Counting(8, 4), cache=str(tmp_path)).lookup(["a b"])[0], first[0])
    assert Counting.seen == 2
    small = TextTable(Counting(8, 4), capacity=1)
    assert small.lookup(["a", "b", "c"]).shape == (3, 4, 8)
