"""What would end a study late, or make it untrue, is told before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines.studies.cells.checks import require_judgeable, require_tasks
from tests.unit.pipelines.studies.conftest import SET, document, plan_of

CLOSED = {"kind": "closed-loop", "name": "s", "tasks": SET["tasks"], "episodes": 4}


def judged(folder: Path, judgement: dict[str, Any], data: dict[str, Any] | None = None) -> None:
    sets = document()["data"] | (data or {})
    plan = plan_of(folder, judge=[judgement], data=sets, compare=[])
    require_tasks(plan.study)
    require_judgeable(plan)


@pytest.mark.parametrize(
    ("judgement", "told"),
    [
        (CLOSED | {"max_steps": 100_000}, r"judge\.s: max_steps 100000: give 1 to"),
        (CLOSED | {"size": 8}, r"judge\.s: size 8: give at least"),
        (CLOSED | {"shift": "sideways"}, r"judge\.s: shift sideways"),
        (CLOSED | {"shift": "starts"}, r"judge\.s: shift starts: reach-v3, door-open-v3 cannot"),
        (
            CLOSED | {"benchmark": "metaworld-wide"},
            "arm scratch does not know metaworld-sawyer-wrist.*but metaworld-sawyer",
        ),
        (
            {"kind": "latency", "name": "l", "benchmark": "metaworld-wide"},
            "does not know metaworld-sawyer-wrist",
        ),
        # A chunk of 12 steps lasts 150 ms.
        (CLOSED | {"charge": "150ms"}, "arm scratch: 150 ms are 12 control steps.*chunking: stop"),
        (CLOSED | {"charge": {"scratch": 0, "begun": 300}}, "arm begun: 300 ms"),
        ({"kind": "open-loop", "name": "e", "data": "policy"}, "policy is trained on"),
    ],
)
def test_what_cannot_be_judged_is_told(
    tmp_path: Path, judgement: dict[str, Any], told: str
) -> None:
    with pytest.raises(GwpError, match=told):
        judged(tmp_path, judgement)


@pytest.mark.parametrize(
    "judgement",
    [
        CLOSED,
        CLOSED | {"charge": "1x"},
        CLOSED | {"charge": "137ms"},
        CLOSED | {"charge": {"scratch": 0, "begun": 300}, "chunking": "stop"},
        {"kind": "open-loop", "name": "e", "data": "held-out"},
    ],
)
def test_what_can_be_judged_is_not_refused(tmp_path: Path, judgement: dict[str, Any]) -> None:
    judged(tmp_path, judgement)


def test_no_set_that_trains_has_the_starts_of_what_judges(tmp_path: Path) -> None:
    held_out = {"kind": "open-loop", "name": "e", "data": "held-out"}
    # 25 episodes from 0 take seeds up to 99.
    overlap = {"held-out": SET | {"episodes": 2, "seed": 99}}
    with pytest.raises(GwpError, match=r"data\.held-out\.seed: it begins where data\.policy"):
        judged(tmp_path, held_out, overlap)
    judged(tmp_path, held_out, {"held-out": SET | {"episodes": 2, "seed": 100}})
    tasks = {"tasks": ["window-open-v3"]}
    judged(tmp_path, held_out, {"held-out": SET | tasks | {"episodes": 2, "seed": 99}})
    with pytest.raises(GwpError, match=r"data\.embodied\.seed: 8901 .*starts of judge\.s"):
        judged(tmp_path, CLOSED, {"embodied": SET | {"with_actions": False, "seed": 8901}})
    judged(tmp_path, CLOSED, {"embodied": SET | {"with_actions": False, "seed": 8900}})
