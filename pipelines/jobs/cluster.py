"""Where the processes of a job run, how many there are, and what they must find."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

# The mini-cluster puts it on its nodes.
POOL = "gwp/pool"
"""Label of a node that says which work it is for."""


def named(pool: str | None) -> str:
    """A pool in words."""
    return f"pool '{pool}'" if pool else "any pool"


def _workers(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    bounds = value if isinstance(value, tuple) else (value, value)
    if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(
            f"is {shown}; give a number of workers from 1 on, or [least, most] with "
            "1 <= least <= most"
        )
    return value


class ClusterConfig(BaseModel):
    """Where the job's processes run."""

    model_config = _CONFIG

    workers: Annotated[int | tuple[int, ...], AfterValidator(_workers)] = 2
    """Training processes; `[least, most]`: as many as the machines that are there have room for,
    and more or fewer when some come or go. Of an autoscaler the most are asked for.
    """
    resize_every_s: float = Field(default=60.0, gt=0)
    """Seconds between two looks whether there is room for more workers, with `[least, most]`."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """Logical CPUs of a training process."""
    gpu: bool = False
    """One GPU per training process, NCCL instead of gloo."""
    train_pool: str | None = None
    """Value of the node label `gwp/pool` that training needs; None: any node."""
    data_pool: str | None = None
    """Value of the node label `gwp/pool` that decoding needs; None: any node."""
    max_failures: int = Field(default=3, ge=-1)
    """Restarts after worker failures; -1: without end."""
    hang_s: float = Field(default=1800.0, gt=0)
    """Seconds that a worker may be in one phase (a step, waiting for data, fetching or saving a
    checkpoint) before the workers start again; told after a tenth of it.
    """

    @property
    def patience_s(self) -> float:
        """Seconds that others wait for a worker that stands still. A little longer than
        `hang_s`, so that the driver tells which one it is before they give up.
        """
        return self.hang_s + 30.0

    decode_tasks: int = Field(default=2, gt=0)
    """Decoding tasks at a time."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables without which the job cannot work (keys of storage, of
    tracking), looked for on the nodes before anything starts. Names only: values stay there.
    """

    @field_validator("secrets")
    @classmethod
    def _names_only(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for number, name in enumerate(names):
            # It may be the secret itself, so it is not shown.
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"entry {number} is no name of a variable; never give its value")
        return names

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while they run."""
        return isinstance(self.workers, tuple)

    @property
    def min_workers(self) -> int:
        """Training processes without which nothing runs."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def max_workers(self) -> int:
        """Training processes at most."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers
