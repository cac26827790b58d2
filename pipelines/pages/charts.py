"""The charts of the pages. Each function takes plain numbers and returns a PNG."""

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from pipelines.pages.axes import (
    AGENTS,
    BLUE,
    CLAY,
    GREY,
    INK,
    MUTED,
    WIDTH,
    legend_of,
    name_in_chart,
    named_rows,
    panels_of,
    plain_axes,
    png,
)
from pipelines.pages.intervals import wilson

_STRIP_WIDTH = 1600
"""Pixels up to which a strip of small frames is enlarged."""


def losses(
    curves: Mapping[str, Sequence[tuple[int, float]]], resumed: Mapping[str, Sequence[int]]
) -> bytes:
    """One panel per stage: every logged step thin and a centred mean on top.

    curves: stage -> (step, loss); resumed: stage -> steps where a worker was killed and the run
    went on, each a dashed line
    """
    figure, panels = panels_of(len(curves), 3, 2.7)
    for axes, (stage, points) in zip(panels, curves.items(), strict=True):
        steps = np.array([step for step, _ in points])
        values = np.array([loss for _, loss in points], dtype=np.float64)
        axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1)
        # A window of a twelfth of the curve, cut off at its ends.
        half = len(values) // 24
        smooth = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
        axes.plot(steps, smooth, color=BLUE, linewidth=1.8)
        for step in resumed.get(stage, ()):
            axes.axvline(step, color=CLAY, linestyle=(0, (4, 3)), linewidth=1.3)
            # At the top of the panel, whatever the losses are.
            axes.annotate(
                "worker killed,\nrun goes on",
                (step, 0.97),
                xycoords=("data", "axes fraction"),
                xytext=(5, 0),
                textcoords="offset points",
                color=CLAY,
                fontsize=8,
                va="top",
            )
        plain_axes(axes, "step", "loss", stage)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return png(figure)


