"""Video codecs by their properties; the real Wan architecture with tiny random weights, the
linear codec also on real clips.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from gwp.errors import GwpError
from gwp.model.codecs.pca import PcaCodec
from gwp.model.codecs.video import VideoCodecConfig, load_video_codec
from gwp.model.codecs.wan import WanCodec


def clips(count=6, T=9, size=32, seed=0):
    """Smooth moving pictures, uint8 `[B, T, H, W, 3]`."""
    g = torch.Generator().manual_seed(seed)
    base = torch.rand(count, 3, 6, 6, generator=g)
    picture = torch.nn.functional.interpolate(
        base, (size + T, size + T), mode="bicubic", align_corners=True
    ).clamp(0, 1)
    frames = [picture[:, :, t : t + size, t : t + size] for t in range(T)]
    return (torch.stack(frames, 1).permute(0, 1, 3, 4, 2) * 255).to(torch.uint8)


def tiny_vae(**changes):
    """Wan 2.2's architecture: residual, patched by 2, so 16 pixels a side and 4 frames make one
    latent.
    """
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    fields = {
        "base_dim": 8,
        "decoder_base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.5, 1.0, 2.0, 1.5],
    }
    return AutoencoderKLWan(**(fields | changes))


@pytest.fixture(scope="module")
def wan():
    return WanCodec(tiny_vae())


@pytest.fixture(scope="module")
def pca():
    return PcaCodec.fit([clips()], channels=12, spatial=8)


both = pytest.mark.parametrize("name", ["wan", "pca"])


@pytest.mark.parametrize("kind", ["wan", "pca"])
def test_a_picture_is_the_same_to_the_last_bit_in_a_batch_and_alone(kind):
    if kind == "wan":
        # So wide that a library would take other kernels for a batch.
        codec = WanCodec(tiny_vae(base_dim=32, dim_mult=[1, 2, 2, 2]))
    else:
        codec = PcaCodec.fit([clips()], channels=24, spatial=8)
    pictures = clips(T=1, count=3)
    together = codec.encode(pictures)
    for latent, picture in zip(together, pictures, strict=True):
        assert torch.equal(latent, codec.encode(picture[None])[0])


@both
def test_layout(name, request):
    codec, frames = request.getfixturevalue(name), clips(count=2)
    z = codec.encode(frames)
    side = 32 // codec.spatial
    assert z.shape == (2, codec.channels, 3, side, side)
    assert z.dtype == torch.float32
    assert codec.decode(z).shape == frames.shape
    assert codec.decode(z).dtype == torch.uint8


@both
def test_no_latent_frame_sees_later_frames(name, request):
    codec, frames = request.getfixturevalue(name), clips(count=2)
    z = codec.encode(frames)
    for k, seen in enumerate((1, 5)):
        changed = frames.clone()
        changed[:, seen:] = 255 - changed[:, seen:]
        torch.testing.assert_close(
            codec.encode(changed)[:, :, : k + 1], z[:, :, : k + 1], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            codec.encode(frames[:, :seen]), z[:, :, : k + 1], atol=1e-5, rtol=0
        )
        assert (codec.encode(changed)[:, :, k + 1] - z[:, :, k + 1]).abs().max() > 0.01


@both
def test_saved_codecs_come_back_the_same(name, request, tmp_path):
    codec = request.getfixturevalue(name)
    codec.save(tmp_path)
    again = load_video_codec(tmp_path)
    z = codec.encode(clips(2))
    assert torch.equal(again.encode(clips(2)), z)
    assert torch.equal(again.decode(z), codec.decode(z))
    assert again.digest() == codec.digest()


@both
def test_the_digest_notices_one_changed_number(name, request, tmp_path):
    codec = request.getfixturevalue(name)
    codec.save(tmp_path)
    file = next(tmp_path.rglob("*.safetensors"))
    tensors = load_file(file)
    last = tensors[max(tensors)].view(-1)
    last[-1] += 1e-3
    save_file(tensors, file)
    assert load_video_codec(tmp_path).digest() != codec.digest()


@both
def test_wrong_input_is_refused_with_the_fix(name, request):
    codec = request.getfixturevalue(name)
    for frames, word in [
        (clips(1, T=4), "4n"),
        (clips(1, size=36), "divisible"),
        (clips(1).float(), "uint8"),
    ]:
        with pytest.raises(GwpError, match=word):
            codec.encode(frames)
    with pytest.raises(GwpError, match=rf"expected \[B, {codec.channels}"):
        codec.decode(torch.zeros(1, codec.channels + 1, 2, 2, 2))


@both
def test_threads_get_what_one_caller_gets(name, request):
    codec = request.getfixturevalue(name)
    frames = [clips(1, seed=i) for i in range(3)]
    alone = [codec.encode(f) for f in frames]
    seen = [codec.decode(z) for z in alone]
    with ThreadPoolExecutor(3) as pool:
        together = [
            pool.submit(lambda i: codec.decode(codec.encode(frames[i])), i % 3) for i in range(9)
        ]
        for i, future in enumerate(together):
            assert torch.equal(future.result(), seen[i % 3])


def test_wan_latents_use_the_codecs_own_statistics(wan):
    frames = clips(1)
    raw = wan.vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode()
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (wan.vae.config.latents_mean, wan.vae.config.latents_std)
    )
    torch.testing.assert_close(wan.encode(frames), (raw - mean) / std, atol=1e-5, rtol=0)


def test_wan_decodes_as_diffusers_does(wan):
    z = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (wan.vae.config.latents_mean, wan.vae.config.latents_std)
    )
    pixels = wan.vae.decode(z * std + mean).sample
    torch.testing.assert_close(
        wan.decode(z).float(),
        ((pixels + 1) * 127.5).permute(0, 2, 3, 4, 1).clamp(0, 255),
        atol=0.51,
        rtol=0,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "is_residual": False,
            "patch_size": None,
            "in_channels": 3,
            "out_channels": 3,
            "temperal_downsample": [True, True, False],
        },
    ],
    ids=["2.2", "2.1"],
)
def test_wan_encodes_one_picture_without_temporal_work(changes):
    """Of a causal kernel's three time slices only one meets a single picture."""
    codec, frames = WanCodec(tiny_vae(**changes)), clips(2)
    work = {}
    for name, encode in {
        "still": lambda: codec.encode(frames[:, :1]),
        "chunk": lambda: codec.vae.encode(frames[:, :1].permute(0, 4, 1, 2, 3).float()),
        "clip": lambda: codec.encode(frames[:, :5]),
    }.items():
        with FlopCounterMode(display=False) as counter:
            encode()
        work[name] = counter.get_total_flops()
    assert work["still"] < 0.4 * work["chunk"]
    assert work["still"] < 0.1 * work["clip"]
    torch.testing.assert_close(
        codec.encode(frames[:, :1]), codec.encode(frames)[:, :, :1], atol=1e-5, rtol=0
    )


