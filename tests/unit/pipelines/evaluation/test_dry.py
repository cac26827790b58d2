"""What a robot would receive for a recorded observation, without robot and without Ray."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.policy.policy import Policy
from pipelines import cli
from pipelines.evaluation.recordings import RecordedSet
from tests.support.sets import TOP, write_v30
from tests.support.tiny import make_tiny_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Embodiment]:
    folder = tmp_path_factory.mktemp("dry")
    data = write_v30(folder / "set", lengths=(20, 15))
    robots = robots_at(Source(uri=str(data)))
    assert robots is not None
    robot = embodiment_of(robots, "arm", 8, 4, cameras={"front": TOP})
    d = len(robot.action_names)
    changes: dict[str, Any] = {
        "action_units": ("m",) * d,
        "limits": {"lower": (-0.01,) * d, "upper": (0.01,) * d, "velocity": (0.005,) * d},
    }
    robot = Embodiment.model_validate(robot.model_dump() | changes)
    return make_tiny_bundle(folder / "bundle", arm=robot), data, robot


def dry(made: tuple[Path, Path, Embodiment], *more: str) -> int:
    bundle, data, _ = made
    return cli.main(["serve", "--dry", "--policy", str(bundle), "--data", str(data), *more])


def test_the_values_are_those_that_the_policy_gives_for_what_was_recorded(
    made: tuple[Path, Path, Embodiment], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data, robot = made
    assert dry(made, "--episode", "1", "--step", "3", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    recorded = RecordedSet.of({"arm": robot}, Source(uri=str(data), episodes="1"))
    (recording,) = list(recorded)
    ((_, observation),) = recording.observed([3])
    chunk = Policy.load(bundle).act(observation)
    assert np.allclose(told["actions"], chunk.actions)
    assert (told["episode"], told["step"], told["policy_id"]) == (1, 3, chunk.policy_id)
    assert told["prompt"] == observation.prompt
    rows = told["rows"]
    assert [row["action"] for row in rows] == list(robot.action_names)
    for i, row in enumerate(rows):
        values = chunk.actions[:, i]
        assert row["unit"] == "m"
        assert (row["lower"], row["upper"], row["velocity"]) == (-0.01, 0.01, 0.005)
        assert row["first"] == pytest.approx(values[0], rel=1e-3)
        assert (row["least"], row["most"]) == pytest.approx((values.min(), values.max()), rel=1e-3)
        assert -0.01 - 1e-6 <= row["least"] <= row["most"] <= 0.01 + 1e-6
        off = np.abs(values - recording.action[3:11, i]).max()
        assert row["off"] == pytest.approx(off, rel=1e-3)
        assert ("clipped" in row["flags"]) == (f"clipped:{row['action']}" in chunk.flags)
    # An untrained policy of such narrow limits is held back somewhere.
    assert told["flags"]


def test_the_table_says_it_to_people_and_no_ray_is_needed(
    made: tuple[Path, Path, Embodiment],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert dry(made) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].split()[:5] == ["action", "unit", "now", "first", "least"]
    for name in made[2].action_names:
        assert any(line.startswith(name) for line in lines)
    assert f"arm at {made[2].fps:g} Hz  episode 0, step 0" in lines[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "400"], "episode 0 has the steps 0 to 19"),
        (["--step", "-1"], "episode 0 has the steps 0 to 19"),
        (["--episode", "9"], "episode"),
        (["--embodiment", "leg"], "'leg' is not one of this policy"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    made: tuple[Path, Path, Embodiment],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert dry(made, *options) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("gwp: error")]
    assert message in line


def test_without_a_recording_there_is_nothing_to_show(
    made: tuple[Path, Path, Embodiment], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--dry", "--policy", str(made[0])]) == 2
    assert "--data URI" in capsys.readouterr().err
