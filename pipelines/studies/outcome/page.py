"""`study.json` and what people read of it: a table as text, plots, and a page that joins them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gwp import storage
from pipelines.console import table
from pipelines.pages import study_charts
from pipelines.pages.render import Picture, Table, render
from pipelines.pages.study_charts import Point
from pipelines.studies.cells.pieces import StudyPlan, piece_id
from pipelines.studies.document.study import STEPS_TO_ERROR
from pipelines.studies.outcome.held_out import episode_rows, told_count

Figures = Mapping[str, Any]


def write_study(plan: StudyPlan, figures: Figures) -> str:
    """Write `study.json`, `study.txt`, the plots and `study.html`; where the page lies."""

    def put(name: str, data: bytes) -> str:
        uri = storage.join(plan.root, name)
        storage.write_bytes(uri, data)
        return uri

    put("study.json", json.dumps(figures, indent=1).encode())
    pictures = plots(figures)
    for name, picture in pictures.items():
        put(f"{name}.png", picture.png)
    put("study.txt", as_text(figures).encode())
    page = render(
        "study.html.j2",
        title=f"Study: {figures['name']}",
        claim=figures["claim"],
        broken=broken(figures),
        undone=undone(figures),
        arms=_table(arm_rows(figures)),
        notes=figures["notes"],
        cautions=figures["cautions"],
        compare=_table(compare_rows(figures)),
        figures=_table(figure_rows(figures)),
        episodes=_table(list(episode_rows(figures))),
        units="; ".join(f"{name}: {unit_of(figures, name)}" for name in figures["judgements"]),
        charts=list(pictures.values()),
        tasks=_table(task_rows(figures)),
    )
    return put("study.html", page)


def broken(figures: Figures) -> list[str]:
    """What broke, one line each."""
    return [f"{name}: {why}" for name, why in figures["broken"].items()]


def undone(figures: Figures) -> list[str]:
    """What nobody has made yet, in one line; none where all is made."""
    missing = figures["missing"]
    if not missing:
        return []
    some = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
    return [f"not done yet, {len(missing)} of all cells and judgements: {some}"]


def as_text(figures: Figures) -> str:
    """The tables for a terminal."""
    parts = [figures["name"], figures["claim"], ""]
    for rows in (arm_rows(figures), figure_rows(figures), compare_rows(figures)):
        if rows:
            parts += [table(rows), ""]
    if episodes := list(episode_rows(figures)):
        parts += [
            "Held-out episodes in which the error, on average over seeds, is below holding still"
        ]
        parts += ["and below the mean action:", table(episodes), ""]
    parts += [*figures["notes"], *figures["cautions"]]
    parts += [f"broken: {line}" for line in broken(figures)]
    parts += undone(figures)
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> Table | None:
    if not rows:
        return None
    return Table(list(rows[0]), [list(row.values()) for row in rows])


def arm_rows(figures: Figures) -> list[dict[str, str]]:
    """One for each arm."""
    return [
        {
            "arm": name,
            "starts from": arm["start"] or "random weights",
            "parameters": f"{arm['parameters']:,}",
            "steps": str(arm["steps"]),
            "steps before": str(arm["steps_before"]),
            "batch": str(arm["batch"]),
            "note": arm["note"],
        }
        for name, arm in figures["arms"].items()
    ]


def figure_rows(figures: Figures) -> list[dict[str, str]]:
    """One for each arm and number of demonstrations, and one for each control."""
    names = list(figures["judgements"])
    rows = []
    for row in figures["rows"]:
        cells = {name: _told(row["judged"].get(name), _kind(figures, name)) for name in names}
        seeds = max((one["seeds"] for one in row["judged"].values()), default=0)
        rows.append(
            {
                "arm": row["arm"],
                "demonstrations": told_count(row["demonstrations"]),
                "seeds": str(seeds),
                **cells,
            }
        )
    agents: dict[str, dict[str, str]] = {}
    for control in figures["controls"]:
        of_agent = agents.setdefault(control["agent"], dict.fromkeys(names, ""))
        of_agent[control["judgement"]] = _told(control, "closed-loop")
    rows += [
        {"arm": agent, "demonstrations": "", "seeds": "", **cells}
        for agent, cells in agents.items()
    ]
    return rows


def compare_rows(figures: Figures) -> list[dict[str, str]]:
    """One for each pair and number of demonstrations."""
    rows = []
    for row in figures["compare"]:
        steps = row["measure"] == STEPS_TO_ERROR
        rows.append(
            {
                "first": row["arms"][0],
                "second": row["arms"][1],
                "measure": _versus(row["measure"], row["against"])
                + (f" {row['error']:.3g}" if steps else ""),
                "demonstrations": _versus(*map(told_count, row["demonstrations"])),
                "difference": _ratio(row) if steps else _difference(figures, row),
                "of": row["unit"] if steps else unit_of(figures, row["measure"]),
                "seeds": str(len(row["steps"]) if steps else row["seeds"]),
            }
        )
    return rows


def _versus(a: object, b: object) -> str:
    return str(a) if a == b else f"{a} against {b}"


def _difference(figures: Figures, row: Mapping[str, Any]) -> str:
    if _kind(figures, row["measure"]) != "closed-loop" or row["mean"] is None:
        return _told(row, _kind(figures, row["measure"]), signed=True)
    # Of two percentages: not per cent of one of them.
    points = {name: 100 * row[name] for name in ("mean", "low", "high")}
    return _told(points, "points", signed=True).replace("]", "] points")


def _ratio(row: Mapping[str, Any]) -> str:
    """Times the steps; who never got there in how many seeds."""
    parts = [_told(row, STEPS_TO_ERROR)] if row["mean"] is not None else []
    if row["mean"] is None and not row["not_reached"]:
        parts.append("a single pair of seeds: {:.0f} and {:.0f} steps".format(*row["steps"][0]))
    parts += [
        f"{arm} never got there in {times} of {len(row['steps'])} seeds"
        for arm, times in zip(row["arms"], row["never"], strict=True)
        if times
    ]
    if parts and row["not_reached"] and row["mean"] is not None:
        parts[0] += f" of the {len(row['steps']) - row['not_reached']} pairs that did"
    return "; ".join(parts)


def unit_of(figures: Figures, judgement: str) -> str:
    """What its figure is, and which way is better where that is not plain."""
    one = figures["judgements"][judgement]
    return one["unit"] + (" (lower is better)" if one["lower_is_better"] else "")


def task_rows(figures: Figures) -> list[dict[str, str]]:
    """Of each closed loop one for each arm and number of demonstrations; a column for each task."""
    rows = []
    closed = [name for name in figures["judgements"] if _kind(figures, name) == "closed-loop"]
    tasks = dict.fromkeys(task for name in closed for task in figures["judgements"][name]["tasks"])
    found = [
        (
            name,
            f"{row['arm']}, {told_count(row['demonstrations'])} demonstrations",
            row["judged"][name],
        )
        for name in closed
        for row in figures["rows"]
        if name in row["judged"]
    ]
    found += [(one["judgement"], one["agent"], one) for one in figures["controls"]]
    for name, who, figure in found:
        rates = {
            task: f"{figure['by_task'][task]:.0%}" if task in figure["by_task"] else ""
            for task in tasks
        }
        rows.append({"who": who, "judgement": name, **rates})
    return rows


def _kind(figures: Figures, judgement: str) -> str:
    return str(figures["judgements"][judgement]["kind"])


def _told(figure: Mapping[str, Any] | None, kind: str, signed: bool = False) -> str:
    """A mean with its interval."""
    if figure is None or figure["mean"] is None:
        return ""
    sign = "+" if signed else ""
    forms = {"closed-loop": f"{sign}.1%", "points": f"{sign}.1f", "video": f"{sign}.2f"}
    form = forms.get(kind, f"{sign}.3g")
    mean, low, high = (format(figure[name], form) for name in ("mean", "low", "high"))
    # One number alone has no interval.
    return mean if figure["low"] == figure["high"] else f"{mean} [{low}, {high}]"


def plots(figures: Figures) -> dict[str, Picture]:
    """Name of its file -> plot, of what there is."""
    found: dict[str, Picture] = {}
    closed = [name for name in figures["judgements"] if _kind(figures, name) == "closed-loop"]
    latency = next((n for n in figures["judgements"] if _kind(figures, n) == "latency"), None)
    most = figures["demonstrations"][-1]
    for name in closed:
        rows = [row for row in figures["rows"] if _has(row, name)]
        controls = {
            one["agent"]: one["mean"]
            for one in figures["controls"]
            if one["judgement"] == name and one["mean"] is not None
        }
        full = [row for row in rows if row["demonstrations"] == most and _has(row, latency)]
        if latency and len(full) > 1:
            points = {
                row["arm"]: _point(row["judged"][latency]["mean"], row["judged"][name])
                for row in full
            }
            found[f"{name}-against-latency"] = Picture(
                study_charts.success_against_latency(points, controls, name),
                f"{name} of each arm against the time of a chunk",
                f"{name} against latency, {_counted(figures, most)}, with 95 % intervals",
            )
        lines: dict[str, list[Point]] = {}
        for row in rows:
            if row["demonstrations"] is not None:
                point = _point(row["demonstrations"], row["judged"][name])
                lines.setdefault(row["arm"], []).append(point)
        if len({row["demonstrations"] for row in rows}) > 1:
            found[f"{name}-against-demonstrations"] = Picture(
                study_charts.success_against_demonstrations(lines, controls, name),
                f"{name} of each arm against the number of demonstrations",
                f"{name} against demonstrations, with 95 % intervals",
            )
    return found | _curves(figures)


def _counted(figures: Figures, count: int | None) -> str:
    of = " of each task" if figures["each_task"] and count is not None else ""
    return f"{told_count(count)} demonstrations{of}"


def _has(row: Figures, name: str | None) -> bool:
    return name in row["judged"] and row["judged"][name]["mean"] is not None


def _point(x: float, figure: Mapping[str, float]) -> Point:
    return Point(float(x), figure["mean"], figure["low"], figure["high"])


def _curves(figures: Figures) -> dict[str, Picture]:
    """Of the most and the fewest demonstrations."""
    found: dict[str, Picture] = {}
    counts = figures["demonstrations"]
    for count in dict.fromkeys((counts[0], counts[-1])):
        arms: dict[str, list[Any]] = {}
        for arm in figures["arms"]:
            ids = [piece_id(arm, count, seed) for seed in figures["seeds"]]
            of_seeds = [figures["curves"].get(name) for name in ids]
            if some := [curve for curve in of_seeds if curve and len(curve) > 1]:
                arms[arm] = some
        if arms:
            name = "error-against-steps" + ("" if count is None else f"-d{count}")
            found[name] = Picture(
                study_charts.curves(arms, f"{told_count(count)} demonstrations"),
                f"error of actions against optimiser steps, {_counted(figures, count)}",
                "Error of actions on samples that do not train: each seed thin, their mean broad",
            )
    return found
