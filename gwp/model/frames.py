"""State and actions as further latent frames, which the video's own embedding and head take (as in
Cosmos Policy): the other of the two ways that `ModelConfig.actions` names.

The values of a chunk stand one after the other and are repeated until they fill whole frames; the
last copy is cut off where the frames end. What comes out is the mean over all the places that a
value filled.

The noise is the value's: all its places have the same (in Cosmos Policy each place has its own).
Else the mean over n places would have a noise of sigma / sqrt(n), and a noise level would mean
something else with each canvas and chunk, and something else than in the models that this one is
compared with. So whoever draws noise, mixes, masks, or takes a step has vectors here as there.

Nothing here belongs to one embodiment: there are no weights.

Shape legend: B batch, L vectors, d channels of each, C latent channels, T frames that they fill, h w
latent rows and columns. A suffix says the shape: `x_BLd` is `[B, L, d]`.
Sources: Cosmos Policy (arXiv 2601.16163), latent frame injection.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gwp.errors import GwpError
from gwp.model.config import Group, ModelConfig


def with_frames(config: ModelConfig, present: dict[Group, Tensor]) -> dict[Group, Tensor]:
    """Groups as they are embedded: vectors `[B, L, d]` of state and actions as frames `[B, C, T, h,
    w]` where the model has them so; their size is that of the frames beside them.
    """
    if config.actions == "tokens":
        return present
    beside = next((present[group] for group in ("R", "F") if group in present), None)
    if beside is None:
        raise ValueError("latent frames of actions have the size of those beside them: give some")
    C, h, w = beside.shape[1], *beside.shape[3:]
    return {g: _filled(x, C, h, w) if g in ("S", "A") else x for g, x in present.items()}


def frames_of(config: ModelConfig, vectors: int, rows: int, columns: int) -> int:
    """Latent frames that this many vectors fill. GwpError when a frame is smaller than one."""
    places = config.in_channels * rows * columns
    d = config.action_channels
    if d > places:
        raise GwpError(
            f"a latent frame has {places} numbers, and model.action_channels is {d}: the state has to "
            "fit into one; choose a larger canvas, or model.actions: tokens"
        )
    return -(-vectors * d // places)


def read_out(frames_BCThw: Tensor, vectors: int, channels: int) -> Tensor:
    """fp32 `[B, L, d]`: of each value the mean over its places."""
    # In fp64 the mean of equal numbers is that number.
    flat = frames_BCThw.transpose(1, 2).flatten(1).double()
    sums = _summed(flat, vectors * channels)
    # The first values have one place more than the last ones, where the last copy is cut off.
    places = _summed(torch.ones_like(flat[:1]), vectors * channels)
    return (sums / places).float().unflatten(1, (vectors, channels))


def _filled(x_BLd: Tensor, C: int, h: int, w: int) -> Tensor:
    values = x_BLd.flatten(1)
    places = C * h * w
    T = -(-values.shape[1] // places)
    copies = -(-T * places // values.shape[1])
    flat = values.repeat(1, copies)[:, : T * places]
    return flat.unflatten(1, (T, C, h, w)).transpose(1, 2)


def _summed(flat: Tensor, values: int) -> Tensor:
    """`[B, T * C * h * w]` to `[B, values]`."""
    copies = -(-flat.shape[1] // values)
    padded = F.pad(flat, (0, copies * values - flat.shape[1]))
    return padded.unflatten(1, (copies, values)).sum(1)
