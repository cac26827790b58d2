"""What all charts of the pages share: colours, sizes, axes and legends.

Names of tasks, agents and dimensions come from data: they are drawn as they are (a `$` begins no
formula) and shortened where they would not fit.
"""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Every colour of a line or point has a contrast of 3:1 and more on white, MUTED and INK 5:1.
INK = "#22303c"
MUTED = "#55626e"
GRID = "#e4e8ec"
BLUE = "#2f6f9f"
CLAY = "#c05f34"
GREY = "#818c97"
# Agents differ by shape as well, for readers who do not tell the colours apart.
AGENTS = {"policy": (BLUE, "o"), "blind": (GREY, "s"), "random": (CLAY, "^")}

# Width in inches of the page's text column; with DPI pictures are twice as fine as a plain
# screen.
WIDTH = 10.0
DPI = 200
LONGEST_TITLE = 24
"""Characters of a name above one of four panels."""
LONGEST_TICK = 44
"""Characters of a name beside an axis."""


def name_in_chart(name: str, longest: int = LONGEST_TITLE) -> str:
    """A name on one line of at most `longest` characters, all of which a font can be asked for."""
    # Names of files may hold surrogates, which no font can be asked for.
    line = " ".join(name.split()).encode("utf-8", "replace").decode()
    printable = "".join(character if character.isprintable() else "?" for character in line)
    return printable if len(printable) <= longest else f"{printable[: longest - 1]}…"


def plain_axes(axes: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """No frame, quiet ticks and grid lines along the values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3cbd3")
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9)
    axes.set_ylabel(ylabel, color=MUTED, fontsize=9)
    axes.set_title(
        name_in_chart(title),
        color=INK,
        fontsize=9,
        loc="left",
        fontweight="bold",
        pad=8,
        parse_math=False,
    )


def named_rows(axes: Axes, names: Sequence[str]) -> None:
    """One row per name from the top down, values along x."""
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    labels = [name_in_chart(name, LONGEST_TICK) for name in names]
    axes.set_yticks(range(len(names)), labels, color=INK, fontsize=9.5, parse_math=False)


def panels_of(count: int, columns: int, row_height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, row by row; `row_height` in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    # Without pyplot, which keeps every figure until it is closed.
    figure = Figure(figsize=(WIDTH, row_height * rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def legend_of(axes: Axes, **kwargs: Any) -> None:
    """A legend above the axes, on the right."""
    legend = axes.legend(
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        **kwargs,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
