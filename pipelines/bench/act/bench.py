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

from gwp.model.config import Family, ModelConfig
from gwp.model.cost import tokens_of
from gwp.model.inference.fused import FusedTransformer
from gwp.model.transformer import WorldActionTransformer
from gwp.policy.batching.engine import Engine
from gwp.policy.batching.schedule import BatchingConfig
from gwp.policy.graphs import graph_pool, recorded
from gwp.policy.policy import Policy
from gwp.policy.solver import Solver
from gwp.threads import apart
from pipelines.bench.act.cases import Inputs, acting, cases
from pipelines.bench.act.floor import Machine, acting_floor
from pipelines.bench.act.robots import robots_table
from pipelines.bench.act.sizes import (
    SIZES,
    Arm,
    Size,
    observation,
    random_model,
    random_policy,
)
from pipelines.bench.act.trace import trace

WARM_UP = 2


Percentiles = dict[str, float]
"""Milliseconds by `p50`, `p95` and `p99`."""


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
    arm: Arm = "action-centred",
) -> dict[str, Any]:
    """Everything that `gwp bench act` prints for one family. The first of `batches` and of
    `steps` is the one of the comparisons.

    p99_ms: also find how many robots one engine answers within it, `seconds` per crowd;
    trace_to: file for a profile of requests
    """
    torch.set_num_threads(threads)
    shape = SIZES[size]
    torch_dtype = getattr(torch, dtype)
    # Each part computes in a thread of its own: OpenMP workers of one that idles would slow the
    # next one down.
    policy = apart(lambda: random_policy(shape, family, steps[0], device, torch_dtype, codec, arm))
    plain = shape.config(family)
    passes = apart(lambda: _Passes.measure(policy.solver, plain, shape, batches, steps, repeats))
    phases, request = apart(lambda: _requests(policy, shape, repeats))
    operations = apart(lambda: trace(policy, shape, trace_to)) if trace_to else None
    # Not `apart`: an engine computes in a thread of its own.
    engine = _engine(policy, shape, robots, max(5, repeats // 2))
    crowds = robots_table(policy, shape, p99_ms, seconds) if p99_ms else None
    return {
        "size": size,
        "family": family,
        "visibility": arm,
        "parameters": _parameters(policy.solver.model.config),
        "batch": batches[0],
        "steps": steps[0],
        "tokens": _tokens(policy.solver, shape),
        "hardware": hardware(policy.device),
        "device": str(policy.device),
        "dtype": dtype,
        "threads": threads,
        "torch": torch.__version__,
        "warm_up": WARM_UP,
        "repeats": repeats,
        "cached": "prefix keys in act, step, imagine, joint_cached; text keys everywhere",
        "ms": passes.ms,
        "by_batch": passes.by_batch,
        "by_steps": passes.by_steps,
        "phases_ms": phases,
        "request_ms": request,
        "engine": engine,
        "codec": codec,
        "crowds": crowds,
        "trace": operations,
        "ratios": _ratios(passes.ms) | {"engine_vs_sequential": engine["throughput_ratio"]},
        "floors": _floors(policy.solver, shape, batches[0], steps[0], passes),
    }


def _tokens(solver: Solver, shape: Size) -> dict[str, int]:
    """Tokens of one observation by what they stand for."""
    frames = 1 + solver.shapes.future
    counts = tokens_of(solver.model.config, (frames, *shape.latent), shape.chunk)
    return {
        "state": counts["S"],
        "reference": counts["R"],
        "action": counts["A"],
        "future": counts["F"],
        "text": shape.text[0],
    }


@dataclass(frozen=True)
class _Passes:
    """What the solver alone takes, from `measure`, for `bench_act`.

    machine:  what this machine does at best, measured just before
    ms:       milliseconds by case of `cases`
    by_batch: of acting, by number of observations
    by_steps: of acting, by number of Euler steps
    """

    machine: Machine
    ms: dict[str, Percentiles]
    by_batch: dict[str, Percentiles]
    by_steps: dict[str, Percentiles]

    @classmethod
    @torch.inference_mode()
    def measure(
        cls,
        solver: Solver,
        plain: ModelConfig,
        shape: Size,
        batches: Sequence[int],
        steps: Sequence[int],
        repeats: int,
    ) -> "_Passes":
        """The cases and the steps are measured at the first of `batches`. plain: the action-centred
        model, which others are timed beside
        """
        device = solver.model.device
        machine = Machine.measure(device, solver.model.dtype)
        starts = {batch: Inputs.draw(solver, batch, shape.text[0]) for batch in batches}
        first = starts[batches[0]]
        by_batch = {str(batch): acting(solver, start) for batch, start in starts.items()}
        by_steps = {
            str(count): acting(Solver(solver.model, solver.shapes, count), first) for count in steps
        }
        found = cases(solver, first)
        if solver.with_future:
            # With weights of its own, as it would be.
            fused = FusedTransformer(random_model(plain, device, solver.model.dtype))
            other = Solver(fused, solver.shapes, solver.steps)
            start = Inputs.draw(other, batches[0], shape.text[0])
            found["action_centred"] = acting(other, start)
        return cls(
            machine,
            _measure(found, repeats, device),
            _measure(by_batch, repeats, device),
            _measure(by_steps, repeats, device),
        )


def _ratios(ms: Mapping[str, Percentiles]) -> dict[str, float]:
    """Of medians: how often the first goes into the second."""
    p50 = {case: percentiles["p50"] for case, percentiles in ms.items()}
    ratios = {
        "act_vs_joint": p50["joint"] / p50["act"],
        "act_vs_joint_cached": p50["joint_cached"] / p50["act"],
        "cached_vs_uncached": p50["act_uncached"] / p50["act"],
    }
    if "step" in p50:
        ratios["step_vs_matmul"] = p50["step"] / p50["bare_step"]
    if "action_centred" in p50:
        ratios["action_centred_vs_act"] = p50["act"] / p50["action_centred"]
    return ratios


def _floors(
    solver: Solver, shape: Size, batch: int, steps: int, passes: _Passes
) -> dict[str, float]:
    """What acting cannot go below on this machine, and how far it is from there."""
    expert_of, tokens = solver.model.config.expert_of, _tokens(solver, shape)
    # State and reference picture may share an expert, so their tokens are added up.
    prefix = dict.fromkeys((expert_of["S"], expert_of["R"]), 0)
    prefix[expert_of["S"]] += tokens["state"]
    prefix[expert_of["R"]] += tokens["reference"]
    machine = passes.machine
    future = tokens["future"] if solver.with_future else 0
    floor = acting_floor(
        solver.model, prefix, tokens["action"], shape.text[0], batch, steps, machine, future
    )
    return floor | {
        "distance": passes.ms["act"]["p50"] / floor["ms"],
        "gflops_per_s": machine.flops_per_s / 1e9,
        "gb_per_s": machine.bytes_per_s / 1e9,
    }


def _measure(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, Percentiles]:
    """Time `repeats` calls of every side, after some that do not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    # On a GPU every side is one graph.
    pool = graph_pool(device)
    runs = {name: recorded(side, device, pool) for name, side in sides.items()}
    # Cases take turns, so that a slow moment of the machine meets every one.
    for turn in range(WARM_UP + repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if device.type == "cuda":
                # A replay returns before the GPU is through.
                torch.cuda.synchronize(device)
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: _percentiles(values) for name, values in times.items()}


def _percentiles(values: Sequence[float]) -> Percentiles:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}


def _requests(policy: Policy, shape: Size, repeats: int) -> tuple[dict[str, float], Percentiles]:
    """Whole requests, from image to actions in robot units: the median of each phase, and
    percentiles of the whole. Milliseconds.
    """
    times: dict[str, list[float]] = {}
    for seed in range(WARM_UP + repeats):
        # The policy's own clock: making the observation does not count.
        timings = policy.act(observation(shape, seed)).timings
        if seed >= WARM_UP:
            for phase, ms in timings.items():
                times.setdefault(phase, []).append(ms)
    phases = {phase: float(np.median(ms)) for phase, ms in times.items()}
    return phases, _percentiles(times["total"])


def _engine(policy: Policy, shape: Size, robots: int, rounds: int) -> dict[str, float]:
    """As many robots at once through the engine, against the same requests one after the other."""
    observations = [observation(shape, seed) for seed in range(robots)]

    def in_turn() -> None:
        for one in observations:
            policy.act(one)

    def without_engine() -> tuple[float, float]:
        policy.act(observations[0])
        # In turn, and alone: the two that the engine is compared with.
        return _median_s(in_turn, rounds), _median_s(lambda: policy.act(observations[0]), rounds)

    sequential, direct = apart(without_engine)
    with (
        # 32 rows are the most that a step is recorded for.
        Engine(policy, BatchingConfig(slots=min(32, robots))) as engine,
        ThreadPoolExecutor(robots) as pool,
    ):
        engine.warm_up(observations[:1])
        together = _median_s(lambda: list(pool.map(engine.act, observations)), rounds)
        alone = _median_s(lambda: engine.act(observations[0]), rounds)
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


def _median_s(run: Callable[[], object], rounds: int) -> float:
    """Seconds of one call, the median of `rounds`."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _parameters(config: ModelConfig) -> int:
    # On the meta device nothing is allocated, however large the model.
    with torch.device("meta"):
        return sum(p.numel() for p in WorldActionTransformer(config).parameters())


def hardware(device: torch.device) -> str:
    """What a measurement was made on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # Not every processor has a model name there; those of ARM do not.
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.machine(),
    )
    # AVX2 or AVX512: of machines with the same name, one may be twice as fast.
    return f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read().splitlines()
    except OSError:
        return []
