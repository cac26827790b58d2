"""The charts of a study. Each function takes plain numbers and returns a PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from pipelines.pages.axes import (
    BLUE,
    CLAY,
    GREY,
    INK,
    legend_of,
    name_in_chart,
    panels_of,
    plain_axes,
    png,
)

# Shapes differ as well, for readers who do not tell the colours apart. All have a contrast of 3:1.
_LOOKS = (
    (BLUE, "o"),
    (CLAY, "s"),
    ("#4c7a34", "^"),
    ("#8a5a9e", "D"),
    (GREY, "v"),
    ("#a8872a", "P"),
    ("#22303c", "X"),
    ("#b0476b", "<"),
)
_NAME = 36


@dataclass(frozen=True)
class Point:
    """A mean with its interval, at a place along x."""

    x: float
    mean: float
    low: float
    high: float


def _look(number: int) -> tuple[str, str]:
    return _LOOKS[number % len(_LOOKS)]


def success_against_latency(
    points: Mapping[str, Point], controls: Mapping[str, float], measure: str
) -> bytes:
    """One point per arm. x: milliseconds of a chunk; controls: agent -> rate, a dotted line each;
    measure: name of the closed loop
    """
    figure, (axes,) = panels_of(1, 1, 3.6)
    for number, (arm, point) in enumerate(points.items()):
        colour, marker = _look(number)
        _error_bar(axes, [point], colour, marker, name_in_chart(arm, _NAME), line="")
    _controls(axes, controls)
    plain_axes(axes, "milliseconds per chunk, one robot alone (log scale)", measure)
    _log(axes, [point.x for point in points.values()])
    _rates(axes)
    legend_of(axes, ncols=4)
    return png(figure)


def success_against_demonstrations(
    lines: Mapping[str, Sequence[Point]], controls: Mapping[str, float], measure: str
) -> bytes:
    """One line per arm. x: demonstrations of a task; the rest as of `success_against_latency`"""
    figure, (axes,) = panels_of(1, 1, 3.6)
    places = sorted({point.x for points in lines.values() for point in points})
    for number, (arm, points) in enumerate(lines.items()):
        colour, marker = _look(number)
        # A little beside each other, so that bars do not hide bars.
        shift = 1 + 0.02 * (number - (len(lines) - 1) / 2)
        beside = [Point(point.x * shift, point.mean, point.low, point.high) for point in points]
        _error_bar(axes, beside, colour, marker, name_in_chart(arm, _NAME), line="-")
    _controls(axes, controls)
    plain_axes(axes, "demonstrations of each task (log scale)", measure)
    _log(axes, places)
    axes.set_xticks(places, [f"{place:g}" for place in places])
    _rates(axes)
    legend_of(axes, ncols=4)
    return png(figure)


def curves(arms: Mapping[str, Sequence[Sequence[Sequence[float]]]], title: str) -> bytes:
    """Error of actions against optimiser steps: each seed thin, their mean at common steps on top.

    arms: arm -> seed -> (step, error)
    """
    figure, (axes,) = panels_of(1, 1, 3.2)
    for number, (arm, seeds) in enumerate(arms.items()):
        colour, _ = _look(number)
        for curve in seeds:
            axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.3, linewidth=1)
        common = sorted(set.intersection(*({step for step, _ in curve} for curve in seeds)))
        found = [{step: value for step, value in curve} for curve in seeds]  # noqa: C416  pairs are lists
        means = [float(np.mean([curve[step] for curve in found])) for step in common]
        axes.plot(common, means, color=colour, linewidth=2, label=name_in_chart(arm, _NAME))
    plain_axes(axes, "optimiser step", "error, in units of a range", title)
    axes.set_ylim(bottom=0)
    legend_of(axes, ncols=4)
    return png(figure)


def _error_bar(
    axes: Axes, points: Sequence[Point], colour: str, marker: str, label: str, line: str
) -> None:
    means = np.array([point.mean for point in points])
    ends = np.array([[point.low, point.high] for point in points]).T
    axes.errorbar(
        [point.x for point in points],
        means,
        yerr=np.abs(ends - means),
        fmt=marker + line,
        color=colour,
        markersize=7,
        linewidth=1.8,
        label=label,
        clip_on=False,
    )


def _controls(axes: Axes, controls: Mapping[str, float]) -> None:
    for number, (agent, rate) in enumerate(controls.items()):
        axes.axhline(rate, color=GREY, linewidth=1.2, linestyle=(0, (2, 3)))
        axes.annotate(
            name_in_chart(agent),
            # Side by side: the lines may lie on each other.
            (1 - 0.09 * number, rate),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=INK,
        )


def _log(axes: Axes, places: Sequence[float]) -> None:
    axes.set_xscale("log")
    # Room beside the outermost points, also where there is one alone.
    axes.set_xlim(min(places) / 1.35, max(places) * 1.35)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _rates(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
