"""One family from another: slices are exact, what exists keeps its outputs, memory stays near
what is needed.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gwp import storage
from gwp.errors import GwpError
from gwp.model.transformer import Tokens
from gwp.model.weights import load_model, open_checkpoint, save_weights
from gwp.model.weights.derive import convert, require_same, target_config
from pipelines.cli import main
from tests.support import forms
from tests.support.tiny import tiny_config, tiny_model, tiny_tokens

LEVELS = {"A": torch.tensor([0.5, 0.04]), "F": torch.tensor([0.3, 0.9])}
EXPERT = {"action_expert_dim": 24, "action_ffn_dim": 40}


@pytest.fixture(scope="module")
def dense():
    return tiny_model("gwp0", num_embodiments=1)


@pytest.fixture(scope="module")
def folders(dense, tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    forms.write(root / "july", forms.published(dense), dense.config.to_published())
    about = forms.wan_config(dense.config)
    forms.write(
        root / "march", forms.march(dense), about | {"_class_name": "CasualWorldActionTransformer"}
    )
    forms.write(root / "wan", forms.wan(dense), about, shards=2)
    forms.write(root / "native", forms.native(dense), forms.native_config(dense.config))
    mixture = tiny_model("gwp05", num_embodiments=2)
    forms.write(root / "mixture", forms.published(mixture), mixture.config.to_published())
    return root


def made(folder, out, **options):
    """The folder `out`, converted from `folder`, as a checkpoint."""
    source = open_checkpoint(folder)
    how = {
        k: options.pop(k) for k in ("time_proj", "dtype", "seed", "allow_missing") if k in options
    }
    convert(source, out, target_config(source, **options), **how)
    checkpoint = open_checkpoint(out)
    assert checkpoint.problems() == []
    return checkpoint


def leading(tensor, like):
    return tensor[tuple(slice(n) for n in like.shape)]


@pytest.mark.parametrize("source", ["july", "march"])
def test_a_mixture_is_made_of_leading_slices(source, dense, folders, tmp_path):
    mixture, old = made(folders / source, tmp_path, to="gwp05", **EXPERT), forms.published(dense)
    for name in mixture.tensors:
        new = mixture.read(name)
        if name.startswith("state_encoder."):
            assert torch.equal(
                new, mixture.read(name.replace("state_encoder", "action_encoder"))
            ), name
            continue
        origin = name.replace(".visual_expert", "").replace(".action_expert", "")
        for prefix in ("condition_embedder.", "scale_shift_table"):
            origin = origin.replace(f"action_{prefix}", prefix)
        assert torch.equal(new, leading(old[origin], new)), name
    assert mixture.tensors["blocks.1.action_expert.attn1.to_q.weight"].shape == (48, 24)
    assert mixture.tensors["blocks.1.visual_expert.attn1.to_q.weight"].shape == (48, 48)


def test_slices_of_the_modulation_projection_may_be_taken_slot_by_slot(dense, folders, tmp_path):
    mixture = made(folders / "july", tmp_path, to="gwp05", time_proj="per-slot", **EXPERT)
    other = made(folders / "july", tmp_path / "leading", to="gwp05", **EXPERT)
    weight, bias = (
        dense.conditions["shared"].time_proj.weight,
        dense.conditions["shared"].time_proj.bias,
    )
    name = "action_condition_embedder.time_proj."
    for slot in range(6):
        new, old = slice(slot * 24, slot * 24 + 24), slice(slot * 48, slot * 48 + 24)
        assert torch.equal(mixture.read(f"{name}weight")[new], weight[old, :24])
        assert torch.equal(mixture.read(f"{name}bias")[new], bias[old])
    differing = {n for n in mixture.tensors if not torch.equal(mixture.read(n), other.read(n))}
    assert differing == {f"{name}weight", f"{name}bias"}


@pytest.mark.parametrize("time_proj", ["leading", "per-slot"])
def test_a_mixture_as_wide_as_its_source_gives_the_sources_outputs(
    time_proj, dense, folders, tmp_path
):
    made(
        folders / "july",
        tmp_path,
        to="gwp05",
        time_proj=time_proj,
        action_expert_dim=48,
        action_ffn_dim=64,
    )
    mixture, (tokens, text, _) = load_model(tmp_path), tiny_tokens(config=dense.config)
    with torch.no_grad():
        a, b = (model(tokens, LEVELS, text) for model in (dense, mixture))
    torch.testing.assert_close(b.action, a.action, atol=1e-6, rtol=0)
    torch.testing.assert_close(b.future, a.future, atol=1e-6, rtol=0)


@pytest.mark.parametrize("source", ["wan", "native"])
def test_wan_becomes_a_model_whose_action_projections_are_new(source, dense, folders, tmp_path):
    made(folders / source, tmp_path / "a", to="gwp0", action_channels=6, embodiments=3, seed=1)
    again = made(
        folders / source, tmp_path / "b", to="gwp0", action_channels=6, embodiments=3, seed=1
    )
    other = made(
        folders / source, tmp_path / "c", to="gwp0", action_channels=6, embodiments=3, seed=2
    )
    first, old = open_checkpoint(tmp_path / "a"), forms.wan(dense)
    for name in first.tensors:
        value = first.read(name)
        assert torch.equal(value, again.read(name)), name
        if name in old:
            assert torch.equal(value, old[name]), name
        else:
            assert name.startswith("action_")
            assert not torch.equal(value, other.read(name)), name
            assert (
                0 < value.abs().max() <= value[0].shape[0] ** -0.5
                if name == "action_encoder.in_proj.weight"
                else value.any()
            )
    assert made(folders / source, tmp_path / "d", **EXPERT).config == tiny_config(
        "gwp05",
        action_channels=16,
        num_embodiments=2,
        rope_max_seq_len=first.config.rope_max_seq_len,
        **EXPERT,
    )


def test_the_trunk_of_wan_gives_what_diffusers_gives(tmp_path):
    from diffusers import WanTransformer3DModel

    config = tiny_config("gwp0")
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        **{k: v for k, v in forms.wan_config(config).items() if not k.startswith("_")}
    ).eval()
    theirs.save_pretrained(tmp_path / "pipeline" / "transformer", max_shard_size="100KB")
    assert (
        main(
            [
                "weights",
                "convert",
                str(tmp_path / "pipeline"),
                "--out",
                str(tmp_path / "ours"),
                "--to",
                "gwp0",
            ]
        )
        == 0
    )
    tokens, text, _ = tiny_tokens(config=config)
    frames = torch.cat([tokens.reference, tokens.future], dim=2)
    level = torch.linspace(0, 1, 2 * frames[0, 0].numel() // 4).view(2, -1)
    with torch.no_grad():
        # As one group all tokens see each other, which is what Wan's do.
        ours = load_model(tmp_path / "ours")(
            Tokens(reference=frames), {"R": level}, text, heads=("R",)
        ).reference
        expected = theirs(frames, level * 1000, text).sample
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("source", "channels"), [("july", 9), ("march", 9), ("mixture", 8)])
def test_growth_keeps_the_outputs_of_what_exists(source, channels, folders, tmp_path):
    before = load_model(folders / source)
    after = load_model(
        made(folders / source, tmp_path, action_channels=channels, embodiments=4).path
    )
    d = before.config.action_channels
    tokens, text, ids = tiny_tokens(config=before.config)

    def widened(x):
        # What padded channels carry (noise, while denoising) must not matter.
        return torch.cat([x, torch.randn(*x.shape[:2], channels - d)], dim=2)

    wide = Tokens(widened(tokens.state), tokens.reference, widened(tokens.action), tokens.future)
    with torch.no_grad():
        a, b = before(tokens, LEVELS, text, ids), after(wide, LEVELS, text, ids)
        new = after(wide, LEVELS, text, torch.full_like(ids, 3))
    torch.testing.assert_close(b.action[..., :d], a.action, atol=1e-6, rtol=0)
    torch.testing.assert_close(b.future, a.future, atol=1e-6, rtol=0)
    # What is new is alive.
    assert b.action[..., d:].abs().max() > 1e-3
    assert (new.action - b.action).abs().max() > 1e-3
    assert all(p.isfinite().all() for p in after.parameters())


def test_growing_while_slicing(folders, tmp_path):
    mixture = made(
        folders / "march", tmp_path, to="gwp05", action_channels=8, embodiments=2, **EXPERT
    )
    old = open_checkpoint(folders / "march")
    for encoder in ("state_encoder", "action_encoder"):
        new = mixture.read(f"{encoder}.in_proj.weight")
        assert new.shape == (2, 8, 128)
        assert torch.equal(new[:1, :6], old.read("action_encoder.in_proj.weight"))
        assert not new[0, 6:].any()
        assert new[1].any()


def test_bfloat16_is_rounded_once(dense, folders, tmp_path):
    half = made(folders / "july", tmp_path, dtype=torch.bfloat16)
    for name, tensor in forms.published(dense).items():
        assert torch.equal(half.read(name), tensor.to(torch.bfloat16)), name


def test_what_may_be_missing_is_made_anew(dense, folders, tmp_path):
    tensors = forms.published(dense)
    del tensors["proj_out.bias"]
    folder = forms.write(tmp_path / "in", tensors, dense.config.to_published())
    with pytest.raises(GwpError, match=r"missing proj_out\.bias"):
        made(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    checkpoint = made(folder, tmp_path / "out", allow_missing=["proj_out.*"])
    assert checkpoint.read("proj_out.bias").any()
    assert torch.equal(checkpoint.read("proj_out.weight"), tensors["proj_out.weight"])


@pytest.mark.parametrize(
    ("source", "options", "word"),
    [
        ("mixture", {"to": "gwp0"}, "no one expert for all tokens"),
        ("mixture", {"action_expert_dim": 12}, "24 wide"),
        ("july", {"action_channels": 3}, "cannot shrink to 3"),
        ("mixture", {"embodiments": 1}, "num_embodiments 2, which cannot shrink to 1"),
        ("july", {"to": "gwp05"}, "1024 wide .* cannot be sliced from 48"),
        ("july", {"action_ffn_dim": 8}, "one expert"),
    ],
)
def test_what_cannot_be_made_is_refused(source, options, word, folders):
    with pytest.raises(GwpError, match=word):
        target_config(open_checkpoint(folders / source), **options)


def test_a_place_that_holds_something_is_not_written_to(folders, tmp_path):
    (tmp_path / "mine").write_text("")
    assert main(["weights", "convert", str(folders / "july"), "--out", str(tmp_path)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_disk_that_is_too_full_is_said_before_the_work(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "gwp.model.weights.derive.shutil.disk_usage", lambda _place: SimpleNamespace(free=1000)
    )
    with pytest.raises(GwpError, match=r"take 0\.0 GB and 0\.0 GB are free"):
        made(folders / "july", tmp_path)
    assert not list(tmp_path.iterdir())


def test_places_in_object_storage_are_read_and_written(dense, folders):
    storage.upload(folders / "march", "memory://weights/in/model")
    assert (
        main(
            [
                "weights",
                "convert",
                "memory://weights/in",
                "--out",
                "memory://weights/out",
                "--action-channels",
                "8",
            ]
        )
        == 0
    )
    assert (
        main(["weights", "inspect", "memory://weights/out", "--reference", "memory://weights/in"])
        == 0
    )
    assert (
        json.loads(storage.read_bytes("memory://weights/out/config.json"))["in_action_channels"]
        == 8
    )
    assert main(["weights", "convert", "memory://weights/in", "--out", "memory://weights/out"]) == 2


@pytest.mark.parametrize("source", ["march", "wan", "native", "july"])
def test_a_start_of_another_shape_names_the_command_that_helps(source, folders, tmp_path):
    checkpoint = open_checkpoint(folders / source)
    config = tiny_config("gwp05", num_embodiments=3, action_channels=7, **EXPERT).model_copy(
        update={"rope_max_seq_len": checkpoint.widths["rope_max_seq_len"]}
    )
    with pytest.raises(GwpError) as caught:
        require_same(checkpoint, config, str(folders / source))
    assert "action_expert_dim is none" in str(caught.value).lower()
    words = shlex.split(str(caught.value).split("run: gwp ")[1].splitlines()[0])
    assert main([str(tmp_path / "new") if word == "DIR" else word for word in words]) == 0
    require_same(open_checkpoint(tmp_path / "new"), config, "new")


def test_a_start_that_no_conversion_reaches_says_what_differs(folders):
    with pytest.raises(
        GwpError, match=r"num_layers is 2, the job's `model` says 3; copy its widths"
    ):
        require_same(
            open_checkpoint(folders / "mixture"), tiny_config(num_embodiments=2, num_layers=3), "x"
        )


@pytest.mark.parametrize("visibility", ["joint", "video-first"])
def test_weights_start_a_model_that_sees_otherwise(folders, visibility, tmp_path):
    source = open_checkpoint(folders / "mixture")
    require_same(source, source.config.model_copy(update={"visibility": visibility}), "x")
    # What is made of a model sees what it saw.
    model = load_model(folders / "mixture")
    config = model.config.model_copy(update={"visibility": visibility})
    save_weights(tmp_path / "in", config, model.state_dict())
    convert(open_checkpoint(tmp_path / "in"), tmp_path / "out", config)
    assert open_checkpoint(tmp_path / "out").config == config


MEASURE = """
import contextlib, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from gwp.model.config import ModelConfig
from gwp.model.weights import load_model, open_checkpoint, save_weights
from gwp.model.weights.checkpoint import parameters
from gwp.model.weights.derive import convert, target_config
from gwp.model.weights.save import write_folder

