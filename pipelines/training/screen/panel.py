"""A stage that is being trained as one picture of the terminal, for `rich`."""

import itertools
import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.training.measure.clock import PHASES
from pipelines.training.screen.seen import Seen, span

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 40
_BAR = 40
_COLOURS = {
    "data": "red",
    "transfer": "magenta",
    "encode": "cyan",
    "forward": "green",
    "backward": "blue",
    "optimiser": "yellow",
    "exchange": "bright_magenta",
    "validation": "bright_cyan",
    "checkpoint": "bright_yellow",
    "rest": "bright_black",
}
# Share of the time that steps wait for data from which on it is coloured: more decoders would help.
_BOUND = 0.05


def panel(seen: Seen, now: float) -> RenderableType:
    """All of it. now: on the clock of `seen`"""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column()
    for name, value in (
        ("loss", _losses(seen)),
        ("validation", _validation(seen)),
        ("speed", _speed(seen)),
        ("device", _device(seen)),
        ("a step", _phases(seen)),
        ("data", _data(seen)),
        ("checkpoint", _checkpoint(seen, now)),
        ("workers", _workers(seen)),
    ):
        if value is not None:
            rows.add_row(name, value)
    parts: list[RenderableType] = [_progress(seen, now), Text(""), rows]
    if seen.warnings:
        warnings = Table.grid(padding=(0, 2))
        for moment, text in seen.warnings:
            ago = Text(f"{span(now - moment)} ago", style="bright_black")
            warnings.add_row(Text("!", style="bold yellow"), ago, Text(text, style="yellow"))
        parts += [Text(""), warnings]
    title = f"[bold]{escape(seen.stage)}[/bold]: {escape(seen.run)}"
    return Panel(Group(*parts), title=title, title_align="left", padding=(1, 2))


def _progress(seen: Seen, now: float) -> RenderableType:
    row = Table.grid(padding=(0, 2))
    left = seen.left()
    share = seen.step / seen.total if seen.total else 0.0
    row.add_row(
        ProgressBar(seen.total, seen.step, _BAR, complete_style="cyan"),
        Text(f"step {seen.step} of {seen.total}", style="bold"),
        Text(f"{share:.0%}"),
        Text(f"{span(now - seen.began)} so far"),
        Text("" if left is None else f"{span(left)} left", style="bold"),
    )
    return row


def _losses(seen: Seen) -> RenderableType | None:
    if not seen.losses:
        return None
    report = seen.report
    parts = [
        f"{word} {report[name]:.4g}"
        for name, word in (("loss_action", "actions"), ("loss_video", "video"))
        if name in report
    ]
    values = [loss for _, loss in seen.losses]
    return Text.assemble(
        (f"{values[-1]:.4g}", "bold"),
        f"  {curve(values, _CURVE)}  ",
        ("  ".join(parts), "bright_black"),
    )


def _validation(seen: Seen) -> RenderableType | None:
    if not seen.validation:
        return None
    step, loss = seen.validation[-1]
    best, lowest = min(seen.validation, key=lambda one: one[1])
    told = f"best {lowest:.4g} at step {best}" if best != step else "the best so far"
    return Text.assemble(
        (f"{loss:.4g}", "bold"),
        f"  {curve([value for _, value in seen.validation], _CURVE)}  ",
        (told, "bright_black"),
    )


def _speed(seen: Seen) -> RenderableType | None:
    figures = seen.figures
    if "speed/samples_per_s" not in figures:
        return None
    return Text(
        f"{figures['speed/samples_per_s']:.3g} samples/s  "
        f"{figures['speed/tokens_per_s']:,.0f} tokens/s  {figures['time/step']:.3g} s a step"
    )


def _device(seen: Seen) -> RenderableType | None:
    figures = seen.figures
    if "speed/mfu" not in figures:
        return None
    memory = "".join(
        f"  {figures[name]:.3g} GiB of {word}"
        for name, word in (("memory/device_gib", "the GPU"), ("memory/process_gib", "memory"))
        if name in figures
    )
    return Text.assemble(
        (f"MFU {figures['speed/mfu']:.1%}", "bold"),
        f"  {figures['speed/tflop_per_s']:.3g} TFLOP/s{memory}",
    )


def _phases(seen: Seen) -> RenderableType | None:
    """Where the time of steps goes: a bar, and the longest of it in words."""
    figures = seen.figures
    whole = figures.get("time/step", 0.0)
    if whole <= 0:
        return None
    shares = {name: figures[f"time/{name}"] / whole for name in PHASES}
    bar, drawn = Text(), 0
    reached = 0.0
    for name, share in shares.items():
        reached += share
        width = round(reached * _BAR) - drawn
        bar.append("█" * width, style=_COLOURS[name])
        drawn += width
    for name, share in sorted(shares.items(), key=lambda one: -one[1])[:3]:
        if share >= 0.005:
            bar.append(f"  {name} {share:.0%}", style=_COLOURS[name])
    return bar


def _data(seen: Seen) -> RenderableType | None:
    share = seen.figures.get("data_wait_share")
    if share is None:
        return None
    skipped = seen.report.get("skipped", 0)
    return Text.assemble(
        (f"{share:.1%} data-bound", "bold red" if share > _BOUND else ""),
        (f"  {skipped} samples could not be decoded" if skipped else "", "red"),
    )


def _checkpoint(seen: Seen, now: float) -> RenderableType:
    found = seen.checkpoint(now)
    if found is None:
        return Text(f"none yet, every {seen.every} steps", style="bright_black")
    step, age = found
    return Text(f"step {step}, {span(age)} ago, every {seen.every} steps")


def _workers(seen: Seen) -> RenderableType:
    total = seen.started.get("total")
    return Text.assemble(
        f"{seen.workers}" if seen.workers else "none yet",
        (f"  {seen.phase}" if seen.phase else "", "yellow"),
        (f"  first step after {span(total)}" if total else "", "bright_black"),
    )


def curve(values: Sequence[float], width: int) -> str:
    """Numbers as a line of blocks, the oldest left; of more than `width` the means of some."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    size = min(width, len(known))
    edges = [len(known) * i // size for i in range(size + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in means)
