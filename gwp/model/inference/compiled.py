"""Calls of the compiled layers. The structures mirror those of `gwp/native/plan.h`, field by
field; shapes are there.
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
    """`Expert`: the weights of one expert in all layers, its rotation and its instruction."""

    # ctypes keeps nothing alive that an address points to: whoever fills a structure holds the
    # tensors for as long as the library may read them.

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
    """`Piece`: tokens of an expert's stream, where they stand in the cache, what they see."""

    _fields_ = [(name, c_int64) for name in ("expert", "start", "count", "place", "end")]


class _Strides(Structure):
    """`Strides`: floats from one to the next, in a cache or in instructions."""

    _fields_ = [(name, c_int64) for name in ("layer", "row", "head", "place")]


class _Plan(Structure):
    """`Plan`: a pass of some groups beside a cache, as it stays from call to call."""

    _fields_ = [
        ("layers", c_int64),
        ("batch", c_int64),
        ("heads", c_int64),
        ("head", c_int64),
        ("experts", c_int64),
        ("pieces", c_int64),
        ("text_rows", c_int64),
        ("threads", c_int64),
        ("eps", c_float),
        ("expert", POINTER(_Expert)),
        ("piece", POINTER(_Piece)),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("cache", _Strides),
        ("text", _Strides),
        ("workspace", c_void_p),
    ]


class _Noise(Structure):
    """`Noise`: one level of all tokens of a piece, or a level for each."""

    _fields_ = [("level", c_int64), ("index", c_void_p), ("row", c_int64), ("token", c_int64)]


