"""DeepSpeed behind one small surface: build, step, save, load, export. The rest of the project
does not know it.

Facts about DeepSpeed 0.19 on CPU and gloo that shape this file: weights must be in the module
before the engine exists (the fp32 master copies are made then); optimiser shards of another
world size load only through the universal format.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.transformer import WorldActionTransformer
from pipelines import compat
from pipelines.compat import Master
from pipelines.jobs.train_job import TrainJob
from pipelines.training.engine.optimizer import (
    add_lora,
    choose_trained,
    make_optimizer,
    parameter_groups,
)

_TAG = "state"
_SAID = ("weight_decay", "betas")
"""Of a group of parameters, what the job says; the rate is set at each step."""
_CPU_BUCKET, _GPU_BUCKET = 250_000, 100_000_000
"""Numbers that are summed over the ranks in one call."""


def deepspeed_config(job: TrainJob, world: int) -> dict[str, Any]:
    """The DeepSpeed JSON of a job on `world` ranks: a pure function of its typed fields, with
    `engine.overrides` laid over it.
    """
    engine = job.engine
    passes = job.passes(world)
    config: dict[str, Any] = {
        # DeepSpeed's `train_batch_size` is the product of these and of the ranks; of a batch
        # that they do not divide it is more than there is. Nothing but its timers reads it.
        "train_micro_batch_size_per_gpu": -(-job.share(world) // passes),
        "gradient_accumulation_steps": passes,
        # Without ZeRO the engine clips, with the norm that it has anyway.
        "gradient_clipping": job.optimizer.clip if engine.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": engine.zero_stage},
        # Never: the journal and MLflow tell how far it is.
        "steps_per_print": 1_000_000_000,
    }
    if not job.cluster.gpu:
        # Each gradient is copied through buckets: those of DeepSpeed are larger than a model that a
        # CPU trains, and every copy would go out to memory. These fit a core's cache.
        config["zero_optimization"] |= {
            "contiguous_gradients": False,
            "reduce_bucket_size": _CPU_BUCKET,
        }
    if engine.precision == "bf16":
        # DeepSpeed's optimiser for ZeRO-1 that sums in fp32 would otherwise keep what earlier
        # micro-batches left in bf16, and add it once more with each that follows.
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
        # Another optimiser of DeepSpeed's may come with it, so it does not depend on how many
        # workers there are just now.
        if passes > 1 or (job.cluster.elastic and engine.micro_batch is not None):
            # A sum of many in bf16 would lose what each of them adds.
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        if engine.zero_stage == 0:
            raise GwpError(
                "engine.zero_stage 0 with bf16 uses another optimiser path in DeepSpeed; use "
                "zero_stage 1"
            )
    return _merged(config, engine.overrides)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if nested else value
    return result


class Engine:
    """A model under DeepSpeed on this rank."""

    def __init__(
        self, model: WorldActionTransformer, job: TrainJob, load_universal: bool = False
    ) -> None:
        compat.import_deepspeed(job.cluster.gpu)
        import deepspeed

        if not job.cluster.gpu:
            compat.without_shared_memory_collective()
        deepspeed.init_distributed("nccl" if job.cluster.gpu else "gloo", auto_mpi_discovery=False)
        model.gradient_checkpointing = job.engine.gradient_checkpointing
        if job.engine.compile:
            # In place, so that names and hooks stay.
            for block in model.blocks:
                block.compile()
        if job.lora:
            add_lora(model, job.lora, job.run.seed)
        else:
            choose_trained(model, job.optimizer)
        groups = parameter_groups(model, job.optimizer)
        optimizer = make_optimizer(groups, job.optimizer)
        config = deepspeed_config(job, torch.distributed.get_world_size())
        # Read when the engine is made, so `load` could not say it.
        if load_universal:
            config["checkpoint"] = {"load_universal": True}
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        compat.limit_collectives(job.cluster.patience_s)
        self._zero_stage = job.engine.zero_stage
        self._clip = job.optimizer.clip
        self._bucket = _CPU_BUCKET if not job.cluster.gpu else _GPU_BUCKET
        self._last = True
        if self._zero_stage == 0:
            # Without ZeRO gradients are summed and clipped here: DeepSpeed would copy them into one
            # tensor and back, also on a single rank, and take their norm once more.
            self._engine.enable_backward_allreduce = False

    @property
    def module(self) -> WorldActionTransformer:
        """The model to call; forward hooks of the engine are inside."""
        return self._engine

    @property
    def rank(self) -> int:
        """Of this process among all."""
        return int(self._engine.global_rank)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._engine.device)

    def begin(self, last: bool) -> None:
        """Say before the forward of a micro-batch whether it is the last of its global batch."""
        # Not counted by DeepSpeed: of small buckets there are fewer micro-batches.
        self._engine.set_gradient_accumulation_boundary(last)
        self._last = last

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch, whose loss is its part in that of the global
        batch, and sum them over the ranks.
        """
        # DeepSpeed takes means, over ranks here and over micro-batches if it is let.
        self._engine.backward(loss * self._engine.dp_world_size, scale_wrt_gas=False)
        if self._zero_stage == 0 and self._last and self._engine.dp_world_size > 1:
            self._engine.allreduce_gradients(bucket_size=self._bucket)

    def step(self, lr: float) -> float:
        """Clip, and one optimiser step at this learning rate.

        Returns the norm of the whole gradient before clipping, the same on every rank. If it is
        no finite number, no step was taken and the gradients are gone.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self._zero_stage == 0:
            return self._plain_step()
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        # DeepSpeed writes -1 or infinity for a norm that is no finite number.
        return norm if 0 <= norm < math.inf else math.nan

    def _plain_step(self) -> float:
        # Without ZeRO, DeepSpeed looks at no norm. All ranks have the whole gradient.
        parameters = [p for p in self._engine.module.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                # Of one rank alone, which sums nothing. Zeros, as elsewhere: what a step does not
                # use decays, and moves by what the optimiser remembers.
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return float(norm)
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
        self._engine.step()
        return float(norm)

    def finite(self) -> bool:
        """Whether all weights that lie on this rank are finite numbers; under ZeRO-3 that is
        its share of them.
        """
        shares = map(compat.own_share, self.parameters().values())
        return all(bool(share.isfinite().all()) for share in shares)

    def masters(self) -> list[Master]:
        """The fp32 masters of what trains that lie on this rank; all ranks together have each
        number once.
        """
        everything = self.parameters()
        parameters = {name: p for name, p in everything.items() if p.requires_grad}
        if self._zero_stage == 3:
            return compat.masters_of_partitions(parameters, self.rank)
        if self._zero_stage:
            return compat.masters_of_flat_groups(parameters)
        # Every rank has all of them; each speaks for some.
        names = sorted(parameters)[self.rank :: self._engine.dp_world_size]
        return [Master(name, 0, parameters[name].detach().view(-1)) for name in names]

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Name in the model -> parameter; under ZeRO-3 empty between passes."""
        return dict(self._engine.module.named_parameters())

    def shape(self, name: str) -> list[int]:
        """Of a whole parameter."""
        parameter = self._engine.module.get_parameter(name)
        # ZeRO-3 keeps it beside the empty parameter.
        return list(getattr(parameter, "ds_shape", parameter.shape))

    def save(self, folder: Path) -> None:
        """Write this rank's share of the state below `folder`; every rank must call it."""
        # The conversion to the universal format looks for it.
        info = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self._engine.save_checkpoint(str(folder), tag=_TAG, client_state=info)

    def load(self, folder: Path) -> None:
        """Read the state written by `save` (all ranks' files in `folder`), converted before
        when the world size differs.
        """
        tag = "universal" if (folder / "universal").is_dir() else _TAG
        made = self._engine.optimizer
        # ZeRO wraps it.
        optimizer = getattr(made, "optimizer", made)
        said = [{name: group[name] for name in _SAID} for group in optimizer.param_groups]
        path, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise GwpError(f"DeepSpeed found no state in {folder}; choose another checkpoint")
        # The job says them, not the checkpoint; of stage 3 all groups would have those of the first.
        for group, own in zip(optimizer.param_groups, said, strict=True):
            group |= own
        # From the universal form it comes on the host, where fused kernels of a GPU may not have it,
        # and under stage 3 as one tensor for all groups, each of which would count it on.
        for parameter, state in optimizer.state.items():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].to(parameter.device, copy=True)


