"""What the work cannot do without: its bare products, its arithmetic, the weights it reads, and
how fast this machine does those.
"""

import time
from collections.abc import Callable
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
    model, batch = solver.model, len(prefix.embodiment)
    expert = model.config.expert_of["A"]
    x0 = torch.randn(
        batch, solver.shapes.chunk, model.config.experts[expert][0], device=model.device
    ).to(model.dtype)
    if isinstance(model.layers, NativeLayers):
        layers, noise = (
            model.layers.prepare(
                solver.acting(prefix).layout, prefix.cache, prefix.text, bare=True
            ),
            solver.level(0),
        )
        return lambda: layers({expert: x0}, {"A": noise}, True)
    blocks, heads, end = (
        model.layers.layers,
        model.config.num_attention_heads,
        prefix.cache.spans["A"][1],
    )

    def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q.unflatten(-1, (heads, -1)).transpose(1, 2), k, v)

    def run() -> Tensor:
        x, inner = x0, model.config.width
        for index, layers in enumerate(blocks):
            layer, cache, text = layers[expert], prefix.cache, prefix.text
            q = F.linear(x, *layer.qkv)[..., :inner]
            x = F.linear(
                products(q, cache.keys[index][:, :, :end], cache.values[index][:, :, :end]),
                *layer.out,
            )
            x = F.linear(
                products(
                    F.linear(x, *layer.text_q), text.keys[expert][index], text.values[expert][index]
                ),
                *layer.text_out,
            )
            x = F.linear(F.linear(x, *layer.up), *layer.down)
        return x

    return run


@dataclass(frozen=True)
class Machine:
    """Measured in the same run: arithmetic of one large product, and reading of memory."""

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
            picture, kernel = a.view(1, n, 32, n // 32), b.view(n, n, 1, 1)
            seconds = min(seconds, _best(lambda: F.conv2d(picture, kernel), device))
        flops = 2 * n**3 / seconds
        # Written once: untouched memory is one page of zeros, and reading it says nothing.
        big = torch.ones(1 << (30 if device.type == "cuda" else 26), device=device)
        return cls(flops, big.nbytes / _best(big.sum, device))


def _best(run: Callable[[], object], device: torch.device) -> float:
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
) -> dict[str, float]:
    """Arithmetic and weight traffic of one chunk per robot: prefix once, then the steps.
    `prefix_tokens`: expert -> tokens.

    `ms` is the larger of the two times at this machine's own best rates, added over the passes.
    """
    config, inner = model.config, model.config.width
    item = torch.empty(0, dtype=model.dtype).element_size()

    def a_pass(tokens: dict[str, int], seen: int) -> tuple[float, float]:
        flops = bytes_ = 0.0
        for expert, count in tokens.items():
            width, ffn = config.experts[expert]
            weights = width * inner * 6 + 2 * width * ffn
            flops += 2 * weights * count * batch + 4 * inner * count * (seen + text) * batch
            bytes_ += weights * item
        return flops * config.num_layers, bytes_ * config.num_layers

    total = sum(prefix_tokens.values())
    passes = [a_pass(prefix_tokens, total)] + [
        a_pass({config.expert_of["A"]: actions}, total + actions)
    ] * steps
    ms = sum(max(f / machine.flops_per_s, b / machine.bytes_per_s) for f, b in passes) * 1e3
    return {
        "gflop": sum(f for f, _ in passes) / 1e9,
        "weights_gb": sum(b for _, b in passes) / 1e9,
        "ms": ms,
    }
