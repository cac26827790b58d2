"""Video models that take more than noisy latents: what a model of ours can use of them is used, and
what not is named.
"""

import json

import pytest
import torch
from torch.nn import functional as F

from gwp.errors import GwpError
from gwp.model.config import ModelConfig
from gwp.model.weights import load_model, open_checkpoint
from gwp.model.weights.checkpoint import key_set
from pipelines.cli import main
from tests.support import forms

WIDTHS = {
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "ffn_dim",
    "in_channels",
    "text_dim",
    "freq_dim",
    "patch_size",
}
PATCH = "patch_embedding.weight"
FFN = "blocks.1.experts.shared.ffn.net.2.weight"
STARTS = pytest.mark.parametrize(
    ("make", "about", "title"),
    [
        (forms.control, forms.control_config, "Wan, diffusers names, with control"),
        (forms.gigaworld, forms.gigaworld_config, "GigaWorld-1"),
    ],
    ids=["control", "gigaworld"],
)


@STARTS
def test_its_trunk_is_read_and_the_rest_is_named(make, about, title, dense, tmp_path):
    stored = make(dense)
    checkpoint = open_checkpoint(forms.write(tmp_path, stored, about(dense.config), shards=2))
    assert checkpoint.form.title == title
    assert checkpoint.family == "wan"
    assert checkpoint.problems() == []
    assert checkpoint.widths["in_channels"] == dense.config.in_channels == 4
    trunk = forms.wan(dense)
    assert checkpoint.tensors.keys() == trunk.keys()
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in trunk.items())
    history = {n for n in stored if n.startswith(("patch_short", "patch_mid", "patch_long"))}
    # All that was stored is either there or told.
    assert len(checkpoint.left_out) == 1 + len(history)
    assert "channels 4 to 15 of patch_embedding.weight" in checkpoint.left_out
    assert all(any(line.startswith(f"{n} ") for line in checkpoint.left_out) for n in history)


def test_what_is_kept_of_the_embedding_is_what_it_does_without_control(dense, tmp_path):
    stored = forms.control(dense)
    folder = forms.write(tmp_path, stored, forms.control_config(dense.config))
    kept = open_checkpoint(folder).read("patch_embedding.weight")
    latents = torch.randn(2, 4, 3, 6, 4)
    shown = torch.cat([latents, torch.zeros(2, 12, 3, 6, 4)], dim=1)
    bias, patch = stored["patch_embedding.bias"], dense.config.patch_size
    torch.testing.assert_close(
        F.conv3d(latents, kept, bias, patch),
        F.conv3d(shown, stored["patch_embedding.weight"], bias, patch),
    )


def test_the_published_start_of_the_larger_one_has_this_trunk_to_the_byte():
    """Its index of tensors (`Wan2p2_5B-FunControl-diffusers`, bf16) says so many bytes and names."""
    trunk = key_set("wan", ModelConfig.released("gwp0").model_dump(include=WIDTHS))
    assert len(trunk) == 825
    control = (148 - 48) * 2 * 2 * 3072
    assert 2 * (sum(t.numel() for t in trunk.values()) + control) == 10_002_033_024


@STARTS
def test_models_of_both_families_are_made_of_it(make, about, title, dense, tmp_path, capsys):
    folder = forms.write(tmp_path / "from", make(dense), about(dense.config))
    words = ["--action-expert-dim", "24", "--action-ffn-dim", "48", "--action-channels", "6"]
    out = tmp_path / "gwp05"
    assert main(["weights", "convert", str(folder), "--out", str(out), *words]) == 0
    told = capsys.readouterr().out
    assert "left out, for our models have none: channels 4 to 15 of patch_embedding.weight" in told
    assert f"tensors of {title} to" in told
    mixture = load_model(out)
    # The visual expert is the whole trunk.
    plain = dict(dense.named_parameters())
    for name, parameter in mixture.named_parameters():
        if ".visual." in name or name.startswith(("patch_embedding", "proj_out")):
            assert torch.equal(parameter, plain[name.replace(".visual.", ".shared.")]), name
    out = tmp_path / "gwp0"
    words = ["--to", "gwp0", "--action-channels", "6"]
    assert main(["weights", "convert", str(folder), "--out", str(out), *words]) == 0
    again = load_model(out)
    assert torch.equal(again.patch_embedding.weight, dense.patch_embedding.weight)
    assert torch.equal(again.blocks[1].experts.shared.ffn.net[2].weight, plain[FFN])


