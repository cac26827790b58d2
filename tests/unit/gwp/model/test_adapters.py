"""Adapters compute with their base what the merged weights do, and are refused beside others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gwp.errors import GwpError
from gwp.model.adapters import (
    LoraConfig,
    add_adapters,
    apply_adapter,
    base_digest,
    merged,
    save_adapter,
)
from gwp.model.config import ModelConfig
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights import build_model, load_model, save_weights
from pipelines.cli import main
from pipelines.jobs.trained import adapter_count, parameters_named
from tests.support.tiny import ARMS, tiny_config, tiny_tokens

pytest.importorskip("peft", reason="peft is not installed")
LORA = LoraConfig(rank=3, alpha=6)


def named(config: ModelConfig) -> tuple[frozenset[str], frozenset[str]]:
    return parameters_named(config, LORA.on, "on"), parameters_named(config, LORA.whole, "whole")


@pytest.fixture(params=["gwp0", "gwp05"])
def adapted(request: pytest.FixtureRequest) -> WorldActionTransformer:
    """A model with adapters that were moved away from nothing."""
    model = build_model(tiny_config(request.param), 0)
    add_adapters(model, LORA, *named(model.config), seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def answer(model: WorldActionTransformer) -> torch.Tensor:
    tokens, text, ids = tiny_tokens(config=model.config)
    level = torch.full((2,), 0.5)
    with torch.no_grad():
        out = model.eval()(tokens, {"A": level, "F": level}, text, ids)
    assert out.action is not None
    assert out.future is not None
    return torch.cat([out.action.flatten(), out.future.flatten()])


def test_new_adapters_change_nothing_and_alone_train(adapted: WorldActionTransformer) -> None:
    config = adapted.config
    plain, fresh = build_model(config, 0), build_model(config, 0)
    add_adapters(fresh, LORA, *named(config), seed=1)
    assert torch.equal(answer(fresh), answer(plain))
    again = build_model(config, 0)
    add_adapters(again, LORA, *named(config), seed=1)
    pairs = zip(fresh.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    trained = {name for name, p in fresh.named_parameters() if p.requires_grad}
    whole = named(config)[1]
    assert {name for name in trained if ".lora_" not in name} == whole
    count = sum(p.numel() for p in fresh.parameters() if p.requires_grad)
    assert count == adapter_count(config, LORA)
    # Two matrices beside each attention and feed-forward layer of each expert.
    assert len(trained - whole) == 2 * 10 * config.num_layers * len(config.experts)


def test_merged_weights_act_the_same(adapted: WorldActionTransformer) -> None:
    weights = merged(LORA, adapted.state_dict())
    plain = build_model(adapted.config, 9)
    plain.load_state_dict(weights)
    torch.testing.assert_close(answer(plain), answer(adapted), atol=2e-6, rtol=0)
    before = build_model(adapted.config, 0)
    assert not torch.allclose(answer(before), answer(adapted), atol=1e-3)


def test_an_adapter_is_for_its_base_alone(adapted: WorldActionTransformer, tmp_path) -> None:
    config = adapted.config
    base, other = build_model(config, 0), build_model(config, 0)
    with torch.no_grad():
        other.proj_out.bias[0] += 1e-3
    state, whole = adapted.state_dict(), named(config)[1]
    save_adapter(tmp_path / "a", config, LORA, state, whole, base_digest(base))
    applied = build_model(config, 9)
    applied.load_state_dict(apply_adapter(tmp_path / "a", base))
    torch.testing.assert_close(answer(applied), answer(adapted), atol=2e-6, rtol=0)
    with pytest.raises(GwpError, match="trained beside other weights"):
        apply_adapter(tmp_path / "a", other)
    # One that claims another base, and one of another model.
    with pytest.raises(GwpError, match="trained beside other weights"):
        apply_adapter(tmp_path / "a", build_model(tiny_config(config.family, num_layers=1), 0))
    note = json.loads((tmp_path / "a" / "adapter.json").read_text())
    small = build_model(tiny_config(config.family, num_layers=1), 0)
    note["base"] = base_digest(small)
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(note))
    with pytest.raises(GwpError, match=r"blocks\.1\..* is no part of these weights"):
        apply_adapter(tmp_path / "a", small)
    save_adapter(tmp_path / "b", config, LORA, state, whole, base_digest(base))
    file = tmp_path / "b" / "adapter.safetensors"
    tensors = load_file(file)
    low = next(name for name in tensors if ".lora_A." in name)
    for changed, words in (
        ({n: t for n, t in tensors.items() if n != low.replace("_A.", "_B.")}, "not whole"),
        (tensors | {low: torch.zeros(3, 7)}, "not whole"),
        (tensors | {n: torch.zeros(1, 1) for n in (low, low.replace("_A.", "_B."))}, "not whole"),
        (tensors | {"action_decoder.mid_proj.bias": torch.zeros(5)}, r"is \[5\], these"),
    ):
        save_file(changed, file)
        with pytest.raises(GwpError, match=words):
            apply_adapter(tmp_path / "b", base)
    for name in ("adapter.json", "adapter.safetensors"):
        (tmp_path / "a" / name).write_bytes(b"{}")
        with pytest.raises(GwpError, match="no adapter"):
            apply_adapter(tmp_path / "a", base)
    with pytest.raises(GwpError, match="no adapter"):
        apply_adapter(tmp_path / "nowhere", base)


def test_what_trains_whole_needs_no_adapter() -> None:
    model = build_model(tiny_config(), 0)
    config = LORA.model_copy(update={"whole": ("action_encoder", "blocks.*.action_expert")})
    on = parameters_named(model.config, config.on, "on")
    whole = parameters_named(model.config, config.whole, "whole")
    assert on & whole
    add_adapters(model, config, on, whole, seed=1)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert whole <= trained.keys()
    assert sum(trained.values()) == adapter_count(model.config, config)


def test_adapters_go_beside_linear_layers_alone() -> None:
    model = build_model(tiny_config(), 0)
    norms = parameters_named(model.config, ["blocks.*.norm2"], "on")
    with pytest.raises(GwpError, match="names no linear layer"):
        add_adapters(model, LORA, norms, ())


def test_the_command_merges_into_a_folder_that_init_takes(
    adapted: WorldActionTransformer, tmp_path, capsys
) -> None:
    config = adapted.config
    base, state = build_model(config, 0), adapted.state_dict()
    save_weights(tmp_path / "base" / "model", config, base.state_dict())
    save_adapter(tmp_path / "a", config, LORA, state, named(config)[1], base_digest(base))
    words = ["weights", "merge", str(tmp_path / "a"), str(tmp_path / "base"), "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    merged_model = load_model(tmp_path / "out")
    torch.testing.assert_close(answer(merged_model), answer(adapted), atol=2e-6, rtol=0)
    # A place that is taken, and what is no adapter: one line, which names what was typed.
    assert main([*words, str(tmp_path / "out")]) == 2
    assert main([words[0], words[1], str(tmp_path / "base"), *words[3:], str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "not empty" in said
    assert f"{tmp_path / 'base'}: no adapter" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("arm", ["joint", "latent-frame"])
def test_what_is_merged_is_what_the_run_trained_and_not_what_it_began_with(
    arm: str, tmp_path
) -> None:
    """The run began with an action-centred model of tokens, and said otherwise."""
    begun = build_model(tiny_config("gwp0"), 0)
    save_weights(tmp_path / "base" / "model", begun.config, begun.state_dict())
    begun.config = config = tiny_config("gwp0", **ARMS[arm])
    if arm == "latent-frame":
        begun.action_encoder = begun.action_decoder = None
    digest = base_digest(begun)
    lora = LORA.model_copy(update={"whole": ("patch_embedding",)})
    on = parameters_named(config, lora.on, "on")
    whole = parameters_named(config, lora.whole, "whole")
    add_adapters(begun, lora, on, whole, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (p for p in begun.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(tmp_path / "a", config, lora, begun.state_dict(), whole, digest)
    words = ["weights", "merge", str(tmp_path / "a"), str(tmp_path / "base"), "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    made = load_model(tmp_path / "out")
    assert made.config == config
    torch.testing.assert_close(answer(made), answer(begun), atol=2e-6, rtol=0)
