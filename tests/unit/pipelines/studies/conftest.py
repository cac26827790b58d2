"""A small document of stages that are not read by anything but the configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.load import load_config
from pipelines.studies.cells.pieces import StudyPlan
from pipelines.studies.cells.plan import make_plan
from pipelines.studies.document.study import Study
from tests.unit.pipelines.jobs.test_stages import STAGES

SET = {"tasks": ["reach-v3", "door-open-v3"], "episodes": 25, "seed": 0}


def document(**changes: Any) -> dict[str, Any]:
    """A whole one, with some fields changed; None takes a field out."""
    fields: dict[str, Any] = {
        "kind": "Study",
        "version": 1,
        "name": "small",
        "claim": "It is small.",
        "data": {
            "policy": SET,
            "embodied": SET | {"with_actions": False, "seed": 1000},
            "held-out": SET | {"episodes": 2, "seed": 2000},
        },
        "stages": {"video": [str(STAGES / "embodied.yaml")]},
        "stage": str(STAGES / "policy.yaml"),
        "demonstrations": [5, 25],
        "seeds": [1, 2],
        "arms": {"scratch": {}, "begun": {"start": "video"}},
        "judge": [
            {"kind": "closed-loop", "name": "success", "tasks": SET["tasks"], "episodes": 4},
            {"kind": "open-loop", "name": "error", "data": "held-out"},
            {"kind": "latency", "name": "latency"},
        ],
        "compare": [
            {"arms": ["begun", "scratch"], "measure": "success"},
            {"arms": ["begun", "scratch"], "measure": "steps-to-error"},
        ],
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def plan_of(folder: Path, **changes: Any) -> StudyPlan:
    """Of a document with some fields changed, below a folder."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(document(storage=str(folder), **changes), sort_keys=False))
    return make_plan(load_config(file, Study))


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    return plan_of(tmp_path)
