"""Compare a checkpoint with reference tensors, so that a user can trust a port.

A parity folder holds `inputs.safetensors` and one checkpoint folder per model with an
`outputs.safetensors` beside its weights; it may also be one such checkpoint folder. Shapes,
heads, widths, future latents and embodiments are read from the files.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.denoise import act, observe
from gwp.model.flow import solver_sigmas
from gwp.model.layers import ConditionEmbedder, action_rotary, visual_rotary
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.model.weights import load_model

# Reference mask: ours has none, the file carries it to be read.
_NOT_COMPUTED = frozenset({"mask"})


def check_folder(folder: str | Path) -> dict[str, dict[str, float]]:
    """Largest absolute error of every output of every model below `folder`: model name ->
    output name -> error.
    """
    folder = Path(folder)
    alone = (folder / "outputs.safetensors").is_file()
    models = [folder] if alone else sorted(p.parent for p in folder.glob("*/outputs.safetensors"))
    if not models:
        raise GwpError(
            f"{folder}: no outputs.safetensors here or one level below; see `gwp weights "
            "parity --help` for the form"
        )
    report = {}
    for model_folder in models:
        # One file of inputs may serve several models, and then lies above them.
        candidates = [f / "inputs.safetensors" for f in (model_folder, model_folder.parent)]
        inputs = next((p for p in candidates if p.is_file()), None)
        if inputs is None:
            raise GwpError(f"{model_folder}: no inputs.safetensors beside it or one level up")
        expected = load_file(model_folder / "outputs.safetensors")
        report[model_folder.name] = _check(load_model(model_folder), load_file(inputs), expected)
    return report


def _check(
    model: WorldActionTransformer, inputs: dict[str, Tensor], expected: dict[str, Tensor]
) -> dict[str, float]:
    with torch.no_grad():
        ours = _outputs(model, inputs)
    unknown = sorted(set(expected) - set(ours) - _NOT_COMPUTED)
    if unknown:
        raise GwpError(
            f"outputs that this check does not know: {', '.join(unknown)}; known: "
            f"{', '.join(sorted(ours))}"
        )
    errors = {}
    for name, reference in expected.items():
        if name in _NOT_COMPUTED:
            continue
        if ours[name].shape != reference.shape:
            raise GwpError(
                f"{name}: reference shape {tuple(reference.shape)}, ours {tuple(ours[name].shape)}"
            )
        errors[name] = float((ours[name].double() - reference.double()).abs().max())
    if "sched.sigmas" in inputs:
        sigmas = inputs["sched.sigmas"]
        errors["sched.sigmas"] = float(
            (solver_sigmas(len(sigmas) - 1).double() - sigmas.double()).abs().max()
        )
    return errors


def _outputs(model: WorldActionTransformer, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything a reference file may hold, by its name there."""
    config = model.config
    # The reference GWP-0 ignores embodiment ids, and every reference sample was drawn with row 0.
    row0 = torch.zeros_like(x["embodiment_id"])
    embodiment = row0 if config.family == "gwp0" else x["embodiment_id"]
    # `timestep` has all tokens in canonical order, 0..1000; levels here are 0..1.
    tokens = Tokens(x["state"], x["ref_latents"], x["action"], x["future_latents"])
    counts = _token_counts(model, tokens)
    levels = (x["timestep"].double() / 1000).float().split(counts, dim=1)
    noise = dict(zip(("S", "R", "A", "F"), levels, strict=True))

    # Of the first block, for an error there shows before later blocks cover it.
    hidden: list[dict[str, Tensor]] = []
    hook = model.blocks[0].register_forward_hook(lambda _m, _a, out: hidden.append(out[0]))
    joint = model(tokens, noise, x["text"], embodiment, heads=("R", "A", "F"))
    hook.remove()
    assert joint.reference is not None
    assert joint.future is not None
    assert joint.action is not None
    # Without the future, which actions do not see: as acting runs it.
    only = model(
        Tokens(x["state"], x["ref_latents"], x["action"]), {"A": noise["A"]}, x["text"], embodiment
    )
    # The sampler of the reference begins with `action` as noise, in row 0.
    context = observe(model, x["state"], x["ref_latents"], x["text"], row0)
    steps = len(x["sched.sigmas"]) - 1 if "sched.sigmas" in x else 10
    out = {
        "joint.video_pred": torch.cat([joint.reference, joint.future], dim=2),
        "joint.action_pred": joint.action,
        "action_only.action_pred": only.action,
        f"sample{steps}.action": act(model, context, x["action"], steps),
    }
    if "shared" in hidden[0]:
        out["joint.block0.hidden"] = hidden[0]["shared"]
    else:
        out |= {f"joint.block0.{name}_stream": stream for name, stream in hidden[0].items()}
    return out | _tables(model, x)


def _token_counts(model: WorldActionTransformer, tokens: Tokens) -> list[int]:
    _, ph, pw = model.config.patch_size
    counts = []
    for group, value in tokens.present().items():
        if group in ("S", "A"):
            counts.append(value.shape[1])
        else:
            T, h, w = value.shape[2:]
            counts.append(T * (h // ph) * (w // pw))
    return counts


def _tables(model: WorldActionTransformer, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rotary tables over the whole head width, and the conditioning of each expert at its own
    noise level.
    """
    config = model.config
    _, ph, pw = config.patch_size
    frames = 1 + x["future_latents"].shape[2]
    h, w = x["ref_latents"].shape[3:]
    visual = visual_rotary(config.attention_head_dim, range(frames), h // ph, w // pw)
    action = action_rotary(config.attention_head_dim, range(1 + x["action"].shape[1]))
    out = {}
    for name, tables in (("visual", visual), ("action", action)):
        for kind, table in zip(("cos", "sin"), tables, strict=True):
            # Ours have one number per pair; theirs has it twice, as [1, L, 1, h].
            out[f"rope.{name}.{kind}"] = table.repeat_interleave(2, dim=-1)[None, :, None]
    # One expert for all is called as the visual one.
    for expert, label, level in (
        ("shared", "cond", "t_visual"),
        ("visual", "cond", "t_visual"),
        ("action", "acond", "t_action"),
    ):
        if expert in model.conditions:
            embedder = model.conditions[expert]
            assert isinstance(embedder, ConditionEmbedder)
            temb, mod = embedder.time(x[level][:, None])
            out |= {f"{label}.temb": temb[:, 0], f"{label}.timestep_proj": mod[:, 0].flatten(1)}
            out[f"{label}.text"] = embedder.text(x["text"])
    return out
