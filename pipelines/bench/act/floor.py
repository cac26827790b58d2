"""What the work cannot do without: its bare products, its arithmetic, the weights it reads, and
how fast this machine does those.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gwp.model.inference.compiled import NativeLayers
from gwp.model.inference.eager import attention
from gwp.model.inference.fused import FusedTransformer
from gwp.policy.solver import Prefix, Solver


def bare_step(solver: Solver, prefix: Prefix) -> Callable[[], object]:
    """The matrix and attention products of one action step, with the model's own weights and
    kernels and nothing between them.
    """
    model = solver.model
    batch = len(prefix.embodiment)
    expert = model.config.expert_of["A"]
    width, _ = model.config.experts[expert]
    x0 = torch.randn(batch, solver.shapes.chunk, width, device=model.device).to(model.dtype)
    if isinstance(model.layers, NativeLayers):
        order = solver.acting(prefix).layout
        layers = model.layers.prepare(order, prefix.cache, prefix.text, bare=True)
        noise = solver.level(0)
        return lambda: layers({expert: x0}, {"A": noise}, True)
    blocks = model.layers.layers
    heads = model.config.num_attention_heads
    inner = model.config.width
    cache = prefix.cache
    text = prefix.text
    # Actions see everything up to their own end; the room for the future lies behind it.
    end = cache.spans["A"][1]

    def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q.unflatten(-1, (heads, -1)).transpose(1, 2), k, v)

    def run() -> Tensor:
        x = x0
        for index, layers in enumerate(blocks):
            layer = layers[expert]
            # Keys and values are computed too, but attention reads those in the cache.
            q = F.linear(x, *layer.qkv)[..., :inner]
            seen = products(q, cache.keys[index][:, :, :end], cache.values[index][:, :, :end])
            x = F.linear(seen, *layer.out)
            q = F.linear(x, *layer.text_q)
            seen = products(q, text.keys[expert][index], text.values[expert][index])
            x = F.linear(seen, *layer.text_out)
            x = F.linear(F.linear(x, *layer.up), *layer.down)
        return x

    return run


@dataclass(frozen=True)
class Machine:
    """What this machine does at best, from `measure` in the same run as what is compared with
    it; `acting_floor` uses it.

    flops_per_s: operations per second of one large product, in the model's dtype
    bytes_per_s: bytes per second read from memory
    """

    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> "Machine":
        n = 8192 if device.type == "cuda" else 1024
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        seconds = _best(lambda: a @ b, device)
        if device.type == "cpu":
            # The same product as a convolution goes to another library, which on some
            # processors is twice as fast.
            picture = a.view(1, n, 32, n // 32)
            kernel = b.view(n, n, 1, 1)
            seconds = min(seconds, _best(lambda: F.conv2d(picture, kernel), device))
        flops = 2 * n**3 / seconds
        # Written once: untouched memory is one page of zeros, and reading it says nothing.
        # Larger than any cache: 4 GiB on a GPU, 256 MiB elsewhere.
        big = torch.ones(1 << (30 if device.type == "cuda" else 26), device=device)
        return cls(flops, big.nbytes / _best(big.sum, device))


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of ten calls: what the machine can do, not what it mostly does."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def acting_floor(
    model: FusedTransformer,
    prefix_tokens: dict[str, int],
    actions: int,
    text: int,
    batch: int,
    steps: int,
    machine: Machine,
    future: int = 0,
) -> dict[str, float]:
    """Arithmetic and weight traffic of one chunk per robot: prefix once, then the steps.
    `prefix_tokens`: expert -> tokens; future: those of the future, where actions see it.

    `ms` is the larger of the two times at this machine's own best rates, added over the passes.
    """
    config = model.config
    inner = config.width
    item = torch.empty(0, dtype=model.dtype).element_size()

    def a_pass(tokens: Mapping[str, int], seen: int) -> tuple[float, float]:
        """Operations, and bytes of weights, of one pass whose tokens attend to `seen` ones."""
        flops = bytes_ = 0.0
        for expert, count in tokens.items():
            width, ffn = config.experts[expert]
            # q, k, v and out of the self-attention, q and out of the text's (its keys are
            # cached), then the two products of the feed-forward layer.
            weights = width * inner * 6 + 2 * width * ffn
            products = 2 * weights * count
            # Scores, and the sum of values: a multiplication and an addition each.
            attended = 4 * inner * count * (seen + text)
            flops += (products + attended) * batch
            # Weights are read once for all rows of the batch.
            bytes_ += weights * item
        return flops * config.num_layers, bytes_ * config.num_layers

    total = sum(prefix_tokens.values())
    of_action, of_future = {config.expert_of["A"]: actions}, {config.expert_of["F"]: future}
    passes = [a_pass(prefix_tokens, total)]
    if config.visibility == "joint":
        both = Counter(of_action) + Counter(of_future)
        passes += [a_pass(both, total + actions + future)] * steps
    else:
        if config.visibility == "video-first":
            # Once more when it is clean: the actions see that.
            passes += [a_pass(of_future, total + future)] * (steps + 1)
            total += future
        passes += [a_pass(of_action, total + actions)] * steps
    seconds = sum(max(f / machine.flops_per_s, b / machine.bytes_per_s) for f, b in passes)
    return {
        "gflop": sum(f for f, _ in passes) / 1e9,
        "weights_gb": sum(b for _, b in passes) / 1e9,
        "ms": seconds * 1e3,
    }
