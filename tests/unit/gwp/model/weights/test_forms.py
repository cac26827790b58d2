"""Reading checkpoints: every published form gives equal weights, and what does not fit is
named.
"""

import json
import pickle

import pytest
import torch
from torch import nn

from gwp.errors import GwpError
from gwp.model.config import ModelConfig
from gwp.model.weights import load_model, open_checkpoint, read_config, save_weights, weight_files
from gwp.model.weights.checkpoint import key_set
from gwp.model.weights.names import published_name
from tests.support import forms
from tests.support.tiny import tiny_config, tiny_model, tiny_tokens

LEVELS = {"A": torch.tensor([0.5, 0.04]), "F": torch.tensor([0.3, 0.9])}


@pytest.fixture(scope="module")
def mixture():
    return tiny_model("gwp05")


@pytest.fixture(scope="module")
def dense():
    return tiny_model("gwp0", num_embodiments=1)


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
        (elsewhere, "outside its folder"),
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
