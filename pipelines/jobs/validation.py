"""What a run is judged by, and by whom."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gwp.data.source import Source

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ValidatorConfig(BaseModel):
    """A process beside the training workers that judges checkpoints while training goes on."""

    model_config = _CONFIG

    gpus: Literal[0, 1] = 0
    """GPUs of its own. Without one it computes on the CPU, whatever training does."""
    cpus: float = Field(default=1.0, gt=0)
    """Logical CPUs of its own."""
    pool: str | None = None
    """Value of the node label `gwp/pool` that it needs; None: any node."""
    limit_s: float = Field(default=1800.0, gt=0)
    """Seconds that it may take for a checkpoint, before it is started again; for so long the end of
    a run waits for what is said of its last one.
    """

    @property
    def each(self) -> dict[str, float]:
        """Resources, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": float(self.gpus)} if self.gpus else {})

    @property
    def text(self) -> str:
        """What it needs, in words."""
        return f"{self.cpus:g} CPU{' and a GPU' if self.gpus else ''}"


class ValidationConfig(BaseModel):
    """Samples that a run is judged by at its checkpoints, and does not train on."""

    model_config = _CONFIG

    sources: tuple[Source, ...] = Field(min_length=1)
    """Data sets, or parts of them (`split`, `only`), of the robots in `data.embodiments`. A sample
    that is also one of `data.sources` is refused.
    """
    samples: int = Field(default=64, gt=0)
    """So many of their samples, spread evenly over them. Every checkpoint asks for a pass over
    them without gradients; they stay encoded in memory, divided among the workers.
    """
    looked_at: int = Field(default=8, ge=0)
    """So many of them are also acted on and imagined at each checkpoint, with 10 solver steps: what
    becomes of them is told in units of a range and in dB, and some are shown. 0: none.
    """
    worker: ValidatorConfig | None = None
    """Who does it: None, the training workers themselves, who stop for it at each checkpoint; else a
    process of its own, beside the steps. The figures are the same.
    """
