"""Weights that do not fit are refused, each misfit by name."""

import pickle

import pytest
import torch

from gwp.errors import GwpError
from gwp.model.weights import load_model, open_checkpoint, read_config, weight_files
from tests.support import forms


def broken(model):
    tensors = forms.published(model)
    tensors["blocks.9.stray"] = tensors.pop("proj_out.bias")
    tensors["proj_out.weight"] = tensors["proj_out.weight"][:-1].clone()
    tensors["patch_embedding.bias"] = torch.zeros(48, dtype=torch.int8)
    return tensors


def test_every_misfit_is_named_at_once(dense, tmp_path):
    folder = forms.write(tmp_path, broken(dense), dense.config.to_published())
    lines = (
        "unexpected blocks.9.stray (16,)",
        "missing proj_out.bias (16,)",
        "misshapen proj_out.weight: file (15, 48), model (16, 48)",
        "quantised patch_embedding.bias: torch.int8",
    )
    with pytest.raises(GwpError) as caught:
        load_model(folder)
    for line in lines:
        assert line in str(caught.value)
    assert str(caught.value).count("\n") == len(lines)


def test_layers_that_are_absent_are_named_one_by_one(dense, tmp_path):
    tensors = {n: t for n, t in forms.published(dense).items() if not n.startswith("blocks.1.")}
    problems = open_checkpoint(
        forms.write(tmp_path, tensors, dense.config.to_published())
    ).problems()
    assert len(problems) == 27
    assert all(line.startswith("missing blocks.1.") for line in problems)


def test_only_what_is_allowed_is_let_through(dense, tmp_path):
    tensors = broken(dense)
    tensors |= {
        n: t
        for n, t in forms.published(dense).items()
        if n in ("proj_out.weight", "patch_embedding.bias")
    }
    folder = forms.write(tmp_path, tensors, dense.config.to_published())
    with pytest.raises(GwpError, match=r"missing proj_out\.bias") as caught:
        load_model(folder, allow_unexpected=["blocks.*.stray"], allow_missing=["patch_*"])
    assert "stray" not in str(caught.value)
    allowed = {"allow_unexpected": ["blocks.9.*"], "allow_missing": ["proj_out.bia?"]}
    first, again, other = (load_model(folder, **allowed, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.proj_out.weight, dense.proj_out.weight)
    assert first.proj_out.bias.abs().max() <= 48**-0.5
    assert torch.equal(first.proj_out.bias, again.proj_out.bias)
    assert not torch.equal(first.proj_out.bias, other.proj_out.bias)


def test_a_misshapen_tensor_is_never_let_through(dense, tmp_path):
    tensors = forms.published(dense)
    tensors["proj_out.weight"] = tensors["proj_out.weight"][:-1].clone()
    with pytest.raises(GwpError, match="misshapen"):
        load_model(
            forms.write(tmp_path, tensors, dense.config.to_published()),
            allow_missing=["*"],
            allow_unexpected=["*"],
        )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"in_action_channels": 32}, "action_channels: config.json says 32, the weights 6"),
        ({"num_embodiments": 2}, "num_embodiments: config.json says 2, the weights 1"),
        ({"ffn_dim": 128}, "ffn_dim: config.json says 128, the weights 64"),
        ({"num_layers": 1}, "num_layers: config.json says 1, the weights 2"),
        ({"attention_head_dim": 12}, "num_attention_heads: config.json says 2, the weights 4"),
        (
            {"action_expert_dim": 24},
            "action_expert_dim: config.json says 24, the weights have none",
        ),
    ],
)
def test_a_config_that_contradicts_its_weights_is_refused_naming_both(
    change, line, dense, tmp_path
):
    folder = forms.write(tmp_path, forms.published(dense), dense.config.to_published() | change)
    for refuse in (read_config, load_model):
        with pytest.raises(GwpError, match=line):
            refuse(folder)
    assert line in open_checkpoint(folder).problems()


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": "2"},
        {"attention_head_dim": 0},
        {"patch_size": 2},
        {"patch_size": [1, 2, "2"]},
    ],
)
def test_a_config_that_is_nonsense_is_refused(change, dense, tmp_path):
    folder = forms.write(tmp_path, forms.published(dense), dense.config.to_published() | change)
    with pytest.raises(GwpError, match=f"{next(iter(change))}"):
        load_model(folder)


