"""Plans as text."""

from collections.abc import Iterator

from pipelines.plan.endpoint import HEADROOM, EndpointPlan
from pipelines.plan.memory import USABLE
from pipelines.plan.stage import Assumed, StagePlan

_SHORT_S = 0.05
"""Below it launching kernels and sending gradients take longer than products."""


def show_stage(plan: StagePlan, assumed: Assumed) -> str:
    """A stage's plan for people."""
    return "\n".join(_stage(plan, assumed))


def _stage(plan: StagePlan, assumed: Assumed) -> Iterator[str]:
    count = sum(plan.parameters.values())
    parts = ", ".join(f"{name} {_big(n)}" for name, n in plan.parameters.items())
    yield (
        f"{plan.stage}: {plan.workers} x {plan.gpu}, batch of {plan.global_batch}, "
        f"{plan.micro_batch} samples at a time"
    )
    yield f"{_big(count)} parameters: {parts}"
    yield ""
    yield "memory of a GPU, GB"
    for name, size in plan.memory.parts.items():
        yield f"  {name:<20}{size / 1e9:8.1f}"
    yield f"  {'all':<20}{plan.memory.total / 1e9:8.1f}"
    yield ""
    sizes = list(next(iter(plan.fitting.values())))
    yield f"samples at a time that fit ({USABLE:.0%} of a GPU is usable)"
    yield "  " + "".join([f"{'ZeRO stage':<12}", *(f"{f'{gb} GB':>8}" for gb in sizes)])
    for stage, row in plan.fitting.items():
        shown = "".join(f"{row[gb] or 'none':>8}" for gb in sizes)
        yield f"  {stage:<12}{shown}"
    if plan.refused:
        yield f"does not fit: {plan.refused}"
    yield ""
    least, most = (f"{share:.0%}" for share in sorted(assumed.utilisation))
    yield f"time, at {least} to {most} of {assumed.peak / 1e12:.0f} TFLOP/s (the codec is not counted)"
    yield f"  arithmetic of a sample  {plan.flop_sample / 1e12:.3g} TFLOP"
    yield f"  step                    {_range(plan.step_s)} s"
    if plan.step_s[1] < _SHORT_S:
        yield "                          so short a step is bound by its overheads, not by arithmetic"
    yield f"  samples a second        {_range(plan.samples_s)}"
    yield f"  the stage               {_range(plan.days)} days, {_range(plan.gpu_hours)} GPU-hours"
    if plan.judge:
        yield f"  judged by               a process with {plan.judge}, beside the steps"
    if plan.price:
        yield f"  price                   {_range(plan.price)}"
    yield ""
    yield f"data, at {assumed.decode_rate:g} pictures a second of a core"
    yield f"  cores for a GPU         {_range(plan.decode_cores)}"
    yield f"  into the object store   {plan.store_mb_s:.3g} MB/s at most, of all workers together"
    yield ""
    yield f"checkpoints, at {assumed.upload_mb:g} MB/s of a worker"
    yield f"  one                     {plan.checkpoint_gb:.3g} GB, {plan.checkpoint_s:.3g} s beside the steps"
    yield f"  room in storage         {plan.kept_gb:.3g} GB"


def show_endpoint(plan: EndpointPlan) -> str:
    """An endpoint's plan for people."""
    return "\n".join(_endpoint(plan))


def _endpoint(plan: EndpointPlan) -> Iterator[str]:
    yield (
        f"{plan.robots} robots at {plan.rate_hz:g} Hz: {plan.requests_s:g} requests a second, "
        f"99 % of them within {plan.bound_ms:g} ms"
    )
    yield (
        f"one engine: {plan.one.requests_s:.3g} a second at {plan.one.p99_ms:.0f} ms "
        f"(of {plan.engine_ms:.0f} that the service leaves it), measured on {plan.hardware}"
    )
    yield (
        f"replicas: {plan.replicas} at {HEADROOM:.0%} of that, {plan.spare} with one that may be lost"
    )
    if not plan.enough:
        yield (
            f"too few: autoscaling.max_replicas is {plan.most}; set it to {plan.spare} or more, and "
            "min_replicas with it for a fleet that joins at once"
        )


def _big(count: int) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return str(count)


def _range(ends: tuple[float, float]) -> str:
    least, most = (_figure(end) for end in ends)
    return least if least == most else f"{least} to {most}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