def test_wan_encodes_one_picture_with_the_weights_it_has_now():
    codec, frames = WanCodec(tiny_vae()), clips(1)
    before = codec.encode(frames[:, :1])
    count = sum(p.numel() for p in codec.vae.parameters())
    with torch.no_grad():
        for p in codec.vae.encoder.parameters():
            p.mul_(1.1)
    codec.vae.to(torch.float64).to(torch.float32)
    after = codec.encode(frames[:, :1])
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, codec.encode(frames)[:, :, :1], atol=1e-5, rtol=0)
    assert sum(p.numel() for p in codec.vae.parameters()) == count


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}, "z_dim is 4"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std holds 0"),
        ({"temperal_downsample": [False, False, True]}, "2 frames make one"),
    ],
)
def test_wan_configurations_that_would_give_garbage_are_refused(changes, word):
    with pytest.raises(GwpError, match=word):
        WanCodec(tiny_vae(**changes))


def test_wan_spatial_factor_is_that_of_the_layers():
    codec = WanCodec(tiny_vae(scale_factor_spatial=8))
    assert codec.spatial == 16
    assert codec.encode(clips(1, T=1)).shape == (1, 4, 1, 2, 2)


def test_wan_in_bfloat16_stays_close_and_comes_back_the_same(wan, tmp_path):
    codec = WanCodec(tiny_vae(), "bfloat16")
    z, exact = codec.encode(clips(2)), wan.encode(clips(2))
    assert z.dtype == torch.float32
    still = codec.encode(clips(2)[:, :1])
    assert (still - exact[:, :, :1]).abs().max() < 0.05 * exact.abs().max()
    assert not torch.equal(still, wan.encode(clips(2)[:, :1]))
    assert (z - exact).abs().max() < 0.05 * exact.abs().max()
    assert codec.digest() != wan.digest()
    codec.save(tmp_path)
    again = load_video_codec(tmp_path)
    assert again.dtype == "bfloat16"
    assert torch.equal(again.encode(clips(2)), z)


