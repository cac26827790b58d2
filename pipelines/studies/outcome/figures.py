"""`study.json`: what the results of a study come to, with intervals.

A figure is a mean over seeds of a mean over tasks of a mean over episodes; its interval draws seeds
and, within each, episodes (`pipelines.pages.intervals`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipelines.pages.intervals import Groups, Interval, hierarchical, mean_of, paired, ratio
from pipelines.studies.cells.pieces import Cell, StudyPlan
from pipelines.studies.cells.plan import differences, parameters
from pipelines.studies.cells.results import DONE, Standing
from pipelines.studies.document.judgements import ClosedLoopJudgement, Judgement
from pipelines.studies.document.sets import SetConfig
from pipelines.studies.document.study import STEPS_TO_ERROR, Comparison
from pipelines.studies.outcome.cautions import cautions
from pipelines.studies.outcome.held_out import by_episode

UNITS = {
    "closed-loop": "success rate",
    "open-loop": "mean squared error of actions",
    "video": "dB above repeating the first frame, where something moves",
    "latency": "ms per chunk",
}
"""What the main figure of each kind of judgement is."""
_LOWER_IS_BETTER = {"open-loop", "latency"}
_ALIKE = 0.03
"""Share by which numbers of parameters may differ without a word."""

Judged = Mapping[str, Any]
Counts = tuple[int | None, int | None]
"""Numbers of demonstrations of two arms, None: all."""


def study_figures(plan: StudyPlan, now: Standing) -> dict[str, Any]:
    """All figures of what is done, as JSON values."""
    study = plan.study
    arms = {name: _arm(plan, name) for name in study.arms}
    rows, controls = list(_rows(plan, now)), list(_controls(plan, now))
    compare = [
        row
        for pair in study.compare
        for counts in pair.counts(study.counts)
        if (row := _compared(plan, now, pair, counts)) is not None
    ]
    return {
        "name": study.name,
        "claim": study.claim,
        "seeds": list(study.seeds),
        "demonstrations": list(study.counts),
        "each_task": isinstance(study.data[study.labelled], SetConfig),
        "judgements": {
            one.name: {
                "kind": one.kind,
                "unit": UNITS[one.kind],
                "lower_is_better": one.kind in _LOWER_IS_BETTER,
                **one.model_dump(mode="json", exclude={"name", "kind", "arms"}),
            }
            for one in study.judge
        },
        "arms": arms,
        "rows": rows,
        "controls": controls,
        "compare": compare,
        "curves": {
            cell.id: now.pieces[cell.id]["curve"]
            for cell in plan.cells.values()
            if now.finished(cell.id)
        },
        "validation": {
            cell.id: now.pieces[cell.id].get("validation", {})
            for cell in plan.cells.values()
            if now.finished(cell.id)
        },
        "notes": list(dict.fromkeys(_notes(plan, arms))),
        "cautions": list(cautions(rows, controls, compare)),
        "broken": now.broken(),
        "missing": list(_missing(plan, now)),
    }


def _missing(plan: StudyPlan, now: Standing) -> Iterator[str]:
    """Cells, and judgements of cells, of which nothing is known yet."""
    for cell in plan.cells.values():
        if cell.id not in now.pieces:
            yield cell.id
        elif now.finished(cell.id):
            for judgement in plan.study.judge:
                if judgement.of(cell.arm) and judgement.name not in now.judged[cell.id]:
                    yield f"{cell.id} {judgement.name}"


def _arm(plan: StudyPlan, name: str) -> dict[str, Any]:
    cell = next(cell for cell in plan.cells.values() if cell.arm == name)
    before = plan.shared[cell.parent].jobs if cell.parent else ()
    config = plan.study.arms[name]
    return {
        "start": config.start,
        "note": config.note,
        "parameters": parameters(cell.job),
        "steps": cell.job.run.steps,
        "steps_before": sum(job.run.steps for job in before),
        "batch": cell.job.engine.global_batch,
    }


def _notes(plan: StudyPlan, arms: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    sizes = {name: arm["parameters"] for name, arm in arms.items()}
    if max(sizes.values()) > (1 + _ALIKE) * min(sizes.values()):
        told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        yield f"The arms have different numbers of parameters: {told}."
    for pair in plan.study.compare:
        a, b = (arms[arm] for arm in pair.arms)
        if a["steps_before"] != b["steps_before"]:
            yield (
                f"{pair.arms[0]} has {a['steps_before']} optimiser steps of earlier stages behind it, "
                f"{pair.arms[1]} {b['steps_before']}."
            )
        one, other = (
            next(cell.job for cell in plan.cells.values() if cell.arm == arm) for arm in pair.arms
        )
        if unequal := differences(one, other):
            yield f"{pair.arms[0]} and {pair.arms[1]} differ in {', '.join(unequal)}, as asked."
    if len(plan.study.seeds) < 3:
        yield f"Only {len(plan.study.seeds)} training seeds: what lies between seeds is hardly known."


def _rows(plan: StudyPlan, now: Standing) -> Iterator[dict[str, Any]]:
    """One for each arm and number of demonstrations."""
    for arm in plan.study.arms:
        for count in plan.study.counts:
            cells = _cells(plan, arm, count)
            if not any(now.finished(cell.id) for cell in cells):
                continue
            row: dict[str, Any] = {"arm": arm, "demonstrations": count, "judged": {}}
            for judgement in plan.study.judge:
                found = {
                    cell.seed: result
                    for cell in cells
                    if (result := _done(now, cell, judgement.name)) is not None
                }
                if found:
                    row["judged"][judgement.name] = _figure(judgement, found)
            yield row


def _cells(plan: StudyPlan, arm: str, count: int | None) -> list[Cell]:
    """Of all seeds, in their order."""
    return [c for c in plan.cells.values() if (c.arm, c.demonstrations) == (arm, count)]


def _done(now: Standing, cell: Cell, judgement: str) -> Judged | None:
    result = now.judged.get(cell.id, {}).get(judgement)
    return result if result is not None and result["state"] == DONE else None


def _figure(judgement: Judgement, found: Mapping[int, Judged]) -> dict[str, Any]:
    """found: seed -> result"""
    rate = isinstance(judgement, ClosedLoopJudgement)
    interval = hierarchical([result["groups"] for result in found.values()], rate=rate)
    figure: dict[str, Any] = {
        "by_seed": {seed: mean_of(result["groups"]) for seed, result in found.items()},
        "by_task": _by_task([result["groups"] for result in found.values()]),
        **_told(interval),
    }
    if judgement.kind == "open-loop":
        for name in ("baseline", "hold"):
            means = [mean_of(result[name]) for result in found.values()]
            known = [mean for mean in means if mean is not None]
            figure[name] = float(np.mean(known)) if known else None
        if (episodes := by_episode(found)) is not None:
            figure["by_episode"] = episodes
    if judgement.kind == "video":
        names = list(next(iter(found.values()))["mean"])
        figure["parts"] = {
            name: float(np.mean([result["mean"][name] for result in found.values()]))
            for name in names
        }
    if rate:
        figure["charged_ms"] = [round(result["charged_ms"], 2) for result in found.values()]
        figure["failed_to_run"] = sum(len(result["failed_to_run"]) for result in found.values())
    return figure


def _told(interval: Interval | None) -> dict[str, Any]:
    none = {"mean": None, "low": None, "high": None, "seeds": 0, "episodes": 0}
    return none if interval is None else asdict(interval)


def _by_task(seeds: Sequence[Groups]) -> dict[str, float]:
    tasks = dict.fromkeys(task for groups in seeds for task in groups)
    means = {
        task: [m for groups in seeds if (m := mean_of({task: groups.get(task, [])})) is not None]
        for task in tasks
    }
    return {task: float(np.mean(values)) for task, values in means.items() if values}


def _controls(plan: StudyPlan, now: Standing) -> Iterator[dict[str, Any]]:
    for control in plan.controls.values():
        if not now.finished(control.id):
            continue
        groups = now.pieces[control.id]["groups"]
        rates = {"by_task": _by_task([groups]), **_told(hierarchical([groups], rate=True))}
        for name in control.names:
            yield {
                "agent": control.agent,
                "judgement": name,
                **rates,
                "failed_to_run": len(now.pieces[control.id].get("failed_to_run", [])),
            }


def _compared(
    plan: StudyPlan, now: Standing, pair: Comparison, counts: Counts
) -> dict[str, Any] | None:
    """A pair at one number of demonstrations each; None where no seed has something of both."""
    sides = [_cells(plan, arm, n) for arm, n in zip(pair.arms, counts, strict=True)]
    if pair.measure == STEPS_TO_ERROR:
        return _steps_to_error(now, pair, counts, sides)
    judgement = next(one for one in plan.study.judge if one.name == pair.measure)
    both = [
        (a, b)
        for a, b in zip(
            *(
                [_done(now, cell, measure) for cell in cells]
                for cells, measure in zip(sides, pair.measures, strict=True)
            ),
            strict=True,
        )
        if a is not None and b is not None
    ]
    if not both:
        return None
    found = paired(
        [a["groups"] for a, _ in both],
        [b["groups"] for _, b in both],
        rate=isinstance(judgement, ClosedLoopJudgement),
    )
    return _row(pair, counts, found) | {"unit": UNITS[judgement.kind]}


def _row(pair: Comparison, counts: Counts, found: Interval | None) -> dict[str, Any]:
    return {
        "arms": list(pair.arms),
        "measure": pair.measure,
        "against": pair.measures[1],
        "demonstrations": list(counts),
        **_told(found),
    }


def steps_to(curve: Sequence[Sequence[float]], error: float) -> float | None:
    """Optimiser steps until a curve of (step, error) is at `error` for the first time, between
    checkpoints by a straight line; None where it never is.
    """
    before: Sequence[float] | None = None
    for point in curve:
        step, value = point
        if value <= error:
            if before is None or before[1] == value:
                return float(step)
            share = (before[1] - error) / (before[1] - value)
            return float(before[0] + share * (step - before[0]))
        before = point
    return None


def _steps_to_error(
    now: Standing, pair: Comparison, counts: Counts, sides: Sequence[Sequence[Cell]]
) -> dict[str, Any] | None:
    curves = [
        [now.pieces[cell.id]["curve"] if now.finished(cell.id) else [] for cell in cells]
        for cells in sides
    ]
    both = [(a, b) for a, b in zip(*curves, strict=True) if a and b]
    if not both:
        return None
    # One error for all seeds, so that they are asked the same; every second one got there.
    error = pair.error or max(b[-1][1] for _, b in both)
    steps = [(steps_to(a, error), steps_to(b, error)) for a, b in both]
    reached = [(a, b) for a, b in steps if a is not None and b is not None]
    # One pair alone has no interval.
    found = ratio([a for a, _ in reached], [b for _, b in reached]) if reached[1:] else None
    # Who is there at its first checkpoint may have been so long before.
    at_once = sum(a[0][1] <= error or b[0][1] <= error for a, b in both)
    return _row(pair, counts, found) | {
        "unit": f"times the steps of {pair.arms[0]} that {pair.arms[1]} takes",
        "error": error,
        "steps": [list(pair_) for pair_ in steps],
        "not_reached": len(steps) - len(reached),
        "never": [sum(pair_[i] is None for pair_ in steps) for i in (0, 1)],
        "at_first_checkpoint": at_once,
    }
