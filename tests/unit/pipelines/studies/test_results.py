"""From results on disk to figures, tables and a page."""

import json
from pathlib import Path
from typing import Any

import pytest

from gwp import storage
from pipelines.studies.cells.pieces import StudyPlan
from pipelines.studies.cells.results import (
    FAILED,
    done,
    judged_uri,
    read,
    result_uri,
    standing,
    write,
)
from pipelines.studies.cells.trial import Task, broken
from pipelines.studies.outcome.figures import steps_to, study_figures
from pipelines.studies.outcome.page import (
    as_text,
    compare_rows,
    figure_rows,
    plots,
    undone,
    write_study,
)
from pipelines.studies.run import charge
from tests.unit.pipelines.studies.conftest import SET, document, plan_of

TASKS = ("reach-v3", "door-open-v3")
RATES = {"begun": 0.75, "scratch": 0.25}


def fill(plan: StudyPlan, curves: dict[str, list[list[float]]] | None = None) -> None:
    """Results of every piece: of four episodes of a task `begun` wins three, `scratch` one."""
    for piece in plan.shared.values():
        write(result_uri(plan, piece), piece.hash, {"steps": 300})
    for cell in plan.cells.values():
        curve = (curves or {}).get(cell.arm, [[100, 0.5], [200, 0.3]])
        write(result_uri(plan, cell), cell.hash, {"curve": curve, "arm": cell.arm})
        won = round(4 * RATES[cell.arm])
        groups = {task: [1.0] * won + [0.0] * (4 - won) for task in TASKS}
        figures: dict[str, dict[str, Any]] = {
            "success": {"groups": groups, "charged_ms": 0.0, "failed_to_run": []},
            "error": {"groups": {"a": [0.2, 0.4]}, "baseline": {"a": [0.5, 0.7]}, "hold": {}},
            "latency": {"groups": {"chunk": [5.0, 7.0, 6.0]}},
        }
        figures["late"] = figures["success"]
        for judgement in plan.study.judge:
            made_by = plan.judgement_hash(cell, judgement)
            write(judged_uri(plan, cell, judgement), made_by, figures[judgement.name])
    for control in plan.controls.values():
        write(
            result_uri(plan, control),
            control.hash,
            {"agent": control.agent, "groups": {task: [0.0] * 4 for task in TASKS}},
        )


def test_a_result_is_done_for_what_made_it_alone(tmp_path: Path) -> None:
    uri = str(tmp_path / "cells" / "a" / "result.json")
    assert read(uri) is None
    assert not done(read(uri), "x")
    write(uri, "x", {"error": "it broke"}, FAILED)
    assert not done(read(uri), "x")
    write(uri, "x", {"steps": 3})
    assert done(read(uri), "x")
    assert not done(read(uri), "y")


