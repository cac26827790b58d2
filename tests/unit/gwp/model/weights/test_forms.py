"""Reading checkpoints: every published form gives equal weights, and what does not fit is
named.
"""

import json

import pytest
import torch
from torch import nn

from gwp.errors import GwpError
from gwp.model.config import ModelConfig
from gwp.model.weights import load_model, open_checkpoint, read_config, save_weights
from gwp.model.weights.checkpoint import key_set
from gwp.model.weights.names import published_name
from tests.support import forms
from tests.support.tiny import tiny_config, tiny_model, tiny_tokens

LEVELS = {"A": torch.tensor([0.5, 0.04]), "F": torch.tensor([0.3, 0.9])}


def same(checkpoint, tensors):
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor), name


FORMS = [
    ("gwp05", forms.published, lambda c: c.to_published(), "GWP-0.5"),
    ("gwp0", forms.published, lambda c: c.to_published(), "GWP-0 (July)"),
    (
        "gwp0",
        forms.march,
        lambda c: forms.wan_config(c) | {"_class_name": "CasualWorldActionTransformer"},
        "GWP-0 (March)",
    ),
    ("gwp0", forms.wan, forms.wan_config, "Wan, diffusers names"),
    ("gwp0", forms.native, forms.native_config, "Wan, native names"),
]


@pytest.mark.parametrize(("family", "make", "about", "title"), FORMS, ids=[f[3] for f in FORMS])
def test_every_form_gives_equal_weights(family, make, about, title, mixture, dense, tmp_path):
    model = mixture if family == "gwp05" else dense
    folder = forms.write(tmp_path, make(model), about(model.config))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.form.title == title
    assert checkpoint.problems() == []
    same(checkpoint, forms.wan(model) if checkpoint.family == "wan" else forms.published(model))
    known = set(checkpoint.widths) & (set(model.config.model_fields_set) - {"rope_max_seq_len"})
    assert {k: checkpoint.widths[k] for k in known} == {k: getattr(model.config, k) for k in known}
    if checkpoint.family == "wan":
        for refuse in (read_config, load_model):
            with pytest.raises(GwpError, match="gwp weights convert"):
                refuse(folder)
        return
    again = load_model(folder)
    tokens, text, _ = tiny_tokens(config=model.config)
    with torch.no_grad():
        assert torch.equal(again(tokens, LEVELS, text).action, model(tokens, LEVELS, text).action)


def test_march_projections_do_what_plain_layers_do(dense, tmp_path):
    tensors = forms.march(dense)
    about = forms.wan_config(dense.config) | {"_class_name": "CasualWorldActionTransformer"}
    model = load_model(forms.write(tmp_path, tensors, about))
    x = {"action_encoder": torch.randn(2, 5, 6), "action_decoder": torch.randn(2, 5, 48)}
    for side, widths in (
        ("action_encoder", (6, 128, 256, 48)),
        ("action_decoder", (48, 256, 128, 6)),
    ):
        a, b, c, d = widths
        plain = nn.Sequential(
            nn.Linear(a, b), nn.GELU(), nn.Linear(b, c), nn.GELU(), nn.Linear(c, d)
        )
        plain.load_state_dict(
            {n.removeprefix(f"{side}."): t for n, t in tensors.items() if n.startswith(f"{side}.")}
        )
        ours = getattr(model, side)(x[side], torch.zeros(2, dtype=torch.long))
        torch.testing.assert_close(ours, plain(x[side]), atol=1e-6, rtol=0)


FILES = [
    {"suffix": ".safetensors", "shards": 3},
    {"suffix": ".safetensors", "shards": 3, "index": False},
    {"stem": "model"},
    {"stem": "gwp_step_9"},
    {"suffix": ".bin"},
    {"suffix": ".bin", "shards": 2, "stem": "pytorch_model"},
    {"suffix": ".pt", "wrapper": "model"},
    {"suffix": ".pth", "wrapper": "state_dict"},
]


@pytest.mark.parametrize("options", FILES, ids=[" ".join(map(str, f.values())) for f in FILES])
def test_every_file_form_gives_equal_weights(options, mixture, tmp_path):
    tensors = forms.published(mixture)
    folder = forms.write(tmp_path, tensors, mixture.config.to_published(), **options)
    same(open_checkpoint(folder), tensors)
    assert read_config(folder) == mixture.config
    if options.get("shards", 1) == 1:
        same(open_checkpoint(next(p for p in folder.iterdir() if p.suffix != ".json")), tensors)


def test_files_from_before_zip_archives_are_read(dense, tmp_path):
    tensors = forms.published(dense)
    torch.save(tensors, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "config.json").write_text(json.dumps(dense.config.to_published()))
    same(open_checkpoint(tmp_path), tensors)