def test_class_and_weights_of_different_families_are_refused(dense, mixture, tmp_path):
    with pytest.raises(
        GwpError,
        match=r"says CasualWorldActionTransformer_MoT, but the weights do not hold two experts",
    ):
        open_checkpoint(
            forms.write(tmp_path / "a", forms.published(dense), mixture.config.to_published())
        )
    with pytest.raises(
        GwpError, match="says WanTransformer3DModel, but the weights hold two experts"
    ):
        open_checkpoint(
            forms.write(tmp_path / "b", forms.published(mixture), forms.wan_config(dense.config))
        )
    with pytest.raises(GwpError, match="_class_name 'UNet2DModel' is not one of"):
        open_checkpoint(
            forms.write(tmp_path / "c", forms.published(dense), {"_class_name": "UNet2DModel"})
        )
    with pytest.raises(GwpError, match="no transformer blocks among its 1 tensors"):
        open_checkpoint(forms.write(tmp_path / "d", {"encoder.conv.weight": torch.zeros(1)}, None))


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


def test_no_code_in_a_checkpoint_runs(dense, tmp_path, capfd):
    torch.save({"weight": torch.zeros(1), "evil": Evil()}, tmp_path / "model.bin")
    with pytest.raises(GwpError, match="holds more than tensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(GwpError, match="holds more than tensors"):
        open_checkpoint(tmp_path)
    assert "code of a checkpoint ran" not in "".join(capfd.readouterr())


def test_files_that_are_not_whole_are_refused(dense, tmp_path):
    tensors, about = forms.published(dense), dense.config.to_published()
    for suffix in (".safetensors", ".bin"):
        folder = forms.write(tmp_path / suffix, tensors, about, suffix)
        file = next(folder.glob(f"*{suffix}"))
        whole = file.read_bytes()
        for cut in (len(whole) - 100, 40, 0):
            file.write_bytes(whole[:cut])
            with pytest.raises(GwpError, match="damaged"):
                load_model(folder)
    for content, word in [
        ([1], "holds a list"),
        ({}, "an empty dict"),
        ({"a": 1, "b": torch.ones(1)}, "'a' is a int"),
    ]:
        torch.save(content, tmp_path / "odd.bin")
        with pytest.raises(GwpError, match=word):
            open_checkpoint(tmp_path / "odd.bin")


def test_folders_that_are_not_whole_are_refused(dense, tmp_path):
    tensors, about = forms.published(dense), dense.config.to_published()
    for index in (True, False):
        folder = forms.write(tmp_path / str(index), tensors, about, shards=3, index=index)
        (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
        with pytest.raises(
            GwpError, match="missing: diffusion_pytorch_model-00002" if index else "2 of 3 shards"
        ):
            load_model(folder)
    index = tmp_path / "True" / "diffusion_pytorch_model.safetensors.index.json"
    elsewhere = '{"weight_map": {"a": "../x.safetensors"}}'
    for text, word in [
        (elsewhere, "out of its folder"),
        ("{", "no shard index"),
        ("[]", "no shard index"),
    ]:
        index.write_text(text)
        with pytest.raises(GwpError, match=word):
            weight_files(tmp_path / "True")
    twice = forms.write(tmp_path / "twice", tensors, about, shards=2, index=False)
    (twice / "diffusion_pytorch_model-00002-of-00002.safetensors").write_bytes(
        (twice / "diffusion_pytorch_model-00001-of-00002.safetensors").read_bytes()
    )
    with pytest.raises(GwpError, match="is there twice"):
        open_checkpoint(twice)
    several = forms.write(tmp_path / "several", tensors, about, stem="ema")
    forms.write(several, tensors, about, stem="raw")
    with pytest.raises(GwpError, match="several weight files and no index"):
        open_checkpoint(several)
    assert open_checkpoint(several / "raw.safetensors").problems() == []
    with pytest.raises(GwpError, match="no weights here"):
        open_checkpoint(tmp_path / "nowhere")
    (several / "config.json").write_text("[]")
    with pytest.raises(GwpError, match="holds a list"):
        open_checkpoint(several / "raw.safetensors")
    with pytest.raises(GwpError, match="not a weight file"):
        open_checkpoint(several / "config.json")