def test_what_another_document_made_is_stale_and_named(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    fill(plan)
    assert standing(plan).stale == []
    assert all(standing(plan).finished(name) for name in plan.pieces)
    arms = {"scratch": {}, "begun": {"start": "video", "set": {"optimizer.lr": 1e-4}}}
    now = standing(plan_of(tmp_path, arms=arms))
    assert set(now.stale) == {f"begun-d{count}-s{seed}" for count in (5, 25) for seed in (1, 2)}
    assert not now.finished("begun-d5-s1")
    assert now.finished("scratch-d5-s1")
    assert now.finished("stages/video-s1")
    judge = [one.model_dump(mode="json") for one in plan.study.judge]
    judge[0]["episodes"] = 5
    # Another judgement makes judgements stale, and no cell.
    now = standing(plan_of(tmp_path, judge=judge))
    assert "scratch-d5-s1 success" in now.stale
    assert now.finished("scratch-d5-s1")
    assert set(now.judged["scratch-d5-s1"]) == {"error", "latency"}


def test_figures_say_what_results_hold(plan: StudyPlan) -> None:
    fill(plan, {"begun": [[100, 0.4], [200, 0.2]], "scratch": [[100, 0.8], [200, 0.4]]})
    found = study_figures(plan, standing(plan))
    rows = {(row["arm"], row["demonstrations"]): row["judged"] for row in found["rows"]}
    assert len(rows) == 4
    success = rows["begun", 5]["success"]
    assert (success["mean"], success["seeds"], success["episodes"]) == (0.75, 2, 16)
    assert success["low"] < 0.75 < success["high"]
    assert success["by_seed"] == {1: 0.75, 2: 0.75}
    assert rows["begun", 5]["error"]["mean"] == pytest.approx(0.3)
    assert rows["begun", 5]["error"]["baseline"] == pytest.approx(0.6)
    assert rows["begun", 5]["latency"]["mean"] == 6
    assert {one["agent"]: one["mean"] for one in found["controls"]} == {"random": 0, "blind": 0}
    pairs = {(row["measure"], row["demonstrations"][0]): row for row in found["compare"]}
    assert pairs["success", 5]["demonstrations"] == [5, 5]
    assert pairs["success", 5]["mean"] == 0.5
    assert pairs["success", 5]["low"] > 0
    # Scratch ends at 0.4, where the other one was after half of the steps.
    ratio = pairs["steps-to-error", 25]
    assert ratio["error"] == pytest.approx(0.4)
    assert ratio["mean"] == pytest.approx(2)
    assert ratio["steps"] == [[100, 200], [100, 200]]
    assert found["broken"] == {}
    assert found["missing"] == []
    assert any("300 optimiser steps of earlier stages" in note for note in found["notes"])
    assert any("Only 2 training seeds" in note for note in found["notes"])
    # It is JSON, and the same for the same results.
    assert json.dumps(found) == json.dumps(study_figures(plan, standing(plan)))


def test_what_is_not_alike_is_compared_where_it_is_asked_for(tmp_path: Path) -> None:
    loop = document()["judge"][0]
    few = {"arms": ["begun", "scratch"], "measure": "success", "demonstrations": [5, 25]}
    late = {"arms": ["begun", "begun"], "measure": "late", "against": "success"}
    judge = [loop, loop | {"name": "late", "charge": "40ms"}]
    plan = plan_of(tmp_path, judge=judge, compare=[few, late])
    fill(plan)
    for cell in plan.cells.values():
        # As many demonstrations as won starts of four, less one where the chunk is late.
        won = 1 + (cell.demonstrations == 25) + (cell.arm == "begun")
        for number, judgement in enumerate(plan.study.judge):
            starts = [float(start < won - number) for start in range(4)]
            groups = dict.fromkeys(SET["tasks"], starts)
            made_by = plan.judgement_hash(cell, judgement)
            result = {"groups": groups, "charged_ms": 0.0, "failed_to_run": []}
            write(judged_uri(plan, cell, judgement), made_by, result)
    figures = study_figures(plan, standing(plan))
    across, *alike = figures["compare"]
    assert (across["demonstrations"], across["mean"]) == ([5, 25], 0.0)
    assert [row["demonstrations"] for row in alike] == [[5, 5], [25, 25]]
    assert {row["mean"] for row in alike} == {-0.25}
    told = compare_rows(figures)
    assert told[0]["demonstrations"] == "5 against 25"
    assert told[1]["measure"] == "late against success"


def test_arms_of_other_sizes_are_told(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, arms={"begun": {}, "scratch": {"set": {"model.num_layers": 5}}}, stages={}
    )
    fill(plan)
    notes = study_figures(plan, standing(plan))["notes"]
    assert any("different numbers of parameters" in note for note in notes)


def test_a_broken_cell_is_named_and_the_others_count(plan: StudyPlan) -> None:
    fill(plan)
    broken, alone = plan.cells["begun-d5-s1"], plan.cells["scratch-d5-s2"]
    write(result_uri(plan, broken), broken.hash, {"error": "a loss of NaN"}, FAILED)
    judgement = plan.study.judge[0]
    made_by = plan.judgement_hash(alone, judgement)
    write(judged_uri(plan, alone, judgement), made_by, {"error": "the simulator died"}, FAILED)
    storage.remove(result_uri(plan, plan.cells["scratch-d25-s1"]))
    found = study_figures(plan, standing(plan))
    assert found["broken"] == {
        "begun-d5-s1": "a loss of NaN",
        "scratch-d5-s2 success": "the simulator died",
    }
    assert found["missing"] == ["scratch-d25-s1"]
    text = as_text(found)
    assert "a loss of NaN" in text
    assert "scratch-d25-s1" in text
    # What nobody has begun is not broken.
    assert text.count("broken: ") == 2
    assert undone(found) == ["not done yet, 1 of all cells and judgements: scratch-d25-s1"]
    assert any("a single training seed" in line for line in found["cautions"])
    rows = {(row["arm"], row["demonstrations"]): row["judged"] for row in found["rows"]}
    assert rows["scratch", 5]["success"]["seeds"] == 1


def test_what_is_half_done_has_a_page_too(plan: StudyPlan) -> None:
    page = write_study(plan, study_figures(plan, standing(plan)))
    assert b"No cell is judged yet" in storage.read_bytes(page)
    assert plots(study_figures(plan, standing(plan))) == {}


def test_table_plots_and_page_join_them(plan: StudyPlan) -> None:
    fill(plan)
    figures = study_figures(plan, standing(plan))
    page = storage.read_bytes(write_study(plan, figures)).decode()
    files = storage.list_files(plan.root)
    pictures = {name for name in files if name.endswith(".png")}
    assert pictures == {
        "success-against-latency.png",
        "success-against-demonstrations.png",
        "error-against-steps-d5.png",
        "error-against-steps-d25.png",
    }
    assert {"study.json", "study.txt", "study.html"} <= set(files)
    assert page.count("<img") == len(pictures)
    for row in figure_rows(figures):
        assert row["success"] in page
    assert compare_rows(figures)[0]["difference"].startswith("+50.0 [")
    assert compare_rows(figures)[0]["difference"].endswith("] points")
    assert "lower is better" in page
    assert json.loads(storage.read_bytes(f"{plan.root}/study.json")) == json.loads(
        json.dumps(figures)
    )


@pytest.mark.parametrize(
    ("curve", "error", "steps"),
    [
        ([(100, 0.5), (200, 0.3)], 0.4, 150),
        ([(100, 0.5), (200, 0.3)], 0.5, 100),
        ([(100, 0.5), (200, 0.3)], 0.6, 100),
        ([(100, 0.5), (200, 0.3)], 0.2, None),
        # The first time counts.
        ([(100, 0.5), (200, 0.1), (300, 0.5), (400, 0.1)], 0.3, 150),
        ([], 0.3, None),
    ],
)
def test_steps_to_an_error(curve: list[Any], error: float, steps: float | None) -> None:
    found = steps_to(curve, error)
    assert found is None if steps is None else found == pytest.approx(steps)


def test_who_never_got_there_is_counted(plan: StudyPlan) -> None:
    fill(plan, {"begun": [[100, 0.9], [200, 0.8]], "scratch": [[100, 0.8], [200, 0.4]]})
    found = study_figures(plan, standing(plan))
    row = next(row for row in found["compare"] if row["measure"] == "steps-to-error")
    assert (row["mean"], row["not_reached"]) == (None, 2)
    assert row["never"] == [2, 0]
    assert compare_rows(found)[-1]["difference"] == "begun never got there in 2 of 2 seeds"
    # One of two: no ratio of the other alone.
    write(
        result_uri(plan, cell := plan.cells["begun-d5-s1"]),
        cell.hash,
        {"curve": [[100, 0.8], [200, 0.2]]},
    )
    text = as_text(study_figures(plan, standing(plan)))
    assert "begun never got there in 1 of 2 seeds" in text


def test_who_is_there_at_once_is_told(plan: StudyPlan) -> None:
    fill(plan, {"begun": [[100, 0.2], [200, 0.2]], "scratch": [[100, 0.8], [200, 0.4]]})
    told = study_figures(plan, standing(plan))["cautions"]
    assert any("at their first checkpoint" in line for line in told)


def test_episodes_that_could_not_be_run_are_told(plan: StudyPlan) -> None:
    fill(plan)
    cell, judgement = plan.cells["begun-d5-s1"], plan.study.judge[0]
    uri = judged_uri(plan, cell, judgement)
    result = read(uri)
    assert result is not None
    result["groups"][TASKS[0]] = [None, None, 1.0, 1.0]
    result["failed_to_run"] = ["it died", "it died"]
    storage.write_bytes(uri, json.dumps(result).encode())
    text = as_text(study_figures(plan, standing(plan)))
    assert "success: 2 of 16 episodes of begun with 5 demonstrations could not be run" in text


def test_what_was_charged_is_told(plan: StudyPlan) -> None:
    fill(plan)
    for cell in plan.cells.values():
        uri = judged_uri(plan, cell, plan.study.judge[0])
        result = read(uri)
        assert result is not None
        result["charged_ms"] = {"begun": 4.5, "scratch": 10.0 + cell.seed}[cell.arm]
        storage.write_bytes(uri, json.dumps(result).encode())
    text = as_text(study_figures(plan, standing(plan)))
    assert "success charges for a chunk: scratch 11 to 12 ms, begun 4.5 ms." in text


def test_an_arm_whose_time_cannot_be_measured_ends_no_study(tmp_path: Path) -> None:
    closed = {"kind": "closed-loop", "tasks": list(TASKS), "episodes": 4}
    plan = plan_of(tmp_path, judge=[closed | {"name": "late", "charge": "1x"}], compare=[])
    for cell in plan.cells.values():
        figures = {"curve": [], "bundle": str(tmp_path / "gone"), "run_id": None}
        write(result_uri(plan, cell), cell.hash, figures)
    assert charge(plan, Task(plan, "", None, {}), 1) == {}
    assert set(standing(plan).broken()) == {f"{cell} late" for cell in plan.cells}


def test_one_number_alone_has_no_interval(plan: StudyPlan) -> None:
    fill(plan)
    for cell in plan.cells.values():
        made_by = plan.judgement_hash(cell, plan.study.judge[1])
        figures = {"groups": {"a": [0.25]}, "baseline": {}, "hold": {}}
        uri = judged_uri(plan, cell, plan.study.judge[1])
        if cell.seed == 1:
            write(uri, made_by, figures)
        else:
            storage.remove(uri)
    assert {row["error"] for row in figure_rows(study_figures(plan, standing(plan)))[:4]} == {
        "0.25"
    }


def test_what_is_done_stays_when_something_behind_it_breaks(plan: StudyPlan) -> None:
    fill(plan)
    cell = plan.cells["begun-d5-s1"]
    broken(plan, cell, RuntimeError("the simulator died"))
    assert standing(plan).finished(cell.id)
    other = plan_of(Path(plan.root).parent, arms={"begun": {}, "scratch": {}}, stages={})
    broken(other, other.cells[cell.id], RuntimeError("a loss\nof NaN"))
    assert standing(other).broken() == {cell.id: "a loss of NaN"}


def test_judgements_that_nobody_made_are_missing(plan: StudyPlan) -> None:
    fill(plan)
    cell = plan.cells["begun-d5-s1"]
    storage.remove(judged_uri(plan, cell, plan.study.judge[1]))
    found = study_figures(plan, standing(plan))
    assert found["missing"] == ["begun-d5-s1 error"]
    assert "begun-d5-s1 error" in undone(found)[0]


def test_closed_loops_that_are_the_same_to_a_control_share_it(tmp_path: Path) -> None:
    closed = {"kind": "closed-loop", "tasks": list(TASKS), "episodes": 4}
    judge = [
        closed | {"name": "success"},
        closed | {"name": "charged", "charge": "40ms"},
        closed | {"name": "few", "episodes": 2},
    ]
    plan = plan_of(tmp_path, judge=judge)
    names = {(control.agent, control.names) for control in plan.controls.values()}
    both = ("success", "charged")
    assert names == {(a, n) for a in ("random", "blind") for n in (both, ("few",))}
