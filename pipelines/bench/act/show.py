"""The figures of `gwp bench act` for a terminal, and as a picture."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from pipelines.pages.axes import BLUE, CLAY, GREY, MUTED


def table(r: dict[str, Any]) -> str:
    """Everything that was measured, with what it was measured on."""
    made_with = (
        r["hardware"],
        r["device"],
        r["dtype"],
        f"{r['threads']} threads",
        f"torch {r['torch']}",
        f"warm-up {r['warm_up']}",
        f"{r['repeats']} interleaved calls",
    )
    return "\n".join(
        [
            (
                f"{r['family']} {r['size']} {r['visibility']}: {r['parameters'] / 1e6:.1f} M "
                f"parameters, batch {r['batch']}, {r['steps']} steps"
            ),
            f"  tokens: {', '.join(f'{name} {count}' for name, count in r['tokens'].items())}",
            f"  {', '.join(made_with)}",
            f"  cached: {r['cached']}",
            *(
                f"  {name:14} p50 {ms['p50']:9.2f}  p95 {ms['p95']:9.2f}  p99 {ms['p99']:9.2f} ms"
                for name, ms in r["ms"].items()
            ),
            *_acting(r),
            *_engine(r["engine"]),
            *_floors(r["floors"]),
            *_crowds(r["crowds"]),
            *_trace(r["trace"]),
            "  ratios: " + ", ".join(f"{name} {value:.2f}" for name, value in r["ratios"].items()),
        ]
    )


def _acting(r: dict[str, Any]) -> list[str]:
    by_batch = ", ".join(
        # All observations of a pass are answered together.
        f"{b}: {ms['p50']:.1f} ms ({int(b) * 1e3 / ms['p50']:.1f} chunks/s)"
        for b, ms in r["by_batch"].items()
    )
    by_steps = ", ".join(f"{n}: {ms['p50']:.1f} ms" for n, ms in r["by_steps"].items())
    whole = r["request_ms"]
    phases = ", ".join(f"{name} {ms:.1f}" for name, ms in r["phases_ms"].items())
    return [
        f"  acting by batch: {by_batch}",
        f"  acting by steps: {by_steps}",
        (
            f"  whole request: p50 {whole['p50']:.1f}  p95 {whole['p95']:.1f}  "
            f"p99 {whole['p99']:.1f} ms"
        ),
        f"  of which: {phases} ms",
    ]


def _engine(engine: dict[str, Any]) -> list[str]:
    together = engine["engine_s"] * 1e3
    in_turn = engine["sequential_s"] * 1e3
    return [
        (
            f"  engine: {engine['robots']} robots at once {together:.0f} ms, in turn "
            f"{in_turn:.0f} ms ({engine['throughput_ratio']:.2f}x)"
        ),
        (
            f"  engine: one robot {engine['alone_ms']:.1f} ms, without the engine "
            f"{engine['direct_ms']:.1f} ms ({engine['alone_ratio']:.2f}x)"
        ),
    ]


def _floors(floors: dict[str, Any]) -> list[str]:
    return [
        (
            f"  this machine: {floors['gflops_per_s']:.0f} GFLOP/s in one large product, "
            f"{floors['gb_per_s']:.1f} GB/s reading"
        ),
        (
            f"  floor of acting: {floors['gflop']:.1f} GFLOP, {floors['weights_gb']:.2f} GB of "
            f"weights: {floors['ms']:.1f} ms"
        ),
        f"  acting is {floors['distance']:.2f}x its floor",
    ]


def _crowds(crowds: dict[str, Any] | None) -> list[str]:
    if crowds is None:
        return []
    rows = [
        (
            f"    {row['robots']:4} robots  p50 {row['p50']:8.1f}  p95 {row['p95']:8.1f}  p99 "
            f"{row['p99']:8.1f} ms  {row['requests']} requests"
        )
        for row in crowds["rows"]
    ]
    return [
        f"  robots that ask every {crowds['period_s']:.2f} s, {crowds['seconds']:g} s each:",
        *rows,
        f"  robots with p99 within {crowds['bound_ms']:g} ms: {crowds['robots']}",
    ]


def _trace(rows: list[dict[str, Any]] | None) -> list[str]:
    if rows is None:
        return []
    lines = [
        f"    {row['ms']:8.3f} ms  {row['calls']:7.1f} calls  {row['name'][:80]}" for row in rows
    ]
    return ["  most of a request:", *lines]


def draw(results: Sequence[dict[str, Any]]) -> bytes:
    """PNG: milliseconds per case and family, median with the 95th percentile as a whisker."""
    figure = Figure(figsize=(9, 2.6 * len(results)), dpi=150, layout="constrained")
    for axes, r in zip(figure.subplots(len(results), 1, squeeze=False)[:, 0], results, strict=True):
        # Acting first: it is what the others are a multiple of.
        names = ["act", "act_uncached", "imagine", "joint_cached", "joint"]
        p50 = [r["ms"][name]["p50"] for name in names]
        p95 = [r["ms"][name]["p95"] for name in names]
        axes.barh(names, p50, color=[BLUE, GREY, GREY, CLAY, CLAY], height=0.6)
        axes.errorbar(
            p50,
            names,
            # To one side: from the median up to the 95th percentile.
            xerr=[[0] * len(names), [max(0, b - a) for a, b in zip(p50, p95, strict=True)]],
            fmt="none",
            ecolor=MUTED,
        )
        for name, value in zip(names, p50, strict=True):
            axes.annotate(
                f"{value:.1f} ms ({value / p50[0]:.1f}x)",
                (max(value, p95[names.index(name)]), name),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=MUTED,
            )
        # In each panel, because every family has a floor of its own.
        axes.axvline(r["floors"]["ms"], color=MUTED, linestyle=":", linewidth=1)
        axes.invert_yaxis()
        # Room for the figures behind the longest bar.
        axes.set_xlim(0, max(p95) * 1.2)
        axes.spines[["top", "right"]].set_visible(False)
        title = (
            f"{r['family']}, {r['visibility']}, {r['size']}, batch {r['batch']}, {r['steps']} steps, "
            f"{r['dtype']}, {r['hardware']}"
        )
        axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(
        "milliseconds per chunk; dotted: floor of acting by arithmetic and weight traffic",
        fontsize=9,
        color=MUTED,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
