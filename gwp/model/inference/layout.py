"""What a pass of inference works on: noise levels, text keys, the cache of keys and values, and
where its tokens stand.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gwp.model.config import Group


@dataclass(frozen=True)
class Levels:
    """Modulation at known noise levels; the last one is clean. A scale is stored as 1 + scale.

    blocks: expert -> fp32 `[layers, n, 6, D]`
    out:    expert -> fp32 `[n, 2, D]`
    """

    blocks: dict[str, Tensor]
    out: dict[str, Tensor]

    @property
    def clean(self) -> int:
        return next(iter(self.out.values())).shape[0] - 1


class Noise:
    """The noise level of a group's tokens: one level for all, or rows of `levels` by int64 `[B,
    1]` or `[B, L]`.
    """

    def __init__(self, levels: Levels, index: int | Tensor) -> None:
        self.levels, self.index = levels, index
        self.single = isinstance(index, int)
        # Views of one level are always the same; rows by tensor are looked up when they are
        # needed.
        self._blocks = (
            {
                e: [t.unbind(0) for t in table[:, index].unbind(0)]
                for e, table in levels.blocks.items()
            }
            if self.single
            else None
        )

    def block(self, layer: int, expert: str) -> tuple[Tensor, ...]:
        """Six of `[D]`, or of `[B, 1 | L, D]`."""
        return (
            self._blocks[expert][layer]
            if self._blocks
            else self.levels.blocks[expert][layer][self.index].unbind(2)
        )

    def out(self, expert: str) -> tuple[Tensor, ...]:
        """Two of `[D]`, or of `[B, 1 | L, D]`."""
        return self.levels.out[expert][self.index].unbind(0 if self.single else 2)


@dataclass(frozen=True)
class TextKeys:
    """Cross-attention keys and values of instructions: expert -> `[layers, B, H, L_t, h]`."""

    keys: dict[str, Tensor]
    values: dict[str, Tensor]


@dataclass(frozen=True)
class KVCache:
    """Keys and values of self-attention `[layers, B, H, N, h]`, and where in N each group's
    tokens stand.
    """

    keys: Tensor
    values: Tensor
    places: dict[Group, tuple[int, int]]


@dataclass(frozen=True)
class Piece:
    """Tokens of one group `[start, stop)` in their expert's stream; in the cache they stand
    from `place`, and they see it up to `end`.
    """

    expert: str
    group: Group
    start: int
    stop: int
    place: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Which tokens a pass has. pieces: by expert, in order of its stream; order: as they stand
    in the cache, without gaps.

    rotation: expert -> cosine and sine fp32 `[L_e, 1, 1, h / 2, 2]`
    """

    pieces: dict[str, list[Piece]]
    order: list[Piece]
    rotation: dict[str, Tensor]

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Runs of queries that see the cache up to the same end, from the first of the pass,
        and in order.
        """
        first = self.order[0].place
        ends = list(dict.fromkeys(p.end for p in self.order))
        return [(a - first, b - first) for a, b in zip([first, *ends], ends, strict=False)]


# The layers of one layout, ready to run: streams `[B, L_e, D]` by expert, the noise of each
# group, and whether more is wanted of the last layer than keys and values. Returns the streams
# after it; those given may be overwritten.
Layers = Callable[[dict[str, Tensor], dict[Group, Noise], bool], dict[str, Tensor]]


def join(parts: list[Tensor]) -> Tensor:
    """Along the tokens; one part as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
