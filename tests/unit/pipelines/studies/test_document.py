"""Mistakes in a study document are told with file and line, before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import main
from pipelines.config.load import ConfigError, load_config
from pipelines.studies.document.study import Study
from tests.unit.pipelines.studies.conftest import SET, document


def problems(folder: Path, **changes: Any) -> str:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(document(**changes), sort_keys=False))
    with pytest.raises(ConfigError) as error:
        load_config(file, Study)
    assert all(line.startswith(f"{file}:") for line in error.value.lines)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"a": {"start": "vidoe"}}, "compare": []}, "did you mean video?"),
        ({"labelled": "polcy"}, "labelled: 'polcy' is unknown, did you mean policy?"),
        ({"labelled": "embodied"}, "embodied is recorded without actions"),
        ({"demonstrations": [25, 5]}, "should ascend"),
        ({"demonstrations": [5, 30]}, "30 of each task, and data.policy.episodes is 25"),
        ({"seeds": [1, 1]}, "seeds: name each once"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"arms": {"../a": {}}, "compare": []}, "arms.../a"),
        (
            {"compare": [{"arms": ["begun", "scrach"], "measure": "success"}]},
            "did you mean scratch?",
        ),
        ({"compare": [{"arms": ["begun", "begun"], "measure": "success"}]}, "with itself"),
        (
            {"compare": [{"arms": ["begun", "begun"], "measure": "success", "against": "success"}]},
            "with itself",
        ),
        (
            {"compare": [{"arms": ["begun", "begun"], "measure": "success", "against": "errr"}]},
            "did you mean error?",
        ),
        (
            {"compare": [{"arms": ["begun", "begun"], "measure": "success", "against": "error"}]},
            "error is judged on other episodes than success",
        ),
        (
            {
                "compare": [
                    {
                        "arms": ["begun", "begun"],
                        "measure": "success",
                        "demonstrations": [5, 7],
                    }
                ]
            },
            "7 is none of [5, 25]",
        ),
        (
            {"compare": [{"arms": ["begun", "scratch"], "measure": "sucess"}]},
            "did you mean success?",
        ),
        (
            {
                "judge": [
                    {"kind": "open-loop", "name": "e", "data": "held-out", "arms": ["begun"]}
                ],
                "compare": [{"arms": ["begun", "scratch"], "measure": "e"}],
            },
            "e does not judge scratch",
        ),
        (
            {"judge": [{"kind": "open-loop", "name": "e", "data": "heldout"}], "compare": []},
            "did you mean held-out?",
        ),
        (
            {
                "judge": [
                    {
                        "kind": "closed-loop",
                        "name": "s",
                        "tasks": ["t"],
                        "episodes": 1,
                        "charge": "2s",
                    }
                ],
                "compare": [],
            },
            "give milliseconds",
        ),
        (
            {
                "judge": [
                    {
                        "kind": "closed-loop",
                        "name": "s",
                        "tasks": ["t"],
                        "episodes": 1,
                        "charge": {"begn": 3},
                    }
                ],
                "compare": [],
            },
            "did you mean begun?",
        ),
        # Nobody acts for nothing because a table forgot it.
        (
            {
                "judge": [
                    {
                        "kind": "closed-loop",
                        "name": "s",
                        "tasks": ["t"],
                        "episodes": 1,
                        "charge": {"begun": 3},
                    }
                ],
                "compare": [],
            },
            "judge.s.charge: says nothing of scratch",
        ),
        (
            {
                "judge": [
                    {
                        "kind": "closed-loop",
                        "name": "s",
                        "tasks": ["t"],
                        "episodes": 1,
                        "charge": {"begun": -3, "scratch": 3},
                    }
                ],
                "compare": [],
            },
            "greater than or equal to 0",
        ),
        (
            {"judge": [{"kind": "open-loop", "name": "e", "data": "embodied"}], "compare": []},
            "judge.e.data: embodied is recorded without actions",
        ),
        ({"judge": [{"kind": "latency", "name": "../l"}], "compare": []}, "judge.name"),
        ({"judge": [{"kind": "latncy", "name": "l"}], "compare": []}, "did you mean latency?"),
        (
            {"judge": [{"kind": "latency", "name": "l"}] * 2, "compare": []},
            "give each another name",
        ),
        ({"sead": [1]}, "did you mean seeds?"),
        ({"data": {"policy": SET | {"size": "big"}}}, "data.policy.size"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    assert told in problems(tmp_path, **changes)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = problems(tmp_path, seeds=[1, 1], labelled="polcy", compare=[])
    assert "labelled" in told
    told = problems(tmp_path, seeds=[1, 1], demonstrations=[9, 3])
    assert "seeds" in told
    assert "ascend" in told


def test_mistakes_of_arms_are_told_with_their_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    arms = {
        "a": {"set": {"model.visibilty": "joint"}},
        "b": {"set": {"run.seed": 3}},
        "c": {"set": {"objective.video_weight": 0, "model.visibility": "joint"}},
    }
    file.write_text(yaml.safe_dump(document(arms=arms, compare=[]), sort_keys=False))
    assert main(["study", str(file), "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "arms.a: --set" in told
    assert "did you mean visibility?" in told
    assert "arms.b.set: the study itself says run.seed" in told
    assert "arms.c" in told


def test_a_stage_may_be_a_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(document(), sort_keys=False))
    study = load_config(file, Study)
    assert study.stages["video"][0].set == {}
    assert study.stage.file.endswith("policy.yaml")
