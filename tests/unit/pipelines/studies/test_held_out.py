"""What the outcome says of held-out episodes one by one."""

from pathlib import Path
from typing import Any

import pytest

from gwp import storage
from gwp.policy.policy import Policy
from pipelines.studies.cells.judge import judged
from pipelines.studies.cells.pieces import StudyPlan
from pipelines.studies.cells.results import judged_uri, result_uri, standing, write
from pipelines.studies.outcome.figures import study_figures
from pipelines.studies.outcome.held_out import by_episode
from pipelines.studies.outcome.page import as_text, figure_rows, write_study
from tests.support.sets import ARM, write_v30
from tests.support.tiny import make_tiny_bundle
from tests.unit.pipelines.studies.conftest import plan_of
from tests.unit.pipelines.studies.test_there import fields

# Episodes 3, 11, 19: what holding still and the mean come to.
HOLD, MEAN = [0.5, 0.2, 0.5], [0.4, 0.9, 0.4]


def result(policy: list[float], share: list[float] | None = None) -> dict[str, Any]:
    def errors(values: list[float]) -> dict[str, Any]:
        return {"groups": {"pick": values}, "hold": {"pick": HOLD}, "baseline": {"pick": MEAN}}

    return errors(policy) | {"share": errors(share or policy), "episodes": {"pick": [3, 11, 19]}}


def test_errors_are_averaged_over_seeds_before_they_are_compared() -> None:
    # Episode 3 is won on average alone, 11 never (the mean would be beaten), 19 always.
    found = by_episode({1: result([0.1, 0.3, 0.1]), 2: result([0.5, 0.3, 0.2])})
    assert found is not None
    assert found["mse"]["below"] == 2
    assert found["mse"]["not_below"] == [11]
    assert found["mse"]["by_seed"] == {1: 2, 2: 1}
    assert found["mse"]["errors"][3] == {
        "policy": pytest.approx(0.3),
        "hold": pytest.approx(0.5),
        "mean": pytest.approx(0.4),
    }


def test_no_better_is_not_below() -> None:
    found = by_episode({1: result([0.4, 0.2, 0.3], share=[0.4, 0.1, 0.5])})
    assert found is not None
    assert found["mse"]["not_below"] == [3, 11]
    assert found["share"]["not_below"] == [3, 19]


def test_an_episode_that_a_seed_lacks_counts_by_the_others() -> None:
    less = result([0.3, 0.3, 0.3])
    less["episodes"] = {"pick": [3, 19]}
    for part in (less, less["share"]):
        for guess in ("groups", "hold", "baseline"):
            part[guess] = {"pick": part[guess]["pick"][::2]}
    found = by_episode({1: result([0.1, 0.1, 0.1]), 2: less})
    assert found is not None
    assert (found["mse"]["below"], found["mse"]["by_seed"]) == (3, {1: 3, 2: 2})


def test_results_of_before_that_name_no_episodes_say_nothing_of_them() -> None:
    old = {"groups": {"pick": [0.1]}, "hold": {"pick": [0.2]}, "baseline": {"pick": [0.2]}}
    assert by_episode({1: result([0.1, 0.3, 0.1]), 2: old}) is None


def filled(folder: Path) -> StudyPlan:
    """Two judgements on two sets, of two seeds."""
    judge = [
        {"kind": "open-loop", "name": name, "data": data}
        for name, data in (("tuned", "validation"), ("error", "held-out"))
    ]
    plan = plan_of(folder, **fields("/x/set", judge=judge, seeds=[1, 2]))
    for cell in plan.cells.values():
        write(
            result_uri(plan, cell), cell.hash, {"curve": [[100, 0.5], [200, 0.3]], "arm": "scratch"}
        )
        for judgement in plan.study.judge:
            policy = [0.1, 0.3, 0.1] if judgement.name == "error" else [0.1, 0.1, 0.1]
            made_by = plan.judgement_hash(cell, judgement)
            write(judged_uri(plan, cell, judgement), made_by, result(policy))
    return plan


def test_table_and_page_name_the_episodes_of_each_judgement(tmp_path: Path) -> None:
    plan = filled(tmp_path)
    figures = study_figures(plan, standing(plan))
    assert figures["missing"] == []
    (row,) = figure_rows(figures)
    assert row["demonstrations"] == "all"
    text = as_text(figures)
    lines = [line.split() for line in text.splitlines()]
    told = {line[2]: line[3:] for line in lines if line[:2] == ["scratch", "all"] and "of" in line}
    assert told["tuned"] == ["3", "of", "3", "none", "3,", "3"]
    assert told["error"] == ["2", "of", "3", "11", "2,", "2"]
    write_study(plan, figures)
    page = storage.read_bytes(f"{plan.root}/study.html").decode()
    assert "Held-out episodes" in page
    assert "2 of 3" in page
    # The one curve there is has no number of demonstrations in its name.
    assert storage.exists(f"{plan.root}/error-against-steps.png")


def test_a_judgement_says_which_episodes_it_is_of(tmp_path: Path) -> None:
    uri = str(write_v30(tmp_path / "set"))
    data = {"policy": {"uri": uri, "episodes": "0"}, "held-out": {"uri": uri, "episodes": "1::2"}}
    plan = plan_of(tmp_path, **fields(uri, data=data))
    policy = Policy.load(make_tiny_bundle(tmp_path / "bundle", arm=ARM))
    (cell,), (judgement,) = plan.cells.values(), plan.study.judge
    found = judged(plan, cell, judgement, policy, None)
    # One of the two episodes of the set is held out.
    (text,) = found["groups"]
    assert found["episodes"] == {text: [1]}
    for part in (found, found["share"]):
        assert {len(part[guess][text]) for guess in ("groups", "hold", "baseline")} == {1}
    assert found["groups"] != found["share"]["groups"]
    whole = by_episode({1: found})
    assert whole is not None
    assert list(whole["mse"]["errors"]) == [1]