def convert_to_universal(folder: Path) -> None:
    """Make the state in `folder` loadable by any world size."""
    target = folder / "universal"
    shutil.rmtree(target, ignore_errors=True)
    compat.to_universal(folder / _TAG, target)
    # Stage 3 asks for it, and CAME counts in its groups.
    file = target / "zero" / "optimizer_state.pt"
    saved = torch.load(file, map_location="cpu", weights_only=False)
    for state in saved.get("optimizer_state_dict", {}).get("state", {}).values():
        state.setdefault("step", 0)
    torch.save(saved, file)


def full_state(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of a saved state, gathered without running DeepSpeed."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state: dict[str, Tensor] = {}
    # But for stage 3 the whole module is in one file, as it computes.
    file = folder / _TAG / "mp_rank_00_model_states.pt"
    if file.is_file():
        # Pickled, with DeepSpeed's own classes in it; `fetch` has checked its hash.
        state |= torch.load(file, map_location="cpu", weights_only=False, mmap=True)["module"]
    # With bf16 the names begin with `bf16_`. Stage 0 has none, and stage 1 none of what is frozen.
    if list((folder / _TAG).glob("*zero_pp_rank_*_optim_states.pt")):
        try:
            state |= get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=_TAG)
        except ValueError:
            # Of the optimiser that accumulates in bf16 under ZeRO-1, which it does not know.
            state |= _universal_state(folder)
    return {name: tensor.float() for name, tensor in state.items()}


def _universal_state(folder: Path) -> dict[str, Tensor]:
    """Masters of a saved state, by way of the universal form."""
    parts = folder / "universal" / "zero"
    if not parts.is_dir():
        convert_to_universal(folder)
    state = {}
    for file in parts.glob("*/fp32.pt"):
        state[file.parent.name] = torch.load(file, map_location="cpu", weights_only=True)["param"]
    return state