def test_wan_is_found_in_a_pipeline_folder_and_incomplete_ones_are_refused(wan, tmp_path):
    wan.save(tmp_path)
    assert WanCodec.load(tmp_path).digest() == wan.digest()
    file, config = next(tmp_path.rglob("*.safetensors")), tmp_path / "vae" / "config.json"
    whole = load_file(file)
    save_file({n: t for n, t in whole.items() if n != "decoder.conv_in.bias"}, file)
    with pytest.raises(GwpError, match=r"lack decoder\.conv_in\.bias"):
        WanCodec.load(tmp_path)
    save_file(whole | {"surplus": torch.zeros(1)}, file)
    with pytest.raises(GwpError, match=r"do not belong.*surplus"):
        WanCodec.load(tmp_path)
    save_file(whole | {"decoder.conv_in.bias": torch.zeros(3)}, file)
    with pytest.raises(GwpError, match="does not load"):
        WanCodec.load(tmp_path)
    # Weights only as a pickle are no weights.
    file.unlink()
    torch.save(whole, file.with_suffix(".bin"))
    with pytest.raises(GwpError, match="does not load"):
        WanCodec.load(tmp_path)
    config.write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(GwpError, match="holds WanTransformer3DModel"):
        WanCodec.load(tmp_path)
    with pytest.raises(GwpError, match=r"no config\.json"):
        WanCodec.load(tmp_path / "nowhere")


def test_unknown_kinds_and_places_are_named(tmp_path):
    with pytest.raises(GwpError, match=r"no codec\.json"):
        load_video_codec(tmp_path)
    with pytest.raises(GwpError, match="download it first"):
        load_video_codec("s3://bucket/codec")
    for text, word in [
        ('{"kind": "cubist"}', "'cubist'; known: pca, wan"),
        ("{}", "names no 'kind'"),
        ("{", "not JSON"),
    ]:
        (tmp_path / "codec.json").write_text(text)
        with pytest.raises(GwpError, match=word):
            load_video_codec(tmp_path)


def test_a_stage_file_names_a_codec_by_kind():
    config = TypeAdapter(VideoCodecConfig)
    assert config.validate_python({"kind": "pca"}).channels == 24
    assert config.validate_python({"kind": "wan", "path": "x"}).dtype == "float32"
    for wrong in (
        {"kind": "cubist"},
        {"kind": "wan"},
        {"kind": "pca", "path": "x"},
        {"kind": "wan", "path": "x", "dtype": "int8"},
    ):
        with pytest.raises(ValidationError):
            config.validate_python(wrong)


def test_importing_codecs_imports_no_model_library():
    code = (
        "import sys, gwp.model.codecs.text, gwp.model.codecs.video; "
        "sys.exit(', '.join(m for m in ('diffusers', 'transformers', 'accelerate') if m in "
        "sys.modules) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