@pytest.mark.parametrize(("family", "make", "about", "title"), FORMS, ids=[f[3] for f in FORMS])
def test_the_family_is_known_without_a_config(family, make, about, title, tmp_path):
    """Without config.json a head is as wide as in the released models, and that is said."""
    model = tiny_model(family, num_embodiments=1, num_attention_heads=1, attention_head_dim=128)
    checkpoint = open_checkpoint(forms.write(tmp_path, make(model), None))
    assert checkpoint.form.title == title
    assert checkpoint.problems() == []
    assert (checkpoint.widths["num_attention_heads"], checkpoint.widths["attention_head_dim"]) == (
        1,
        128,
    )
    assert "attention_head_dim 128" in checkpoint.assumed


def test_a_width_that_heads_do_not_divide_asks_for_a_config(dense, tmp_path):
    with pytest.raises(GwpError, match="width 48 is no multiple of attention_head_dim 128"):
        open_checkpoint(forms.write(tmp_path, forms.published(dense), None))


RELEASED = [
    ("gwp05", 1664, 6_021_560_928),
    ("gwp0", 837, 5_001_438_304),
    ("wan", 825, 4_999_787_712),
]


@pytest.mark.parametrize(("family", "tensors", "parameters"), RELEASED)
def test_released_key_sets_on_the_meta_device(family, tensors, parameters):
    keys = key_set(
        family,
        ModelConfig.released("gwp05" if family == "gwp05" else "gwp0").model_dump(
            exclude={"family"}
        ),
    )
    assert (len(keys), sum(t.numel() for t in keys.values())) == (tensors, parameters)
    assert all(t.is_meta for t in keys.values())


def test_released_shapes_are_the_published_ones():
    keys = key_set("gwp05", ModelConfig.released("gwp05").model_dump(exclude={"family"}))
    for name, shape in {
        "action_scale_shift_table": (1, 2, 1024),
        "patch_embedding.weight": (3072, 48, 1, 2, 2),
        "proj_out.weight": (192, 3072),
        "condition_embedder.time_proj.weight": (18432, 3072),
        "action_condition_embedder.text_embedder.linear_1.weight": (1024, 4096),
        "state_encoder.in_proj.weight": (2, 16, 128),
        "action_decoder.out_proj.bias": (2, 16),
        "blocks.29.action_expert.attn1.to_q.weight": (3072, 1024),
        "blocks.0.action_expert.attn2.to_out.0.weight": (1024, 3072),
        "blocks.0.action_expert.attn1.norm_k.weight": (3072,),
        "blocks.7.visual_expert.ffn.net.2.weight": (3072, 14336),
        "blocks.7.action_expert.ffn.net.0.proj.bias": (4096,),
        "blocks.0.visual_expert.scale_shift_table": (1, 6, 3072),
    }.items():
        assert keys[name].shape == shape, name


def test_the_wan_key_set_is_that_of_diffusers():
    from diffusers import WanTransformer3DModel

    config = ModelConfig.released("gwp0")
    about = {k: v for k, v in forms.wan_config(config).items() if not k.startswith("_")}
    with torch.device("meta"):
        theirs = {n: tuple(t.shape) for n, t in WanTransformer3DModel(**about).state_dict().items()}
    ours = {
        n: tuple(t.shape) for n, t in key_set("wan", config.model_dump(exclude={"family"})).items()
    }
    assert ours == theirs


def test_written_shards_are_read_by_the_library_and_hold_every_dtype(dense, tmp_path):
    from safetensors.torch import load_file

    from gwp.model.weights.save import write_folder

    tensors = forms.published(dense)
    for i, name in enumerate(tensors):
        tensors[name] = tensors[name].to(
            (torch.bfloat16, torch.float32, torch.float64, torch.float16)[i % 4]
        )
    write_folder(tmp_path, dense.config, tensors, tensors.__getitem__, shard_bytes=300_000)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    found = {}
    for file in set(index["weight_map"].values()):
        assert (tmp_path / file).stat().st_size < 320_000
        part = load_file(tmp_path / file)
        assert {n for n, f in index["weight_map"].items() if f == file} == set(part)
        found |= part
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())
    same(open_checkpoint(tmp_path), tensors)


def test_weights_load_in_the_dtype_that_is_asked(mixture, tmp_path):
    save_weights(tmp_path, mixture.config, dict(mixture.named_parameters()))
    model = load_model(tmp_path, dtype=torch.bfloat16)
    for (name, ours), theirs in zip(model.named_parameters(), mixture.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16)), name


def test_names_of_a_family_are_distinct():
    for family in ("gwp0", "gwp05"):
        names = [n for n, _ in tiny_model(family).named_parameters()]
        assert len({published_name(n, family) for n in names}) == len(names)
        assert tiny_config(family).family == family
