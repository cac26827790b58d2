"""`gwp bench act`: what acting costs against decoding actions and video together, side by side in one run.

Random weights: time does not depend on their values. Both sides use the same kernels and dtype.
"""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gwp.model.config import Family, ModelConfig
from gwp.model.sample import act, joint, observe
from gwp.model.transformer import Tokens
from gwp.model.weights import build_model

# Name -> layers, heads, head width, ffn, action expert, action ffn, latent channels, rows, columns, actions, action channels,
# text rows, text width.
SIZES: dict[str, tuple[int, ...]] = {
    "tiny": (4, 4, 32, 512, 96, 384, 24, 8, 8, 12, 8, 8, 64),
    "mid": (8, 8, 64, 2304, 176, 768, 48, 24, 20, 48, 16, 64, 512),
}


def bench_act(size: str, family: Family, batch: int, steps: int, repeats: int, threads: int) -> dict[str, Any]:
    """Latency of acting (prefix once, then actions only), of acting without the prefix cache, and of joint decoding."""
    torch.set_num_threads(threads)
    layers, heads, head, ffn, a_dim, a_ffn, C, h, w, p, d, rows, text_dim = SIZES[size]
    mixture = {"action_expert_dim": a_dim, "action_ffn_dim": a_ffn} if family == "gwp05" else {}
    config = ModelConfig(
        family=family, num_layers=layers, num_attention_heads=heads, attention_head_dim=head, ffn_dim=ffn, in_channels=C,
        action_channels=d, text_dim=text_dim, **mixture,
    )
    model = build_model(config, seed=0).eval()
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=g)

    state, reference, text = randn(1, d), randn(C, 1, h, w), randn(rows, text_dim)
    actions, future = randn(p, d), randn(C, 1, h, w)

    def acting() -> None:
        act(model, observe(model, state, reference, text), actions, steps)

    def uncached() -> None:
        x = actions
        for _ in range(steps):
            level = torch.full((batch,), 0.5)
            x = x - model(Tokens(state, reference, x), {"A": level}, text).action / steps

    def both() -> None:
        joint(model, Tokens(state, reference), text, actions, future, steps=steps)

    cases: dict[str, Callable[[], None]] = {"act": acting, "act_uncached": uncached, "joint": both}
    times: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode():
        for name in cases:
            for _ in range(2):
                cases[name]()
        for _ in range(repeats):
            # Interleaved, so that a slow moment of the machine meets every case.
            for name, run in cases.items():
                begin = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - begin) * 1e3)
    ms = {n: {f"p{q}": float(np.percentile(v, q)) for q in (50, 95, 99)} for n, v in times.items()}
    return {
        "size": size, "family": family, "parameters": sum(x.numel() for x in model.parameters()), "batch": batch, "steps": steps,
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", "device": "cpu", "dtype": "float32",
        "threads": threads, "warm_up": 2, "repeats": repeats, "cached": "prefix and text keys in `act`; nothing elsewhere",
        "tokens": {"prefix": 1 + h * w // 4, "action": p, "future": h * w // 4, "text": rows}, "ms": ms,
        "ratios": {
            "act_vs_joint": ms["joint"]["p50"] / ms["act"]["p50"],
            "cached_vs_uncached": ms["act_uncached"]["p50"] / ms["act"]["p50"],
        },
    }
