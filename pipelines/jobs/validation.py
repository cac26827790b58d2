"""What a run is judged by."""

from pydantic import BaseModel, ConfigDict, Field

from gwp.data.source import Source


class ValidationConfig(BaseModel):
    """Samples that a run is judged by at its checkpoints, and does not train on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

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
