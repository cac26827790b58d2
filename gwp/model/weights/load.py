"""Models from checkpoints, strictly, and models from a seed."""

import copy
import hashlib
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from gwp.errors import GwpError
from gwp.model.config import ModelConfig
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights.checkpoint import Checkpoint, model_config, open_checkpoint
from gwp.model.weights.names import published_name


def build_model(config: ModelConfig, seed: int) -> WorldActionTransformer:
    """A freshly initialised model; the same seed gives the same weights."""
    # The caller's own random numbers go on as if nothing had been drawn.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldActionTransformer(config)


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
    seed: int = 0,
) -> WorldActionTransformer:
    """A model in eval mode from a checkpoint folder or file of GWP-0 or GWP-0.5.

    Memory stays near the model plus one tensor (`.bin`: one shard): the model is built without
    memory, given it once in `dtype`, and filled tensor by tensor.
    allow_missing:    patterns of published names that may be absent; they are initialised from `seed`
    allow_unexpected: patterns of names that are left out

    GwpError lists every tensor that does not fit, and every width on which config.json and
    weights disagree.
    """
    # Everything that headers tell is checked before memory is taken.
    checkpoint = open_checkpoint(path)
    checkpoint.require_model()
    _refuse(checkpoint, checkpoint.problems(allow_missing, allow_unexpected))

    config = model_config(checkpoint.family, checkpoint.widths, str(path))
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    model = model.to(dtype).to_empty(device=device)

    # A module draws all its parameters at once: before the checkpoint's are put in.
    absent = [n for n in named_parameters(model) if n not in checkpoint.tensors]
    for module_path, module in _owners(model, absent).items():
        reset(module, module_path, seed)
    _fill(model, checkpoint)
    return model.eval()


def named_parameters(model: WorldActionTransformer) -> dict[str, Tensor]:
    """Published name -> parameter."""
    return {published_name(n, model.config.family): p for n, p in model.named_parameters()}


def fresh(skeleton: WorldActionTransformer, name: str, seed: int) -> Tensor:
    """The ordinary initial value, fp32 on the CPU, of one tensor of a model on the meta device."""
    ((path, module),) = _owners(skeleton, [name]).items()
    real = copy.deepcopy(module).to_empty(device="cpu")
    reset(real, path, seed)
    attribute = next(
        a
        for a, _ in real.named_parameters()
        if published_name(f"{path}.{a}", skeleton.config.family) == name
    )
    return real.get_parameter(attribute).detach()


def reset(module: nn.Module, path: str, seed: int) -> None:
    """Initialise one module from (seed, its place in the model), whatever else is initialised
    or not.
    """
    # Seven bytes stay positive as a signed number of eight, which a seed of torch is.
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        module.reset_parameters()  # type: ignore[operator]  # every module that owns parameters has it


def _owners(model: WorldActionTransformer, names: Collection[str]) -> dict[str, nn.Module]:
    """The modules that own these parameters (published names), by their path in the model."""
    wanted = set(names)
    paths = [
        n.rpartition(".")[0]
        for n, _ in model.named_parameters()
        if published_name(n, model.config.family) in wanted
    ]
    return {path: model.get_submodule(path) for path in paths}


def _refuse(checkpoint: Checkpoint, problems: list[str]) -> None:
    if problems:
        raise GwpError(
            f"{checkpoint.path} is no whole {checkpoint.form.title} checkpoint of these widths:\n  "
            + "\n  ".join(problems)
        )


def _fill(model: WorldActionTransformer, checkpoint: Checkpoint) -> None:
    parameters = named_parameters(model)
    with torch.no_grad():
        # In the order of the files: of pickled shards one is mapped at a time.
        for name in checkpoint.tensors:
            if name in parameters:
                parameters[name].copy_(checkpoint.read(name))
