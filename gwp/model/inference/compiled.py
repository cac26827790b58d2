"""Calls of the compiled layers. The structures mirror those of `gwp/native/passes.cpp`, field
by field.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gwp.model.block import Block, ExpertBlock
from gwp.model.config import Group, ModelConfig
from gwp.model.inference.eager import linear
from gwp.model.inference.layout import KVCache, Layers, Layout, Noise, Piece, TextKeys


class _Expert(Structure):
    _fields_ = [
        ("width", c_int64),
        ("ffn", c_int64),
        ("tokens", c_int64),
        ("layers", c_void_p),
        ("rotation", c_void_p),
        ("text_keys", c_void_p),
        ("text_values", c_void_p),
    ]


class _Piece(Structure):
    _fields_ = [(name, c_int64) for name in ("expert", "start", "count", "place", "end")]


class _Strides(Structure):
    _fields_ = [(name, c_int64) for name in ("layer", "row", "head", "place")]


class _Plan(Structure):
    _fields_ = [
        *(
            (name, c_int64)
            for name in (
                "layers",
                "batch",
                "heads",
                "head",
                "experts",
                "pieces",
                "text_rows",
                "threads",
            )
        ),
        ("eps", c_float),
        ("expert", POINTER(_Expert)),
        ("piece", POINTER(_Piece)),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("cache", _Strides),
        ("text", _Strides),
        ("work", c_void_p),
    ]


class _Noise(Structure):
    _fields_ = [("level", c_int64), ("index", c_void_p), ("row", c_int64), ("token", c_int64)]


class _Call(Structure):
    _fields_ = [
        ("streams", POINTER(c_void_p)),
        ("levels", POINTER(c_void_p)),
        ("n", c_int64),
        ("full", c_int64),
        ("bare", c_int64),
        ("noise", POINTER(_Noise)),
    ]


@dataclass(frozen=True)
class _Pass:
    """Some groups beside a cache, laid out for the compiled layers, with all memory that they
    need.

    runs: pieces that are one to the plan; bare: as `prepare` says; held: what the plan points
    to
    """

    layout: Layout
    plan: _Plan
    runs: list[list[Piece]]
    bare: bool
    held: tuple[object, ...]


class NativeLayers:
    """The blocks of a model in fp32 on the CPU, by their own weights. No per-request state."""

    def __init__(self, blocks: Sequence[Block], config: ModelConfig, library: ctypes.CDLL) -> None:
        self.config, self._library = config, library
        library.gwp_room.restype = c_int64
        scale = config.attention_head_dim**-0.5
        self.weights = {
            e: [_weights(block.expert(e), scale) for block in blocks] for e in config.experts
        }
        self._addresses = {
            e: (c_void_p * sum(map(len, layers)))(
                *(t.data_ptr() for layer in layers for t in layer)
            )
            for e, layers in self.weights.items()
        }

    def prepare(self, layout: Layout, cache: KVCache, text: TextKeys, bare: bool = False) -> Layers:
        """For passes of `layout` beside these buffers, one at a time, by as many threads as
        torch uses now.

        Streams of fewer observations are the first of these. bare: products and attention
        without what stands between them, to measure. ValueError when the buffers cannot be
        walked.
        """
        names = list(layout.pieces)
        keys = [text.keys[e] for e in names]
        held = [*keys, *(text.values[e] for e in names)]
        rotations = [layout.rotation[e].contiguous() for e in names]
        experts = (_Expert * len(names))(
            *(
                _Expert(
                    *self.config.experts[e],
                    layout.pieces[e][-1].stop,
                    ctypes.cast(self._addresses[e], c_void_p),
                    rotations[i].data_ptr(),
                    held[i].data_ptr(),
                    held[len(names) + i].data_ptr(),
                )
                for i, e in enumerate(names)
            )
        )
        runs = _runs(layout.order)
        pieces = (_Piece * len(runs))(
            *(
                _Piece(
                    names.index(run[0].expert),
                    run[0].start,
                    run[-1].stop - run[0].start,
                    run[0].place,
                    run[0].end,
                )
                for run in runs
            )
        )
        alike = (cache.keys, cache.values), held
        if any(
            len({t.stride() for t in tensors}) > 1 or tensors[0].stride(-1) != 1
            for tensors in alike
        ):
            raise ValueError(
                "keys and values lie differently in memory, or their last axis is not dense"
            )
        plan = _Plan(
            self.config.num_layers,
            cache.keys.shape[1],
            self.config.num_attention_heads,
            self.config.attention_head_dim,
            len(names),
            len(runs),
            held[0].shape[3],
            torch.get_num_threads(),
            self.config.eps,
            experts,
            pieces,
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            _Strides(*cache.keys.stride()[:4]),
            _Strides(*held[0].stride()[:4]),
            None,
        )
        work = torch.zeros(self._library.gwp_room(byref(plan)))
        plan.work = work.data_ptr()
        return partial(
            self._run,
            _Pass(layout, plan, runs, bare, (experts, pieces, cache, *held, *rotations, work)),
        )

    def _run(
        self, through: _Pass, streams: dict[str, Tensor], noise: dict[Group, Noise], full: bool
    ) -> dict[str, Tensor]:
        layout, n = through.layout, len(through.layout.pieces)
        given = {e: x.contiguous() for e, x in streams.items()}
        through.plan.batch = next(iter(given.values())).shape[0]
        levels = noise[layout.order[0].group].levels
        tables = [levels.blocks[e] for e in layout.pieces]
        if any(noise[p.group] is not noise[run[0].group] for run in through.runs for p in run):
            raise ValueError("groups of one segment and one expert have different noise")
        noises = (_Noise * len(through.runs))(
            *(_noise(noise[run[0].group].index) for run in through.runs)
        )
        call = _Call(
            (c_void_p * n)(*(given[e].data_ptr() for e in layout.pieces)),
            (c_void_p * n)(*(t.data_ptr() for t in tables)),
            tables[0].shape[1],
            full,
            through.bare,
            noises,
        )
        self._library.gwp_run(byref(through.plan), byref(call))
        return given


def _weights(block: ExpertBlock, scale: float) -> list[Tensor]:
    """In the order of `Layer`; the model's own memory but for the scaled norm."""
    joint, cross, feed = block.attn1, block.attn2, block.ffn.net

    def of(*modules: torch.nn.Module) -> list[Tensor]:
        return [
            t.detach().contiguous()
            for module in map(linear, modules)
            for t in (module.weight, module.bias)
        ]

    return [
        *of(joint.to_q, joint.to_k, joint.to_v),
        joint.norm_q.weight.detach() * scale,
        joint.norm_k.weight.detach().contiguous(),
        *of(joint.to_out[0]),
        block.norm2.weight.detach().contiguous(),
        block.norm2.bias.detach().contiguous(),
        *of(cross.to_q),
        *of(cross.to_out[0]),
        *of(feed[0].get_submodule("proj")),
        *of(feed[2]),
    ]


def _runs(order: list[Piece]) -> list[list[Piece]]:
    """Pieces that stand together in stream and cache, and see the same."""
    runs: list[list[Piece]] = []
    for p in order:
        last = runs[-1][-1] if runs else None
        if last and (last.expert, last.stop, last.end) == (p.expert, p.start, p.end):
            runs[-1].append(p)
        else:
            runs.append([p])
    return runs


def _noise(index: int | Tensor) -> _Noise:
    if isinstance(index, int):
        return _Noise(index, None, 0, 0)
    rows, tokens = index.shape
    return _Noise(
        -1,
        index.data_ptr(),
        index.stride(0) if rows > 1 else 0,
        index.stride(1) if tokens > 1 else 0,
    )
