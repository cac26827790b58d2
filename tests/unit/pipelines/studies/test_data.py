"""What cells share of a labelled set: the first episodes hold as many of each task."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from gwp.data.formats.lerobot.write import LeRobotWriter
from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.studies.cells.checks import require_tasks
from pipelines.studies.cells.data import require_nested
from pipelines.studies.document.study import Study
from tests.unit.pipelines.studies.conftest import SET, document, plan_of


def write_set(folder: Path, texts: Sequence[str]) -> str:
    """Episodes of two steps with these instructions."""
    names = ("x",)
    uri = str(folder / "set")
    with LeRobotWriter(
        uri,
        fps=10.0,
        robot_type="dot",
        cameras={"top": (16, 16)},
        state_names=names,
        action_names=names,
        with_actions=True,
    ) as writer:
        for text in texts:
            numbers = np.zeros((2, 1), np.float32)
            writer.add_episode({"top": np.zeros((2, 16, 16, 3), np.uint8)}, text, numbers, numbers)
    return uri


@pytest.mark.parametrize(
    ("texts", "fits"),
    [
        (["a", "b", "a", "b", "a", "b"], True),
        (["a", "b", "b", "a", "a", "b"], True),
        # One of each task is not what the first two are.
        (["a", "a", "b", "b", "a", "b"], False),
        (["a", "b", "a", "b"], False),
        (["a", "b", "a", "c", "a", "b"], False),
    ],
)
def test_first_episodes_hold_as_many_of_each_task(
    tmp_path: Path, texts: list[str], fits: bool
) -> None:
    data = document()["data"] | {"policy": SET | {"episodes": 3, "uri": write_set(tmp_path, texts)}}
    plan = plan_of(tmp_path, data=data, demonstrations=[1, 3])
    if fits:
        require_nested(plan)
        return
    with pytest.raises(GwpError, match="of each of 2 tasks are needed"):
        require_nested(plan)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"policy": SET | {"tasks": ["raech-v3", "door-open-v3"]}}}, "raech-v3"),
        (
            {
                "judge": [
                    {
                        "kind": "closed-loop",
                        "name": "success",
                        "tasks": ["reach-v3"],
                        "episodes": 1,
                        "shift": "colors",
                    }
                ]
            },
            "colors",
        ),
    ],
)
def test_tasks_and_shifts_that_a_simulator_lacks_are_told_at_once(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    data = document()["data"]
    if "data" in changes:
        changes = {"data": data | changes["data"]}  # type: ignore[operator]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(document(**changes), sort_keys=False))
    with pytest.raises(GwpError, match=told):
        require_tasks(load_config(file, Study))
