"""What the demo's summary says beside the measurements: figures of its parts, its caveats, and
what did not happen.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation.fleet import FleetResult
from pipelines.training.train import StageResult

CAVEATS = [
    (
        "A small model on 64-pixel frames, trained for minutes on two CPU cores: that the line "
        "works, not how good published models are."
    ),
    (
        "Blind replays an expert's actions from another start without looking; what it wins says "
        "how much of a task needs no camera."
    ),
    (
        "One training seed. Success rates come from few episodes; the intervals beside them are "
        "Wilson intervals at 95 %."
    ),
    (
        "CPU latency of a tiny model: only the ratio of acting to joint decoding says something, "
        "and fixed costs make it small here."
    ),
    (
        "The fleet, its simulators and the replicas share the same cores, so request latency "
        "includes that contention."
    ),
    (
        "Robots that join ask from their starting pose until one more replica has loaded; "
        "percentiles leave those requests out."
    ),
]


def stage_figures(result: StageResult, losses: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """One stage. losses: (step, loss) as logged."""
    # Means of a few, because the loss of a single step is noisy.
    values = [value for _, value in losses]
    return {
        "run_id": result.run_id,
        "steps": result.steps,
        "first_loss": float(np.mean(values[:3])),
        "last_loss": float(np.mean(values[-5:])),
        "samples": result.samples,
        "seconds": round(result.seconds, 1),
    }


def fleet_figures(fleet: FleetResult, robots: int) -> dict[str, Any]:
    """The fleet: requests, latencies of the episodes and before them, replicas and when they
    came and went.
    """
    # Of (time, running, starting) twice a second.
    counts = [running for _, running, _ in fleet.samples] or [0]
    gathering = sum(r["gathering"] for r in fleet.requests)
    figures = {
        "robots": robots,
        "requests": len(fleet.requests),
        "failed": fleet.failed,
        "p50_ms": fleet.latency_ms(50),
        "p99_ms": fleet.latency_ms(99),
        "replicas_min": min(counts),
        "replicas_max": max(counts),
        "errors": fleet.errors,
        "scaling": fleet.scaling,
    }
    # Apart: before their episodes robots ask more than one replica can answer, on purpose.
    if gathering:
        before = {
            "requests": gathering,
            "p50_ms": fleet.latency_ms(50, True),
            "p99_ms": fleet.latency_ms(99, True),
        }
        figures["gathering"] = before
    return figures


def shortfalls(summary: Mapping[str, Any]) -> list[str]:
    """A line for everything that the demo set out to show and that did not happen, from its
    summary.
    """
    # After the cuts: those are told apart.
    size = summary["size"]
    lines = []
    for name, stage in summary["stages"].items():
        if stage["steps"] < size[f"{name}_steps"]:
            lines.append(f"stage {name} ended at step {stage['steps']} of {size[f'{name}_steps']}")
        # Not `>=`: a loss that is no number has not fallen either.
        if not stage["last_loss"] < stage["first_loss"]:
            lines.append(
                f"the loss of stage {name} did not fall: {stage['first_loss']:.3g} to "
                f"{stage['last_loss']:.3g}"
            )
    if not summary["resume"]:
        lines.append("no worker was killed: the policy stage was over first")
    elif "resumed_from_step" not in summary["resume"]:
        lines.append("a worker was killed, and nothing resumed from a checkpoint")
    return lines + _fleet_shortfalls(summary["fleet"])


def _fleet_shortfalls(fleet: Mapping[str, Any]) -> list[str]:
    lines = []
    scaling = fleet["scaling"]
    # None: it never happened.
    if scaling["up_s"] is None:
        why = "none was asked for"
        if scaling["asked_s"] is not None:
            why = f"one was asked for after {scaling['asked_s']:g} s and did not load in time"
        lines.append(f"the fleet brought no further replica: {why}")
    elif scaling["down_s"] is None:
        lines.append("the replicas that came with the fleet did not go when it had ended")
    if fleet["failed"]:
        first = f"; first: {fleet['errors'][0]}" if fleet["errors"] else ""
        lines.append(
            f"{fleet['failed']} of {fleet['requests']} requests or robots of the fleet failed{first}"
        )
    return lines


def environment() -> dict[str, str]:
    """Hardware and versions, for the report."""
    from importlib.metadata import version

    import torch

    # Linux alone has it.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    # ARM's kernels do not name the model.
    cpu = models[0] if models else "?"
    packages = ("gwp", "torch", "ray", "deepspeed", "mlflow", "mujoco")
    return {
        "machine": f"{os.cpu_count()} cores, {cpu}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{p: version(p) for p in packages},
    }
