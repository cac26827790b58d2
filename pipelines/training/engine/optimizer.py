"""Which weights train, in which groups, and by which rule. Called before DeepSpeed takes them over.

AdamW with fp32 masters is the default of this field. CAME is what the released trainers name. They
run it in 8 bits, but only matrices are factored and quantised, and under ZeRO it sees none: flat
shards take the plain rule, `v = 0.999 v + 0.001 g^2`, an update `g / sqrt(v)` whose root mean square
over the shard is 1 at most, and a first moment of that. `pytorch-optimizer` has the same rule.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gwp.errors import GwpError
from gwp.model.adapters import LoraConfig, add_adapters
from gwp.model.config import ModelConfig
from gwp.model.transformer import WorldActionTransformer
from pipelines.jobs.engine import OptimizerConfig
from pipelines.jobs.trained import parameters_named, trained_names

_THIRD_DECAY = 0.9999
"""Of CAME's confidence, which only matrices have; its default, and that of the released trainers."""


def choose_trained(model: WorldActionTransformer, config: OptimizerConfig) -> None:
    """Let those parameters train that `only` and `freeze` name; GwpError where one names none."""
    names = trained_names(model.config, config.only, config.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def add_lora(model: WorldActionTransformer, config: LoraConfig, seed: int) -> None:
    """Put adapters into a model and let only them train, and what is named beside them."""
    on = parameters_named(model.config, config.on, "lora.on")
    add_adapters(model, config, on, whole_of(model.config, config), seed)


def whole_of(model: ModelConfig, config: LoraConfig) -> frozenset[str]:
    """Names (ours) of what trains beside adapters."""
    return parameters_named(model, config.whole, "lora.whole")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """What trains, in one group per rate of decay; none is empty."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            everything = config.decay == "all"
            (decayed if everything or _is_matrix(name, parameter) else kept).append(parameter)
    groups = ((decayed, config.weight_decay), (kept, 0.0))
    return [{"params": some, "weight_decay": decay} for some, decay in groups if some]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Norms have vectors, biases and modulation tables another name; per robot, biases are
    two-dimensional.
    """
    return name.endswith("weight") and parameter.ndim > 1


def make_optimizer(
    groups: Iterable[dict[str, object]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimiser of these groups. GwpError where its package is not installed."""
    if config.kind == "adamw":
        # One pass over memory; torch's own choice on a CPU takes ten, on shards as long as a model.
        return torch.optim.AdamW(groups, config.lr, config.betas, fused=True)
    came: torch.optim.Optimizer = _came()(groups, lr=config.lr, betas=(*config.betas, _THIRD_DECAY))
    return came


def _came() -> Any:
    try:
        from pytorch_optimizer import CAME
    except ImportError as error:
        raise GwpError(
            "optimizer.kind came needs the package pytorch-optimizer on every worker: pip install "
            "'gwp[cluster]'"
        ) from error
    return CAME
