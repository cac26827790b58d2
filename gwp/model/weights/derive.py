"""One checkpoint from another: dense to mixture, Wan to a world-action model, more action
channels or embodiments.

Sources: the GWP-0.5 report (action expert by leading slices of the visual one) and the released
weights' layout.
"""

import itertools
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.config import Family, ModelConfig
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights.checkpoint import Checkpoint, model_config, parameters
from gwp.model.weights.load import fresh
from gwp.model.weights.names import dense_name
from gwp.model.weights.save import write_folder

TimeProj = Literal["leading", "per-slot"]
_MODULATION_SLOTS = 6
_NEW_MODEL = {"action_channels": 16, "num_embodiments": 2}
_NEW_EXPERT = {"action_expert_dim": 1024, "action_ffn_dim": 4096}
_PER_EMBODIMENT = ("action_encoder.in_proj.", "state_encoder.in_proj.", "action_decoder.out_proj.")


def target_config(
    source: Checkpoint,
    to: Family | None = None,
    *,
    action_channels: int | None = None,
    embodiments: int | None = None,
    action_expert_dim: int | None = None,
    action_ffn_dim: int | None = None,
) -> ModelConfig:
    """Configuration of the model that can be made of `source`.

    to: default the source's own family, GWP-0.5 for Wan. A width left out is the source's;
    where the source has none, that of the released models (16 channels, 2 embodiments, action
    expert 1024 and 4096). GwpError for what cannot be made: fewer channels or embodiments,
    other experts of a mixture, a dense model of a mixture.
    """
    family: Family = to or ("gwp05" if source.family == "wan" else source.family)
    asked = {"action_channels": action_channels, "num_embodiments": embodiments}
    if family == "gwp05":
        asked |= {"action_expert_dim": action_expert_dim, "action_ffn_dim": action_ffn_dim}
    elif action_expert_dim or action_ffn_dim:
        raise GwpError(
            "GWP-0 has one expert; leave out --action-expert-dim and --action-ffn-dim, or say "
            "--to gwp05"
        )
    if source.family == "gwp05" and family == "gwp0":
        raise GwpError(
            f"{source.path}: a mixture has no one expert for all tokens; start a GWP-0 from a "
            "dense checkpoint"
        )
    defaults: dict[str, Any] = {
        **_NEW_MODEL,
        **(_NEW_EXPERT if family == "gwp05" else {}),
        **source.widths,
    }
    widths = defaults | {key: value for key, value in asked.items() if value is not None}
    for key in _NEW_MODEL:
        if widths[key] < source.widths.get(key, 1):
            raise GwpError(
                f"{source.path}: has {key} {source.widths[key]}, which cannot shrink to {widths[key]}"
            )
    config = model_config(family, widths, str(source.path))
    if family == "gwp05":
        _check_expert(source, config)
    return config


def _check_expert(source: Checkpoint, config: ModelConfig) -> None:
    expert, visual = config.experts["action"], config.experts["visual"]
    if source.family == "gwp05":
        own = (source.widths["action_expert_dim"], source.widths["action_ffn_dim"])
        if own != expert:
            raise GwpError(
                f"{source.path}: its action expert is {own[0]} wide (feed-forward {own[1]}) "
                "and keeps these widths"
            )
    elif expert[0] > visual[0] or expert[1] > visual[1]:
        raise GwpError(
            f"{source.path}: an action expert {expert[0]} wide (feed-forward {expert[1]}) "
            f"cannot be sliced from {visual[0]} "
            f"({visual[1]}); give a smaller --action-expert-dim and --action-ffn-dim"
        )