def strip(frames: np.ndarray) -> bytes:
    """Frames (uint8 [T,H,W,3]) side by side with a white gap."""
    t, h, w, _ = frames.shape
    gap = max(1, w // 32)
    sheet = np.full((h, t * w + (t - 1) * gap, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        sheet[:, i * (w + gap) : i * (w + gap) + w] = frame
    picture = Image.fromarray(sheet)
    # Tiny canvases would be blurred by the browser; whole multiples keep their pixels.
    scale = max(1, _STRIP_WIDTH // sheet.shape[1])
    size = (picture.width * scale, picture.height * scale)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, format="png")
    return buffer.getvalue()


def actions(names: Sequence[str], recorded: np.ndarray, predicted: np.ndarray) -> bytes:
    """One panel per action dimension with its mean absolute error.

    recorded, predicted: [n,d] each, robot units
    """
    columns = 4 if len(names) != 3 else 3
    figure, panels = panels_of(len(names), columns, 2.1)
    for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
        # The recording broad and pale below the prediction, so that one does not hide the other.
        axes.plot(recorded[:, i], color=INK, alpha=0.35, linewidth=3, label="recorded")
        axes.plot(predicted[:, i], color=CLAY, linewidth=1.2, label="predicted")
        error = np.abs(recorded[:, i] - predicted[:, i]).mean()
        ylabel = "robot units" if i % columns == 0 else ""
        plain_axes(axes, f"control step (MAE {error:.3g})", ylabel, name)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _legend_of_all(figure, panels[0])
    return png(figure)


def episode(
    names: Sequence[str], seconds: np.ndarray, state: np.ndarray, action: np.ndarray
) -> bytes:
    """One panel per action dimension over an episode, with the state of the same number.

    names: the dimensions to draw, the first of the d; seconds: [n]; action: [n,d], state: [n,s],
    robot units. Deltas are taken from that state.
    """
    columns = 4 if len(names) > 6 else min(3, len(names))
    figure, panels = panels_of(len(names), columns, 1.6)
    for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
        if i < state.shape[1]:
            axes.plot(seconds, state[:, i], color=CLAY, linewidth=1.2, label="state")
        axes.plot(seconds, action[:, i], color=BLUE, linewidth=1.2, label="action")
        bottom = i >= len(names) - columns
        plain_axes(
            axes, "seconds" if bottom else "", "robot units" if i % columns == 0 else "", name
        )
        axes.yaxis.set_major_locator(MaxNLocator(4))
    _legend_of_all(figure, panels[0])
    return png(figure, dpi=150)


def _legend_of_all(figure: Figure, panel: Axes) -> None:
    """The legend of one panel above all of them."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper right",
        ncols=len(labels),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )


def closed_loop(results: Mapping[str, Mapping[str, tuple[int, int]]]) -> bytes:
    """Success rate per task and agent as points with 95 % intervals.

    results: task -> agent -> (successes, episodes)
    """
    agents = list(dict.fromkeys(agent for by_agent in results.values() for agent in by_agent))
    # Inches: margins, a line per agent and task, and a gap per task.
    height = 0.7 + 0.24 * len(agents) * len(results) + 0.16 * len(results)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for position, agent in enumerate(agents):
        # Agents of a task stand side by side around its row.
        offset = (position - (len(agents) - 1) / 2) * 0.24
        rows = [row for row, by_agent in enumerate(results.values()) if agent in by_agent]
        counts = [by_agent[agent] for by_agent in results.values() if agent in by_agent]
        rates = np.array([won / episodes if episodes else 0.0 for won, episodes in counts])
        intervals = np.array([wilson(won, episodes) for won, episodes in counts]).T
        colour, marker = AGENTS.get(agent, (MUTED, "D"))
        axes.errorbar(
            rates,
            [row + offset for row in rows],
            # `[2, n]`: distances to both ends, which are not equal.
            xerr=np.abs(intervals - rates),
            fmt=marker,
            color=colour,
            markersize=6,
            linewidth=2,
            label=name_in_chart(agent),
            # Points at 0 and 100 % would be cut in half.
            clip_on=False,
        )
    plain_axes(axes, "success rate, with 95 % Wilson interval")
    named_rows(axes, list(results))
    # Upside down: the first task stands on top.
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    legend_of(axes, ncols=len(agents))
    return png(figure)


def latency(samples: Mapping[str, Sequence[float]]) -> bytes:
    """Every request as a dot and the median as a bar, one row per way to answer. Milliseconds."""
    figure = Figure(figsize=(WIDTH, 0.7 + 0.55 * len(samples)), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for row, values in enumerate(samples.values()):
        colour = (BLUE, CLAY, GREY)[row % 3]
        # Scattered, so that equal values are seen; seeded, so that a page can be made again.
        heights = row + rng.uniform(-0.16, 0.16, len(values))
        axes.scatter(values, heights, s=9, color=colour, alpha=0.35, linewidths=0)
        median = float(np.median(values))
        axes.vlines(median, row - 0.3, row + 0.3, color=colour, linewidth=2.5)
        axes.annotate(
            f"p50 {median:.1f} ms",
            (median, row - 0.33),
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )
    plain_axes(axes, "milliseconds per chunk")
    named_rows(axes, list(samples))
    # Room above the first row for its label.
    axes.set_ylim(len(samples) - 0.5, -0.75)
    axes.set_xlim(left=0)
    return png(figure)


def fleet(
    replicas: Sequence[tuple[float, int, int]], latencies: Sequence[tuple[float, float]]
) -> bytes:
    """Above: replicas and requests. Below: each request's latency, with p50 and p95 over time.

    replicas: (seconds, replicas running, requests waiting or under way); latencies: (seconds,
    milliseconds) of each request; seconds since the load began
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    if replicas:
        times, running, waiting = (np.array(column) for column in zip(*replicas, strict=True))
        # A count holds from its sample to the next.
        above.fill_between(times, running, step="post", color=BLUE, alpha=0.15, linewidth=0)
        above.step(
            times,
            waiting,
            where="post",
            color=CLAY,
            linewidth=1.2,
            label="requests waiting or under way",
        )
        above.step(
            times, running, where="post", color=BLUE, linewidth=2.2, label="replicas running"
        )
        legend_of(above, ncols=2)
    plain_axes(above, "", "count")
    above.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    above.set_ylim(bottom=0)
    if latencies:
        times, values = np.array(latencies, dtype=np.float64).T
        below.scatter(times, values, s=6, color=GREY, alpha=0.5, linewidths=0, label="one request")
        _percentiles_over_time(below, times, values)
        legend_of(below, ncols=3)
        below.set_ylim(bottom=0)
    plain_axes(below, "seconds since the load began", "latency, ms")
    return png(figure)


def _percentiles_over_time(
    axes: Axes, times: np.ndarray, values: np.ndarray, intervals: int = 30
) -> None:
    """p95 and p50 of equal intervals of time; an interval without requests has no point."""
    # A little more than the last time, so that the last interval holds it.
    edges = np.linspace(times.min(), times.max() + 1e-9, intervals + 1)
    points = []
    for low, high in pairwise(edges):
        chosen = values[(times >= low) & (times < high)]
        if len(chosen):
            p50, p95 = np.percentile(chosen, (50, 95))
            points.append(((low + high) / 2, p50, p95))
    centres, medians, tails = zip(*points, strict=True)
    axes.plot(centres, tails, color=CLAY, linewidth=1.5, linestyle=(0, (5, 2)), label="p95")
    axes.plot(centres, medians, color=BLUE, linewidth=1.8, label="p50")
