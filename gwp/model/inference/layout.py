"""What a pass of inference works on: noise levels, text keys, the cache of keys and values, and
where its tokens stand.

Shape legend: B observations, L tokens of an expert's stream, L_t rows of an instruction, n
noise levels, D expert width, H heads, h head width, N tokens with room in the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gwp.model.config import Group


@dataclass(frozen=True)
class Levels:
    """Modulation at known noise levels; the last one is clean. A scale is stored as 1 + scale.

    A solver has one, of `FusedTransformer.levels`: the levels of its steps never change.

    blocks: expert -> fp32 `[layers, n, 6, D]`: shift, scale and gate of attention, then of the
        feed-forward
    out:    expert -> fp32 `[n, 2, D]`: shift and scale of the head
    """

    blocks: dict[str, Tensor]
    out: dict[str, Tensor]

    @property
    def clean(self) -> int:
        """Index of the level of tokens that are given."""
        return next(iter(self.out.values())).shape[0] - 1


class Noise:
    """The noise level of a group's tokens: one level for all, or rows of `levels` by int64 `[B,
    1]` or `[B, L]`.

    The solver makes one per step, or one from the steps of a batch's rows. Layers and heads
    look their modulation up here; groups of one noise share one object, by which layers know
    that they may be treated as one.
    """

    def __init__(self, levels: Levels, index: int | Tensor) -> None:
        self.levels = levels
        self.index = index
        self.single = isinstance(index, int)
        # Views of one level are always the same; rows by tensor are looked up when they are
        # needed.
        self._blocks: dict[str, list[tuple[Tensor, ...]]] = {}
        if self.single:
            for expert, table in levels.blocks.items():
                layers_6D = table[:, index].unbind(0)
                self._blocks[expert] = [slots_6D.unbind(0) for slots_6D in layers_6D]

    def block(self, layer: int, expert: str) -> tuple[Tensor, ...]:
        """Six of `[D]`, or of `[B, 1 | L, D]`."""
        if self.single:
            return self._blocks[expert][layer]
        return self.levels.blocks[expert][layer][self.index].unbind(2)

    def out(self, expert: str) -> tuple[Tensor, ...]:
        """Two of `[D]`, or of `[B, 1 | L, D]`."""
        return self.levels.out[expert][self.index].unbind(0 if self.single else 2)


@dataclass(frozen=True)
class TextKeys:
    """Cross-attention keys and values of instructions: expert -> `[layers, B, H, L_t, h]`, in
    the model's dtype. `FusedTransformer.text_keys` makes them, once per instruction.
    """

    keys: dict[str, Tensor]
    values: dict[str, Tensor]


@dataclass(frozen=True)
class KVCache:
    """Keys and values of self-attention `[layers, B, H, N, h]` in the model's dtype, and where
    in N each group's tokens stand: group -> `[start, stop)`.

    Buffers of `FusedTransformer.cache`; passes write their own tokens and see those before.
    """

    keys: Tensor
    values: Tensor
    spans: dict[Group, tuple[int, int]]

    @property
    def observed(self) -> int:
        """Where the tokens of the observation, state and reference, end: they come first."""
        return max(self.spans[group][1] for group in ("S", "R") if group in self.spans)


@dataclass(frozen=True)
class Piece:
    """Tokens of one group `[start, stop)` in their expert's stream; in the cache they stand
    from `position`, and they see it up to `end`.
    """

    expert: str
    group: Group
    start: int
    stop: int
    position: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Which tokens a pass has. `FusedTransformer.prepare` makes it for both kinds of layers.

    pieces:   by expert, in order of its stream
    order:    the same pieces as they stand in the cache, without gaps
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
        first = self.order[0].position
        ends = list(dict.fromkeys(p.end for p in self.order))
        starts = [first, *ends[:-1]]
        return [(a - first, b - first) for a, b in zip(starts, ends, strict=True)]


# The layers of one layout, ready to run: streams `[B, L_e, D]` by expert, the noise of each
# group, and whether more is wanted of the last layer than keys and values. Returns the streams
# after it; those given may be overwritten.
Layers = Callable[[dict[str, Tensor], dict[Group, Noise], bool], dict[str, Tensor]]


def join(parts: list[Tensor]) -> Tensor:
    """Along the tokens; one part as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
