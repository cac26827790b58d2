"""The pictures of the report. Each function takes plain numbers and returns a PNG."""

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

INK, MUTED, GRID = "#22303c", "#6b7885", "#e4e8ec"
BLUE, CLAY, GREY = "#2f6f9f", "#c8693f", "#a9b4be"
AGENTS = {"policy": BLUE, "blind": GREY, "random": CLAY}

# Width in inches of the page's text column; with _DPI the pictures are twice as fine as a plain screen.
_WIDTH = 10.0
_DPI = 200
_Z95 = 1.959964


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate (Wilson 1927): sound for few episodes and for 0 %, as the normal one is not."""
    if episodes == 0:
        return 0.0, 1.0
    rate, z2 = successes / episodes, _Z95**2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = _Z95 * float(np.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))) / (1 + z2 / episodes)
    return max(0.0, centre - half), min(1.0, centre + half)


def _plain(axes: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3cbd3")
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=9)
    axes.set_title(title, color=INK, fontsize=10, loc="left", fontweight="bold", pad=8)


def _grid(count: int, columns: int, row_height: float) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, row_height * rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return buffer.getvalue()


def _legend(axes: Axes, **kwargs: Any) -> None:
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, **kwargs)


def losses(curves: Mapping[str, Sequence[tuple[int, float]]], resumed: Mapping[str, Sequence[int]]) -> bytes:
    """One panel per stage: every step thin, a centred mean on top, a dashed line where a killed worker's run went on."""
    figure, panels = _grid(len(curves), 3, 2.7)
    for axes, (stage, points) in zip(panels, curves.items(), strict=True):
        steps, values = np.array([p[0] for p in points]), np.array([p[1] for p in points], dtype=np.float64)
        axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1)
        half = len(values) // 24
        smooth = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
        axes.plot(steps, smooth, color=BLUE, linewidth=1.8)
        for mark in resumed.get(stage, ()):
            axes.axvline(mark, color=CLAY, linestyle=(0, (4, 3)), linewidth=1.3)
            axes.annotate("worker killed,\nrun goes on", (mark, 0.97), xycoords=("data", "axes fraction"), xytext=(5, 0),
                          textcoords="offset points", color=CLAY, fontsize=8, va="top")
        _plain(axes, "step", "loss", stage)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _png(figure)