class Derived:
    """Tensors of a new model by their published names, each made from `source` when asked for.

    time_proj: the action expert's slice of the modulation projection. `leading` takes its first
        rows, as published, so that of a wide model's six slots (shift, scale, gate, twice) only
        the first ones are used; `per-slot` takes the leading rows of every slot.
    seed: for what the source does not have.
    """

    def __init__(
        self,
        source: Checkpoint,
        config: ModelConfig,
        time_proj: TimeProj = "leading",
        seed: int = 0,
    ) -> None:
        self.source = source
        self.config = config
        self.time_proj = time_proj
        self.seed = seed
        self.plan = parameters(config)
        self._to_mixture = config.family == "gwp05" and source.family != "gwp05"
        with torch.device("meta"):
            self._skeleton = WorldActionTransformer(config)

    def value(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        origin = dense_name(name) if self._to_mixture else name
        if origin not in self.source.tensors:
            return fresh(self._skeleton, name, self.seed)
        tensor = self.source.read(origin)
        shape = self.plan[name].shape
        if tensor.shape == shape:
            return tensor
        # Channels and embodiments can only have grown, experts only have shrunk:
        # `target_config` refuses the rest.
        if name.startswith(_PER_EMBODIMENT):
            return self._grown(name, tensor)
        if self.time_proj == "per-slot" and ".time_proj." in name:
            slots = tensor.unflatten(0, (_MODULATION_SLOTS, -1))
            slot_shape = (_MODULATION_SLOTS, shape[0] // _MODULATION_SLOTS, *shape[1:])
            return _leading(slots, slot_shape).flatten(0, 1)
        return _leading(tensor, shape)

    def _grown(self, name: str, old: Tensor) -> Tensor:
        """A projection with more channels or embodiments: what exists is kept, new embodiments
        start as new models do.

        New channels of an embodiment that exists are read with weight zero, so that whatever
        they carry (noise, in padded channels) the old channels come out as before; they are
        written by freshly initialised weights.
        """
        new = fresh(self._skeleton, name, self.seed).to(old.dtype)
        embodiments = old.shape[0]
        if name.endswith("encoder.in_proj.weight"):
            new[:embodiments] = 0
        new[tuple(slice(n) for n in old.shape)] = old
        return new


def _leading(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor[tuple(slice(n) for n in shape)]


def convert(
    source: Checkpoint,
    out: Path,
    config: ModelConfig,
    *,
    time_proj: TimeProj = "leading",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
    progress: Callable[[float], None] = lambda _done: None,
) -> None:
    """Write the model `config` made of `source` as a published folder; holds one tensor at a
    time. `progress` gets the number written.

    GwpError, before anything is written, when the source is not whole, `out` holds files
    already, or the disk is too full.
    """
    if problems := source.problems(allow_missing, allow_unexpected):
        raise GwpError(
            f"{source.path} is no whole {source.form.title} checkpoint:\n  " + "\n  ".join(problems)
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GwpError(f"{out}: not an empty folder; choose another place")
    derived = Derived(source, config, time_proj, seed)
    plan = {name: tensor.to(dtype) for name, tensor in derived.plan.items()}
    out.mkdir(parents=True, exist_ok=True)
    # Said now, not after an hour of writing.
    needed = sum(t.nbytes for t in plan.values())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise GwpError(
            f"{out}: the weights take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "make room or choose another disk"
        )
    written = itertools.count(1)

    def value(name: str) -> Tensor:
        progress(next(written))
        return derived.value(name)

    write_folder(out, config, plan, value)


def require_same(source: Checkpoint, config: ModelConfig, uri: str) -> None:
    """GwpError unless a model of this configuration can start from the checkpoint: see
    `differences`. Says what differs and how to get there.

    uri: where the user said that `source` is
    """
    # Plain Wan has widths, but no whole configuration.
    fields = (
        {**source.widths, "family": source.family}
        if source.family == "wan"
        else source.config.model_dump()
    )
    different = [
        f"{key} is {value}, the job's `model` says {getattr(config, key)}"
        for key, value in differences(fields, config).items()
    ]
    if different:
        line = command(source, config, uri)
        remedy = (
            f"run: {line}\n  and start from DIR"
            if line
            else "copy its widths into the job's `model`"
        )
        raise GwpError(f"{uri}: {'; '.join(different)}; {remedy}")


def differences(fields: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Fields of a model, by name with their values, for which one of `config` cannot start from its
    weights. All visibilities have the same, and latent frames need a part of those of tokens.
    """
    given = {"actions": "tokens", **fields}
    ignored = {"visibility", "actions"} if config.actions == "latent-frame" else {"visibility"}
    return {
        name: given.get(name, "none")
        for name in ModelConfig.model_fields
        if name not in ignored and given.get(name) != getattr(config, name)
    }


def begin_as(model: WorldActionTransformer, config: ModelConfig) -> None:
    """Make a model that has the weights of a checkpoint one of `config`, for which `require_same`
    found no differences: what its tokens see, and what actions are to it, `config` says.
    """
    model.config = config
    if config.actions == "latent-frame":
        # Those of a model of tokens, which nothing would use.
        model.action_encoder = model.action_decoder = None


def command(source: Checkpoint, config: ModelConfig, uri: str) -> str | None:
    """The `gwp weights convert` line that makes a folder for `config` of `source`, which the
    user said is at `uri`; None when no conversion gets there.
    """
    asked = {
        "action_channels": config.action_channels,
        "embodiments": config.num_embodiments,
        "action_expert_dim": config.action_expert_dim,
        "action_ffn_dim": config.action_ffn_dim,
    }
    try:
        target = target_config(source, config.family, **asked)
        if differences(target.model_dump(), config):
            return None
    except GwpError:
        return None
    flags = " ".join(
        f"--{key.replace('_', '-')} {value}" for key, value in asked.items() if value is not None
    )
    return f"gwp weights convert {shlex.quote(uri)} --out DIR --to {config.family} {flags}"
