"""`gwp bench act`: what acting costs against decoding actions and video together, side by side
in one run.

All sides use the same kernels, weights and dtype; cases are interleaved, so that a slow moment
of the machine meets every one.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwp.model.config import Family, Group, ModelConfig
from gwp.model.inference.layout import Noise
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.policy.engine.engine import Engine
from gwp.policy.engine.graphs import graph_pool, recorded
from gwp.policy.engine.schedule import BatchingConfig
from gwp.policy.engine.solver import Prefix, Solver
from gwp.policy.policy import Policy
from gwp.threads import apart
from pipelines.bench.floor import Machine, acting_floor, bare_step
from pipelines.bench.robots import robots_table
from pipelines.bench.sizes import SIZES, Size, observation, random_policy
from pipelines.bench.trace import trace

WARM_UP = 2
_ACTION: tuple[Group, ...] = ("A",)


def bench_act(
    size: str,
    family: Family,
    batches: Sequence[int],
    steps: Sequence[int],
    repeats: int,
    threads: int,
    device: str = "cpu",
    dtype: str = "float32",
    robots: int = 16,
    codec: str = "pca",
    p99_ms: float | None = None,
    seconds: float = 10.0,
    trace_to: str | None = None,
) -> dict[str, Any]:
    """Everything that `gwp bench act` prints for one family. The first of `batches` and of
    `steps` is the one of the comparisons.

    p99_ms: also find how many robots one engine answers within it, `seconds` per crowd;
    trace_to: file for a profile of requests
    """
    torch.set_num_threads(threads)
    shape = SIZES[size]
    config = shape.config(family)
    policy = apart(
        lambda: random_policy(shape, family, steps[0], device, getattr(torch, dtype), codec)
    )
    solver = policy.solver
    rows, columns = shape.latent
    tokens = {
        "prefix": 1 + rows * columns // 4,
        "action": shape.chunk,
        "future": rows * columns // 4,
        "text": shape.text[0],
    }

    def passes() -> tuple[Machine, dict[str, Any], dict[str, Any], dict[str, Any]]:
        with torch.inference_mode():
            machine = Machine.measure(policy.device, solver.model.dtype)
            given = {b: _Given.draw(solver, b, shape.text[0]) for b in batches}
            first = given[batches[0]]
            solvers = {n: Solver(solver.model, solver.shapes, n) for n in steps}
            return (
                machine,
                _measure(_cases(solver, first), repeats, policy.device),
                _measure(
                    {str(b): _acting(solver, given[b]) for b in batches}, repeats, policy.device
                ),
                _measure(
                    {str(n): _acting(solvers[n], first) for n in steps}, repeats, policy.device
                ),
            )

    machine, ms, by_batch, by_steps = apart(passes)
    prefix_tokens = {config.expert_of["S"]: 1}
    prefix_tokens[config.expert_of["R"]] = (
        prefix_tokens.get(config.expert_of["R"], 0) + tokens["prefix"] - 1
    )
    floor = acting_floor(
        solver.model, prefix_tokens, shape.chunk, shape.text[0], batches[0], steps[0], machine
    )
    p50 = {name: value["p50"] for name, value in ms.items()}
    phases, request = apart(lambda: _requests(policy, shape, repeats))
    traced = apart(lambda: trace(policy, shape, trace_to)) if trace_to else None
    engine = _engine(policy, shape, robots, max(5, repeats // 2))
    return {
        "size": size,
        "family": family,
        "parameters": _parameters(config),
        "batch": batches[0],
        "steps": steps[0],
        "tokens": tokens,
        "hardware": hardware(policy.device),
        "device": str(policy.device),
        "dtype": dtype,
        "threads": threads,
        "torch": torch.__version__,
        "warm_up": WARM_UP,
        "repeats": repeats,
        "cached": "prefix keys in act, step, imagine, joint_cached; text keys everywhere",
        "ms": ms,
        "by_batch": by_batch,
        "by_steps": by_steps,
        "phases_ms": phases,
        "request_ms": request,
        "engine": engine,
        "codec": codec,
        "crowds": robots_table(policy, shape, p99_ms, seconds) if p99_ms else None,
        "trace": traced,
        "ratios": {
            "act_vs_joint": p50["joint"] / p50["act"],
            "act_vs_joint_cached": p50["joint_cached"] / p50["act"],
            "cached_vs_uncached": p50["act_uncached"] / p50["act"],
            "step_vs_matmul": p50["step"] / p50["bare_step"],
            "engine_vs_sequential": engine["throughput_ratio"],
        },
        "floors": floor
        | {
            "distance": p50["act"] / floor["ms"],
            "gflops_per_s": machine.flops_per_s / 1e9,
            "gb_per_s": machine.bytes_per_s / 1e9,
        },
    }


@dataclass(frozen=True)
class _Given:
    """What a case starts from, random: every tensor of `batch` observations."""

    state: Tensor
    reference: Tensor
    action: Tensor
    future: Tensor
    prefix: Prefix

    @classmethod
    def draw(cls, solver: Solver, batch: int, text_rows: int) -> "_Given":
        model, g = solver.model, torch.Generator().manual_seed(0)
        C, h, w = solver.shapes.latent

        def randn(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=g).to(model.device)

        d = model.config.action_channels
        state, reference, text = (
            randn(1, d),
            randn(C, 1, h, w),
            randn(text_rows, model.config.text_dim),
        )
        ids = torch.zeros(batch, dtype=torch.long, device=model.device)
        prefix = solver.observe(state, reference, model.text_keys(text), ids)
        return cls(
            state,
            reference,
            randn(solver.shapes.chunk, d),
            randn(C, solver.shapes.future, h, w),
            prefix,
        )


def _acting(solver: Solver, given: _Given) -> Callable[[], Tensor]:
    def act() -> Tensor:
        solver.observe(
            given.state,
            given.reference,
            given.prefix.text,
            given.prefix.embodiment,
            given.prefix.cache,
        )
        return solver.act(given.prefix, given.action)

    return act


def _cases(solver: Solver, given: _Given) -> dict[str, Callable[[], object]]:
    prefix, observed = given.prefix, Tokens(given.state, given.reference)

    through = solver.acting(prefix)

    def observe() -> Prefix:
        return solver.observe(
            given.state, given.reference, prefix.text, prefix.embodiment, prefix.cache
        )

    def uncached() -> object:
        x = given.action
        through = solver.model.prepare(
            Tokens(given.state, given.reference, x), prefix.cache, prefix.text, prefix.embodiment
        )
        for step in range(solver.steps):
            noise: dict[Group, Noise] = {
                "S": solver.clean,
                "R": solver.clean,
                "A": solver.level(step),
            }
            out = solver.model.run(
                Tokens(given.state, given.reference, x), noise, through, _ACTION
            ).action
            assert out is not None
            x = x - out.float() / solver.steps
        return x

    def joint_cached() -> object:
        return solver.joint(observe(), observed, given.action, given.future, use_prefix=True)

    return {
        "act": _acting(solver, given),
        "act_uncached": uncached,
        "joint": lambda: solver.joint(prefix, observed, given.action, given.future),
        "joint_cached": joint_cached,
        "imagine": lambda: solver.imagine(prefix, given.action, given.future),
        "prefix": observe,
        "step": lambda: solver.velocity(through, given.action, solver.level(0)),
        "bare_step": bare_step(solver, prefix),
    }


def _measure(
    cases: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in cases}
    # On a GPU every side is one graph.
    runs, pool = {}, graph_pool(device)
    for name, case in cases.items():
        runs[name] = recorded(case, device, pool)
    for turn in range(WARM_UP + repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: _percentiles(values) for name, values in times.items()}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}


def _requests(
    policy: Policy, shape: Size, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Whole requests, from image to actions in robot units: the median of each phase, and
    percentiles of the whole.
    """
    seen = [policy.act(observation(shape, seed)).timings for seed in range(WARM_UP + repeats)][
        WARM_UP:
    ]
    phases = {name: float(np.median([timings[name] for timings in seen])) for name in seen[0]}
    return phases, _percentiles([timings["total"] for timings in seen])


