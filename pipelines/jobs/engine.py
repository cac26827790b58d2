"""How a stage is optimised: what trains, by which rule, and DeepSpeed under it."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Docstrings of fields become the reference page, so each field has one.
_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OptimizerConfig(BaseModel):
    """The optimiser, its learning rate, and which weights it changes."""

    model_config = _CONFIG

    kind: Literal["adamw", "came"] = "adamw"
    """`adamw`: fused, in one pass over memory. `came`: as the released trainers run it; it needs the package
    `pytorch-optimizer`. Under ZeRO it sees flat shards, so second moments are neither factored nor
    kept in 8 bits, there as here.
    """
    only: tuple[str, ...] = ()
    """Modules or parameters that train, in published names (`gwp weights inspect`), `*` for any
    part: `blocks.*.action_expert`. Empty: all.
    """
    freeze: tuple[str, ...] = ()
    """Those that do not, of what `only` leaves."""
    decay: Literal["matrices", "all"] = "matrices"
    """What weight decay is for: `matrices` leaves out norms, biases and modulation tables; the
    released trainers decay all.
    """
    lr: float = Field(default=6e-5, gt=0)
    """Peak learning rate (released fine-tuning: 6e-5)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up, optimiser steps."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    final_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the last step of the cosine."""
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0: no clipping."""
    max_skipped: int = Field(default=3, ge=0)
    """Steps in a row that are left out because a loss or gradient is no finite number; one more
    ends the run.
    """

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of optimiser step `step` (from 0) of `total`."""
        # From step 0 on, which has a share of the rate already: at 0 it would learn nothing.
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        # Half a cosine from `lr` to `final_lr`, over the steps behind the warm-up.
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.final_lr + (self.lr - self.final_lr) * 0.5 * (
            1 + math.cos(math.pi * min(1.0, done))
        )


_TYPED = {
    "train_batch_size": "engine.global_batch",
    "train_micro_batch_size_per_gpu": "engine.micro_batch",
    "gradient_accumulation_steps": "engine.micro_batch",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "zero_optimization.stage": "engine.zero_stage",
}
"""Setting of DeepSpeed -> field of the job that it follows from."""


class DeepSpeedConfig(BaseModel):
    """DeepSpeed, rendered from these fields."""

    model_config = _CONFIG

    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is sharded over ranks: 1 optimiser states, 2 and gradients, 3 and parameters."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the transformer; norms, modulation and rotary tables are computed in
    fp32.
    """
    global_batch: int = Field(default=32, gt=0)
    """Samples per optimiser step over all workers; one for each of them at least. It stays when
    their number changes.
    """
    micro_batch: int | None = Field(default=None, gt=0)
    """Samples that a worker takes through the model at a time, at most, so what its memory has to
    hold; gradients are accumulated until the global batch is through. None, or more than its
    share: all of its share at once. Batches of buckets are cut into as many parts.
    """
    gradient_checkpointing: bool | Annotated[int, Field(gt=0)] | Literal["selective"] = False
    """Compute blocks again in the backward pass, for less memory. true: every block, a third more
    arithmetic; a number: so many of them; `selective`: every block, but products of matrices and
    attention are kept, and next to no arithmetic is done twice.
    """
    compile: bool = False
    """Compile each block of the transformer (`torch.compile`): some minutes at the first steps. Not
    with `zero_stage: 3` or `gradient_checkpointing: selective`.
    """
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    """Ceiling of the moving average of weights (fp32); 0: none."""
    overrides: dict[str, Any] = {}
    """Raw DeepSpeed settings laid over the rendered ones. What a field of the job says cannot be
    said here.
    """

    def recomputed(self, layers: int) -> float:
        """Share of so many blocks whose products are computed twice."""
        how = self.gradient_checkpointing
        if isinstance(how, int) and not isinstance(how, bool):
            return min(1.0, how / layers)
        return 1.0 if how is True else 0.0

    @model_validator(mode="after")
    def _compiles(self) -> "DeepSpeedConfig":
        # Kernels write where results of the first kind were kept, which torch refuses. Of the second
        # nothing is known.
        if self.compile and (self.gradient_checkpointing == "selective" or self.zero_stage == 3):
            raise ValueError(
                "compile goes with zero_stage 0, 1 and 2, and with gradient_checkpointing true, "
                "false or a number; set one of them otherwise"
            )
        return self

    @model_validator(mode="after")
    def _said_once(self) -> "DeepSpeedConfig":
        zero = self.overrides.get("zero_optimization")
        said = [key for key in _TYPED if key in self.overrides]
        if isinstance(zero, dict) and "stage" in zero:
            said.append("zero_optimization.stage")
        if said:
            raise ValueError(
                f"overrides: {said[0]} is what {_TYPED[said[0]]} says; set that field instead"
            )
        return self