class _Call(Structure):
    """`Call`: what changes from call to call: the streams, and the noise of each piece."""

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
    need. `NativeLayers.prepare` makes it.

    runs:   pieces that are one to the plan
    bare:   as `prepare` says
    memory: what the plan points to, kept alive
    """

    layout: Layout
    plan: _Plan
    runs: list[list[Piece]]
    bare: bool
    memory: tuple[object, ...]


class NativeLayers:
    """The blocks of a model in fp32 on the CPU, by their own weights. No per-request state."""

    def __init__(self, blocks: Sequence[Block], config: ModelConfig, library: ctypes.CDLL) -> None:
        self.config = config
        self._library = library
        # ctypes takes a result for an int of 32 bits unless told otherwise.
        library.gwp_workspace_size.restype = c_int64
        scale = config.attention_head_dim**-0.5
        self.weights: dict[str, list[list[Tensor]]] = {}
        self._addresses: dict[str, ctypes.Array[c_void_p]] = {}
        for expert in config.experts:
            layers = [_weights(block.expert(expert), scale) for block in blocks]
            addresses = [tensor.data_ptr() for layer in layers for tensor in layer]
            self.weights[expert] = layers
            self._addresses[expert] = (c_void_p * len(addresses))(*addresses)

    def prepare(self, layout: Layout, cache: KVCache, text: TextKeys, bare: bool = False) -> Layers:
        """For passes of `layout` beside these buffers, one at a time, by as many threads as
        torch uses now.

        Streams of fewer observations are the first of these. bare: products and attention
        without what stands between them, to measure. ValueError when the buffers cannot be
        walked.
        """
        names = list(layout.pieces)
        texts = [*(text.keys[e] for e in names), *(text.values[e] for e in names)]
        # The plan has one set of strides for all instructions, and one for both caches.
        if not (_alike([cache.keys, cache.values]) and _alike(texts)):
            raise ValueError(
                "keys and values lie differently in memory, or their last axis is not dense"
            )

        rotations = {e: layout.rotation[e].contiguous() for e in names}
        experts = (_Expert * len(names))()
        for i, name in enumerate(names):
            width, ffn = self.config.experts[name]
            experts[i] = _Expert(
                width,
                ffn,
                layout.pieces[name][-1].stop,
                ctypes.cast(self._addresses[name], c_void_p),
                rotations[name].data_ptr(),
                text.keys[name].data_ptr(),
                text.values[name].data_ptr(),
            )
        runs = _runs(layout.order)
        pieces = (_Piece * len(runs))()
        for i, run in enumerate(runs):
            first, last = run[0], run[-1]
            count = last.stop - first.start
            expert = names.index(first.expert)
            pieces[i] = _Piece(expert, first.start, count, first.position, first.end)

        plan = _Plan(
            self.config.num_layers,
            cache.keys.shape[1],
            self.config.num_attention_heads,
            self.config.attention_head_dim,
            len(names),
            len(runs),
            texts[0].shape[3],
            torch.get_num_threads(),
            self.config.eps,
            experts,
            pieces,
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            _Strides(*cache.keys.stride()[:4]),
            _Strides(*texts[0].stride()[:4]),
            None,
        )
        # How much it needs depends on the rest of the plan, so it comes last.
        workspace = torch.zeros(self._library.gwp_workspace_size(byref(plan)))
        plan.workspace = workspace.data_ptr()
        memory = (experts, pieces, cache, *texts, *rotations.values(), workspace)
        return partial(self._run, _Pass(layout, plan, runs, bare, memory))

    def _run(
        self, token_pass: _Pass, streams: dict[str, Tensor], noise: dict[Group, Noise], full: bool
    ) -> dict[str, Tensor]:
        names = list(token_pass.layout.pieces)
        # The library works in place, on dense rows.
        dense = {e: x_BLD.contiguous() for e, x_BLD in streams.items()}
        token_pass.plan.batch = next(iter(dense.values())).shape[0]

        # A run is one piece to the library and has one noise.
        noises = (_Noise * len(token_pass.runs))()
        for i, run in enumerate(token_pass.runs):
            shared = noise[run[0].group]
            if any(noise[piece.group] is not shared for piece in run):
                raise ValueError("groups of one segment and one expert have different noise")
            noises[i] = _noise(shared.index)

        levels = noise[token_pass.layout.order[0].group].levels
        tables = [levels.blocks[e] for e in names]
        call = _Call(
            (c_void_p * len(names))(*(dense[e].data_ptr() for e in names)),
            (c_void_p * len(names))(*(table.data_ptr() for table in tables)),
            tables[0].shape[1],
            full,
            token_pass.bare,
            noises,
        )
        # ctypes gives up the interpreter's lock for the call: other threads go on meanwhile.
        self._library.gwp_run(byref(token_pass.plan), byref(call))
        return dense


def _weights(block: ExpertBlock, scale: float) -> list[Tensor]:
    """In the order of `Layer`; the model's own memory but for the scaled norm."""
    joint = block.attn1
    cross = block.attn2
    feed = block.ffn.net

    def of(*modules: torch.nn.Module) -> list[Tensor]:
        tensors: list[Tensor] = []
        for module in map(linear, modules):
            tensors += [module.weight.detach().contiguous(), module.bias.detach().contiguous()]
        return tensors

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


def _alike(tensors: list[Tensor]) -> bool:
    """Whether all have the same strides and a dense last axis."""
    return len({t.stride() for t in tensors}) == 1 and tensors[0].stride(-1) == 1


def _runs(order: list[Piece]) -> list[list[Piece]]:
    """Pieces that stand together in stream and cache, see the same, and always have one noise."""
    runs: list[list[Piece]] = []
    for p in order:
        last = runs[-1][-1] if runs else None
        together = last and (last.expert, last.stop, last.end) == (p.expert, p.start, p.end)
        # State and reference are clean; actions and future may be at levels of their own.
        if together and p.group == "R":
            runs[-1].append(p)
        else:
            runs.append([p])
    return runs


def _noise(index: int | Tensor) -> _Noise:
    if isinstance(index, int):
        return _Noise(index, None, 0, 0)
    # An axis of one is shared by all rows or tokens: a step of 0 stays on it.
    rows, tokens = index.shape
    row_step = index.stride(0) if rows > 1 else 0
    token_step = index.stride(1) if tokens > 1 else 0
    return _Noise(-1, index.data_ptr(), row_step, token_step)