def memory(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) * 1024

config = ModelConfig(family="gwp0", num_layers=12, num_attention_heads=6, attention_head_dim=128,
                     ffn_dim=3072, in_channels=16, action_channels=14, text_dim=512)
plan = parameters(config)
size, largest = sum(t.nbytes for t in plan.values()), max(t.nbytes for t in plan.values())
folder = Path(sys.argv[1])
ones = lambda name: torch.ones(plan[name].shape)
write_folder(folder / "in", config, plan, ones, shard_bytes=size // 4 + 1)
shard = max(p.stat().st_size for p in (folder / "in").glob("*.safetensors"))
if sys.argv[2] == ".bin":
    for file in (folder / "in").glob("*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    index = folder / "in" / "diffusion_pytorch_model.safetensors.index.json"
    other = index.with_name("diffusion_pytorch_model.bin.index.json")
    other.write_text(index.read_text().replace(".safetensors", ".bin"))
    index.unlink()
with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
start = memory("VmRSS:")
source = open_checkpoint(folder / "in")
target = target_config(source, "gwp05", action_expert_dim=256, action_ffn_dim=1024)
convert(source, folder / "out", target, dtype=torch.bfloat16)
converted = memory("VmHWM:") - start
del source
model = load_model(folder / "in")
print(size, shard, largest, converted, memory("VmHWM:") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_peak_memory_of_loading_and_converting(suffix, tmp_path):
    words = [sys.executable, "-c", MEASURE, str(tmp_path), suffix]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    size, shard, largest, converted, loaded = map(int, done.stdout.split())
    mb = 1 << 20
    print(
        f"model {size / mb:.0f} MB in {suffix} shards of {shard / mb:.0f} MB, largest tensor "
        f"{largest / mb:.1f} MB: "
        f"converting grew by {converted / mb:.0f} MB, loading to {loaded / mb:.0f} MB"
    )
    assert shard < size / 3
    # The library copies a tensor or two on the way.
    more = 3 * largest if suffix == ".safetensors" else shard
    # Memory that the process had freed before the start is used again, so a little less than
    # the model may show; and pages of a mapped file may stay for a while after it is closed.
    # Well below a second shard all the same.
    assert 0.8 * size < loaded < size + more + 3 * largest
    assert converted < more + 3 * largest