@pytest.mark.parametrize("changed", [None, {"out_channels": None}, {"in_channels": 16.0}])
def test_without_a_configuration_nothing_tells_which_channels_are_latents(changed, dense, tmp_path):
    about = None if changed is None else forms.gigaworld_config(dense.config) | changed
    with pytest.raises(GwpError, match="how many channels of a GigaWorld-1 are latents"):
        open_checkpoint(forms.write(tmp_path, forms.gigaworld(dense), about))


def test_two_names_of_one_tensor_are_both_told(dense, tmp_path):
    stored = forms.gigaworld(dense)
    stored["scale_shift_table"] = stored["norm_out.scale_shift_table"].clone()
    with pytest.raises(GwpError, match=r"as norm_out\.scale_shift_table in .* and as scale_shift"):
        open_checkpoint(forms.write(tmp_path, stored, forms.gigaworld_config(dense.config)))


def test_control_in_the_names_of_wans_authors_is_cut_likewise(dense, tmp_path):
    stored = forms.native(dense) | {PATCH: forms.control(dense)[PATCH]}
    about = forms.native_config(dense.config) | {"in_dim": 3 * dense.config.in_channels + 4}
    checkpoint = open_checkpoint(forms.write(tmp_path, stored, about))
    assert checkpoint.form.title == "Wan, native names, with control"
    assert checkpoint.problems() == []
    assert torch.equal(checkpoint.read(PATCH), dense.patch_embedding.weight)


def test_one_that_is_shown_latents_alone_is_taken_whole(dense, tmp_path):
    stored = forms.gigaworld(dense) | {"patch_embedding.weight": dense.patch_embedding.weight}
    about = forms.gigaworld_config(dense.config) | {"in_channels": dense.config.in_channels}
    checkpoint = open_checkpoint(forms.write(tmp_path, stored, about))
    assert checkpoint.problems() == []
    assert len(checkpoint.left_out) == 6


def test_a_configuration_of_other_channels_is_a_contradiction(dense, tmp_path):
    about = forms.control_config(dense.config) | {"in_channels": 20}
    checkpoint = open_checkpoint(forms.write(tmp_path, forms.control(dense), about))
    assert "in_channels: config.json says 20, the weights 16" in checkpoint.problems()


@STARTS
def test_it_is_no_start_as_it_is(make, about, title, dense, tmp_path):
    folder = forms.write(tmp_path, make(dense), about(dense.config))
    with pytest.raises(GwpError, match="gwp weights convert"):
        load_model(folder)


@STARTS
def test_what_belongs_to_neither_is_refused(make, about, title, dense, tmp_path):
    """Attention to a picture, as the smaller GigaWorld-1 has it from its own start."""
    stored = make(dense) | {"blocks.0.attn2.add_k_proj.weight": torch.zeros(48, 48)}
    checkpoint = open_checkpoint(forms.write(tmp_path, stored, about(dense.config)))
    assert checkpoint.problems() == ["unexpected blocks.0.attn2.add_k_proj.weight (48, 48)"]
    assert checkpoint.problems(allow_unexpected=["*.add_k_proj.*"]) == []


def test_inspect_shows_what_is_left_out(dense, tmp_path, capsys):
    folder = forms.write(tmp_path, forms.gigaworld(dense), forms.gigaworld_config(dense.config))
    assert main(["weights", "inspect", str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("GigaWorld-1: ")
    assert sum("left out, for our models have none" in line for line in shown) == 7
    assert shown[-1] == "whole"
    assert main(["weights", "inspect", str(folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_out"]) == 7