def strip(frames: np.ndarray) -> bytes:
    """Frames (uint8 [T,H,W,3]) side by side with a white gap."""
    t, h, w, _ = frames.shape
    gap = max(1, w // 32)
    sheet = np.full((h, t * w + (t - 1) * gap, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        sheet[:, i * (w + gap) : i * (w + gap) + w] = frame
    picture = Image.fromarray(sheet)
    # Tiny canvases would be blurred by the browser; whole multiples keep their pixels.
    scale = max(1, 1600 // sheet.shape[1])
    buffer = io.BytesIO()
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(buffer, format="png")
    return buffer.getvalue()


def actions(names: Sequence[str], true: np.ndarray, predicted: np.ndarray) -> bytes:
    """One panel per action dimension, true against predicted ([n,d] each, robot units), with the mean absolute error."""
    figure, panels = _grid(len(names), 4 if len(names) != 3 else 3, 2.1)
    for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
        axes.plot(true[:, i], color=INK, linewidth=1.3, label="recorded")
        axes.plot(predicted[:, i], color=CLAY, linewidth=1.3, label="predicted")
        _plain(axes, "control step", "", name)
        axes.set_title(f"MAE {np.abs(true[:, i] - predicted[:, i]).mean():.3g}", color=MUTED, fontsize=8.5, loc="right", pad=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return _png(figure)


def closed_loop(results: Mapping[str, Mapping[str, tuple[int, int]]]) -> bytes:
    """Success rate per task and agent as points with 95 % intervals. Results: task -> agent -> (successes, episodes)."""
    agents = list(dict.fromkeys(agent for by_agent in results.values() for agent in by_agent))
    figure = Figure(figsize=(_WIDTH, 0.7 + 0.24 * len(agents) * len(results) + 0.16 * len(results)), layout="constrained")
    axes = figure.subplots()
    for a, agent in enumerate(agents):
        shown = [(row, *by_agent[agent]) for row, by_agent in enumerate(results.values()) if agent in by_agent]
        rates = np.array([k / n if n else 0.0 for _, k, n in shown])
        spans = np.array([wilson(k, n) for _, k, n in shown]).T
        heights = [row + (a - (len(agents) - 1) / 2) * 0.24 for row, _, _ in shown]
        axes.errorbar(rates, heights, xerr=np.abs(spans - rates), fmt="o", color=AGENTS.get(agent, MUTED), markersize=6,
                      linewidth=2, label=agent, clip_on=False)
    _plain(axes, "success rate, with 95 % Wilson interval")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_yticks(range(len(results)), list(results), color=INK, fontsize=9.5)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _legend(axes, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(agents), borderaxespad=0.2)
    return _png(figure)


def latency(samples: Mapping[str, Sequence[float]]) -> bytes:
    """Every request as a dot and the median as a bar, one row per way to answer. Milliseconds."""
    figure = Figure(figsize=(_WIDTH, 0.7 + 0.55 * len(samples)), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for row, values in enumerate(samples.values()):
        colour = (BLUE, CLAY, GREY)[row % 3]
        axes.scatter(values, row + rng.uniform(-0.16, 0.16, len(values)), s=9, color=colour, alpha=0.35, linewidths=0)
        median = float(np.median(values))
        axes.vlines(median, row - 0.3, row + 0.3, color=colour, linewidth=2.5)
        axes.annotate(f"p50 {median:.1f} ms", (median, row - 0.33), ha="center", va="bottom", fontsize=8.5, color=colour,
                      fontweight="bold", annotation_clip=False)
    _plain(axes, "milliseconds per chunk")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_yticks(range(len(samples)), list(samples), color=INK, fontsize=9.5)
    axes.set_ylim(len(samples) - 0.5, -0.75)
    axes.set_xlim(left=0)
    return _png(figure)


def fleet(replicas: Sequence[tuple[float, int, int]], latencies: Sequence[tuple[float, float]]) -> bytes:
    """Above: replicas running and requests waiting or under way. Below: each request's latency, with p50 and p95 per interval."""
    figure = Figure(figsize=(_WIDTH, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    if replicas:
        times, running, waiting = (np.array(column) for column in zip(*replicas, strict=True))
        above.fill_between(times, running, step="post", color=BLUE, alpha=0.15, linewidth=0)
        above.step(times, running, where="post", color=BLUE, linewidth=1.8, label="replicas running")
        above.step(times, waiting, where="post", color=CLAY, linewidth=1.2, label="requests waiting or under way")
        _legend(above, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    _plain(above, "", "count")
    above.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    above.set_ylim(bottom=0)
    if latencies:
        times, values = np.array(latencies, dtype=np.float64).T
        below.scatter(times, values, s=6, color=GREY, alpha=0.5, linewidths=0)
        edges = np.linspace(times.min(), times.max() + 1e-9, 31)
        bins = [values[(times >= lo) & (times < hi)] for lo, hi in pairwise(edges)]
        filled = [(middle, chosen) for middle, chosen in zip((edges[:-1] + edges[1:]) / 2, bins, strict=True) if len(chosen)]
        centres = [middle for middle, _ in filled]
        below.plot(centres, [np.percentile(chosen, 95) for _, chosen in filled], color=CLAY, linewidth=1.5, label="p95")
        below.plot(centres, [np.percentile(chosen, 50) for _, chosen in filled], color=BLUE, linewidth=1.8, label="p50")
        _legend(below, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        below.set_ylim(bottom=0)
    _plain(below, "seconds since the load began", "latency, ms")
    return _png(figure)
