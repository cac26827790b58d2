"""GPUs of this machine, dealt out to the nodes that a mini-cluster starts on it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from gwp.errors import GwpError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def here() -> tuple[str, ...]:
    """Names of those that this process may use, as `CUDA_VISIBLE_DEVICES` has them."""
    # It takes seconds, and is needed by nobody else here.
    import torch

    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return tuple(named[:count] or map(str, range(count)))


def dealt(wanted: Mapping[str, int], there: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Pool -> names of the GPUs that its node has; each GPU is that of one pool. GwpError when there
    are too few.

    wanted: pool -> GPUs of its node; there: names of those of this machine
    """
    asked = sum(wanted.values())
    if asked > len(there):
        pools = " and ".join(f"pools.{pool}.gpus: {n}" for pool, n in wanted.items() if n)
        has = f"has {len(there)}" if there else "has none that PyTorch sees"
        raise GwpError(f"{pools}, and this machine {has}; lower them to what it has, or to 0")
    left = iter(there)
    return {pool: tuple(next(left) for _ in range(n)) for pool, n in wanted.items() if n}


@contextmanager
def seeing(names: Sequence[str]) -> Iterator[None]:
    """A Ray node that is started in the block has these, and counts from their names."""
    before = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = ",".join(names)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VISIBLE]
        else:
            os.environ[_VISIBLE] = before