def _engine(policy: Policy, shape: Size, robots: int, rounds: int) -> dict[str, float]:
    """As many robots at once through the engine, against the same requests one after the other."""
    observations = [observation(shape, seed) for seed in range(robots)]

    def one_by_one() -> tuple[float, float]:
        policy.act(observations[0])
        times = [_seconds(lambda: [policy.act(o) for o in observations]) for _ in range(rounds)]
        return float(np.median(times)), float(
            np.median([_seconds(lambda: policy.act(observations[0])) for _ in range(rounds)])
        )

    sequential, direct = apart(one_by_one)
    with (
        Engine(policy, BatchingConfig(slots=min(32, robots))) as engine,
        ThreadPoolExecutor(robots) as pool,
    ):
        engine.warm_up(observations[:1])
        together = float(
            np.median(
                [_seconds(lambda: list(pool.map(engine.act, observations))) for _ in range(rounds)]
            )
        )
        alone = float(
            np.median([_seconds(lambda: engine.act(observations[0])) for _ in range(rounds)])
        )
    return {
        "robots": robots,
        "sequential_s": sequential,
        "engine_s": together,
        "throughput_ratio": sequential / together,
        "chunks_per_s": robots / together,
        "direct_ms": direct * 1e3,
        "alone_ms": alone * 1e3,
        "alone_ratio": alone / direct,
    }


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in WorldActionTransformer(config).parameters())


def hardware(device: torch.device) -> str:
    """What a measurement was made on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores"


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read().splitlines()
    except OSError:
        return []
