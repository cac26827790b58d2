"""Plans as text."""

from collections.abc import Iterator

from pipelines.plan.endpoint import HEADROOM, EndpointPlan
from pipelines.plan.machines import UTILISATION, Assumed
from pipelines.plan.memory import USABLE
from pipelines.plan.stage import StagePlan

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
        f"{_some(plan.micro_batch, 'sample')} at a time, {_passes(plan.passes)}, ZeRO {plan.zero_stage}, "
        f"{_again(plan.recomputed)}"
    )
    yield f"{_big(count)} parameters: {parts}"
    if plan.frozen:
        yield f"{_big(plan.trained)} train, {_big(plan.frozen)} of the transformer do not"
    yield from _memory(plan)
    yield from _cards(plan)
    yield ""
    least, most = (f"{share:.0%}" for share in assumed.shares)
    whose = ", as in published trainings" if assumed.utilisation == UTILISATION else ""
    yield f"time, at {least} to {most} of {assumed.peak / 1e12:.0f} TFLOP/s{whose} (the codec is not counted)"
    yield (
        f"  arithmetic              {plan.flop_sample / 1e12:.3g} TFLOP a sample, "
        f"{figure(plan.flop_step / 1e12)} a step, of {plan.tokens_step:.0f} tokens"
    )
    yield (
        f"  products                {interval(plan.time.products)} s, sending {plan.sent_gb:.3g} GB "
        f"{figure(plan.time.sent)} s, weights and states {figure(plan.time.memory)} s"
    )
    yield f"  step                    {interval(plan.step_s)} s"
    if plan.step_s[1] < _SHORT_S:
        yield "                          so short a step is bound by its overheads, not by arithmetic"
    yield f"  samples a second        {interval(plan.samples_s)}"
    yield f"  the stage               {interval(plan.days)} days, {interval(plan.gpu_hours)} GPU-hours"
    if plan.judge:
        yield f"  judged by               a process with {plan.judge}, beside the steps"
    if plan.price:
        yield f"  price                   {interval(plan.price)}"
    yield ""
    yield f"data, at {assumed.decode_rate:g} pictures a second of a core"
    yield f"  cores for a GPU         {interval(plan.decode_cores)}"
    yield f"  into the object store   {plan.store_mb_s:.3g} MB/s at most, of all workers together"
    yield ""
    yield f"checkpoints, at {assumed.upload_mb:g} MB/s of a worker"
    yield f"  one                     {plan.checkpoint_gb:.3g} GB, {plan.checkpoint_s:.3g} s beside the steps"
    yield f"  room in storage         {plan.kept_gb:.3g} GB"


def _memory(plan: StagePlan) -> Iterator[str]:
    yield ""
    yield "memory of a GPU, GB"
    for name, size in plan.memory.parts.items():
        yield f"  {name:<20}{size / 1e9:8.1f}"
    yield f"  {'all':<20}{plan.memory.total / 1e9:8.1f}"
    yield (
        f"  {'while it loads':<20}{plan.memory.loading / 1e9:8.1f}   "
        f"and {plan.memory.host / 1e9:.1f} of the machine's for each worker"
    )
    yield ""
    sizes = list(next(iter(plan.fitting.values())))
    yield f"samples at a time that fit ({USABLE:.0%} of a GPU is usable)"
    yield "  " + "".join([f"{'ZeRO stage':<12}", *(f"{f'{gb} GB':>8}" for gb in sizes)])
    for stage, row in plan.fitting.items():
        shown = "".join(f"{row[gb] or 'none':>8}" for gb in sizes)
        yield f"  {stage:<12}{shown}"
    if plan.refused:
        yield f"does not fit: {plan.refused}"
    elif plan.cheaper and plan.cheaper_s:
        sets = " ".join(f"--set {text}" for text in plan.cheaper)
        yield (
            f"dearer than it need be: {interval(plan.step_s)} s a step, and {interval(plan.cheaper_s)} s with"
        )
        yield f"  {sets}"


def _cards(plan: StagePlan) -> Iterator[str]:
    yield ""
    yield f"what costs least of what fits, {_some(plan.workers, 'GPU')} of each"
    yield f"  {'':<16}{'ZeRO':>6}{'samples':>9}{'passes':>8}{'again':>7}{'GB':>7}  step, s"
    for gb, choice in plan.cards.items():
        if choice is None:
            yield f"  {gb:>3} GB  nothing fits"
            continue
        numbers = (
            f"{choice.zero_stage:>6}{choice.micro_batch:>9}{choice.passes:>8}{choice.again:>7}"
        )
        memory = f"{choice.memory.peak / 1e9:>7.1f}"
        yield f"  {gb:>3} GB  {choice.gpu:<8}{numbers}{memory}  {interval(choice.time.range)}"
    yield "  (samples at a time, passes of a step, blocks that are computed again)"


def _passes(count: int) -> str:
    return "in 1 pass" if count == 1 else f"in {count} passes"


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _again(blocks: float) -> str:
    return f"{blocks:.0f} blocks computed again" if blocks else "no block computed again"


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


def interval(ends: tuple[float, float]) -> str:
    """Least and most as text."""
    least, most = (figure(end) for end in ends)
    return least if least == most else f"{least} to {most}"


def figure(value: float) -> str:
    """Two digits of a number, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
