"""All of `gwp bench train`, and the ratios that come of it.

Sides on tensors in memory take turns; the whole stack runs between two such rounds, and is compared
with the mean of both: machines drift.
"""

import os
import statistics
from typing import Any

import torch

from gwp.errors import GwpError
from gwp.model.cost import parameter_counts, tokens_of, training_flop
from pipelines.bench.act.bench import hardware
from pipelines.bench.act.sizes import SIZES
from pipelines.bench.train.problem import LATENT_FRAMES, Problem
from pipelines.bench.train.stack import Whole, whole_stack
from pipelines.bench.train.turns import Side, sides, take_turns

ZERO = (0, 1, 2, 3)
_WARM = 3


def bench_train(
    problem: Problem,
    rounds: int,
    steps: int,
    zero: int = 1,
    whole_steps: int = 200,
    compiled: bool = False,
) -> dict[str, Any]:
    """Every side, and the ratios between them.

    rounds, steps: of the sides in memory; zero: stage of the whole stack; whole_steps: its steps
    behind the first ones, 0 leaves it out; compiled: measure compiled blocks, too
    """
    if problem.device == "cuda" and not torch.cuda.is_available():
        raise GwpError(
            "--device cuda: this torch sees no GPU; see `gwp doctor`, or use --device cpu"
        )
    # Without masters of its own, DeepSpeed's plain path does not train in bf16.
    stages = [stage for stage in ZERO if stage or problem.precision == "fp32"]
    names = ["bare", "masked", "materialised", "products", *(f"zero {stage}" for stage in stages)]
    if compiled:
        names.append("compiled")
    load = os.getloadavg()[0]
    with sides(names, problem, _WARM) as started:
        take_turns(started, rounds, steps)
    found = {name: _figures(side) for name, side in started.items()}
    result = {
        **_circumstances(problem, rounds, steps),
        "load_before": load,
        "parameters": _parameters(problem),
        "gflop_per_step": _flop(problem) / 1e9,
        "tflop_per_s": _flop(problem) / found["bare"]["wall_s"] / 1e12,
        "sides": found,
        "ratios": {
            "zero": {str(n): _ratio(started, "bare", f"zero {n}") for n in stages},
            "zero_cpu_time": {str(n): _ratio(started, "bare", f"zero {n}", "cpu") for n in stages},
            "segment_vs_masked": _ratio(started, "masked", "bare"),
            "segment_vs_materialised": _ratio(started, "materialised", "bare"),
        },
        "step_vs_products": _ratio(started, "bare", "products"),
    }
    if compiled:
        result["ratios"]["compiled"] = _ratio(started, "bare", "compiled")
        result["compiled_vs_products"] = _ratio(started, "compiled", "products")
    if whole_steps:
        result |= _beside_whole(problem, rounds, steps, whole_steps, zero, result)
    return result


def _beside_whole(
    problem: Problem, rounds: int, steps: int, whole_steps: int, zero: int, result: dict[str, Any]
) -> dict[str, Any]:
    whole = whole_stack(problem, whole_steps, zero)
    with sides(["bare"], problem, _WARM) as started:
        take_turns(started, rounds, steps)
    before = result["sides"]["bare"]["wall_s"]
    after = _figures(started["bare"])["wall_s"]
    return {
        "whole": vars(whole) | {"zero_stage": zero, "bare_s": [before, after]},
        "data_wait_share": whole.data_share,
        "checkpoint_share": whole.checkpoint_share,
        "ratios": result["ratios"] | _against(whole, before, after),
    }


def _against(whole: Whole, before: float, after: float) -> dict[str, float]:
    return {"vs_bare_loop": (before + after) / 2 / whole.step_s}


def _figures(side: Side) -> dict[str, float]:
    return {
        "wall_s": statistics.median(side.wall),
        "cpu_s": statistics.median(side.cpu),
        "fastest_s": min(side.wall),
        "slowest_s": max(side.wall),
    }


def _ratio(started: dict[str, Side], above: str, below: str, clock: str = "wall") -> float:
    """Median over the rounds of one side's seconds over another's."""
    a, b = getattr(started[above], clock), getattr(started[below], clock)
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _circumstances(problem: Problem, rounds: int, steps: int) -> dict[str, Any]:
    return {
        **vars(problem),
        "hardware": hardware(torch.device(problem.device)),
        "torch": torch.__version__,
        "rounds": rounds,
        "steps": steps,
        "warm_up": _WARM,
    }


def _parameters(problem: Problem) -> int:
    return sum(parameter_counts(problem.job().model_config_).values())


def _flop(problem: Problem) -> int:
    """Of a step."""
    size = SIZES[problem.size]
    config = problem.job().model_config_
    tokens = tokens_of(config, (LATENT_FRAMES, *size.latent), size.chunk)
    return training_flop(config, tokens, size.text[0]) * problem.batch
