"""Where several columns could be the state or the action, it is told which one is taken."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gwp.data.formats.columns import passed_over
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_aloha, write_rlds
from tests.support.sets import FPS, TOP, write_v21
from tests.unit.gwp.data.formats.test_formats import robots


@pytest.mark.parametrize(
    ("taken", "usual", "have", "others"),
    [
        ("action", [], ["actions"], "actions"),
        ("action", [], ["data/action", "actions"], "actions, data/action"),
        ("action", [], ["next.action", "action_mask", "prev_actions", "rewards"], ""),
        ("observation.state", [], ["state", "observation.state_mask"], "state"),
        ("observations/qpos", [], ["observations/qvel", "states", "next_obs/state"], ""),
        ("a", [("a",), ("b", "c"), ("d", "e")], ["b", "c", "d"], "b+c"),
    ],
)
def test_columns_that_could_be_meant_are_named(
    taken: str, usual: list[tuple[str, ...]], have: list[str], others: str
) -> None:
    what = "action" if "action" in taken else "state"
    found = list(passed_over(what, None, (taken,), usual, [taken, *have]))
    assert [finding.what for finding in found] == (
        [f"{taken} is taken, not {others}"] if others else []
    )
    # Who names one is told nothing, and neither is who has none.
    assert not list(passed_over(what, (taken,), (taken,), usual, [taken, *have]))
    assert not list(passed_over(what, None, (), usual, have))


def lerobot(root: Path) -> None:
    write_v21(root, lengths=(6,))
    about = json.loads((root / "meta/info.json").read_text())
    about["features"]["actions"] = {"dtype": "float32", "shape": [2]}
    (root / "meta/info.json").write_text(json.dumps(about))


def hdf5(root: Path) -> None:
    write_aloha(root, lengths=(6,), cameras=(TOP,))
    with h5py.File(root / "episode_0.hdf5", "a") as file:
        file["actions"] = file["action"][()]


def rlds(root: Path) -> None:
    write_rlds(root, (6,), shards=(1,), more=lambda _, n: {"steps/actions": np.zeros(n)})


@pytest.mark.parametrize(
    ("write", "fields"), [(lerobot, {}), (hdf5, {"fps": FPS}), (rlds, {"fps": FPS})]
)
def test_two_actions_are_told_in_every_format(
    tmp_path: Path, write: Callable[[Path], None], fields: dict[str, float]
) -> None:
    write(tmp_path / "set")
    source = Source(uri=str(tmp_path / "set"), embodiment=None, **fields)
    said = [f for f in describe(source)["findings"] if f["item"] == "action"]
    assert [(f["what"], f["consequence"]) for f in said] == [
        ("action is taken, not actions", "ignored")
    ]
    assert "`--action actions`" in said[0]["advice"]
    chosen = source.model_copy(update={"action": ("action",)})
    assert not robots(chosen.uri, action=chosen.action, **fields).remarks
    rules = {"window": Window(chunk=4, stride=1), "clip": ClipWindow(frames=5, fps=5)}
    arm = embodiment_of(robots(source.uri, **fields), "arm", 4, 2)
    told: list[str] = []
    # Samples of video alone need none of them.
    for robot in (None, "arm"):
        use = source.model_copy(update={"embodiment": robot})
        build_manifest([use], embodiments={"arm": arm}, tell=told.append, **rules)
    assert [f"{source.uri}: action: action is taken" in text for text in told] == [True]
