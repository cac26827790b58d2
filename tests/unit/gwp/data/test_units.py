"""Angles of another unit than somebody says: told, and nothing is changed."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.units import unit_doubts
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from pipelines.datasets.inspect import describe
from pipelines.datasets.units import check_units
from tests.support.other_sets import write_aloha
from tests.support.sets import FPS, TOP
from tests.unit.gwp.data.formats.test_formats import robots

T = np.sin(np.arange(200) / 9)[:, None]


def robot(kind: str) -> Embodiment:
    return Embodiment(
        name="arm",
        fps=10,
        state_names=("yaw",),
        action_names=("yaw",),
        kinds={"yaw": kind},
        cameras={"front": "top"},
        chunk=4,
        replan=2,
    )


@pytest.mark.parametrize(
    ("kind", "reach", "wanted"),
    [
        ("degrees", 3.1, "radians"),
        ("degrees_positive", 0.9, "radians_positive"),
        ("degrees", 90.0, ""),
        ("degrees", 0.2, ""),
        ("radians", 90.0, "degrees"),
        ("radians", 3.1, ""),
        ("radians_positive", 3.1, ""),
    ],
)
def test_angles_of_the_other_unit_are_told(kind: str, reach: float, wanted: str) -> None:
    rows = T * reach + (reach if kind.endswith("positive") else 0)
    # What is no number says nothing.
    broken = np.concatenate([rows, [[np.nan]]])
    found = list(unit_doubts(robot(kind), [rows[:100], broken[100:]], [rows]))
    assert len(found) == (2 if wanted else 0)
    assert all(f"`kinds` says {kind}" in text and f"write {wanted}" in text for text in found)


def test_planning_tells_of_angles_and_keeps_the_samples(tmp_path: Path) -> None:
    root = write_aloha(tmp_path / "set", lengths=(30,), cameras=(TOP,))
    with h5py.File(root / "episode_0.hdf5", "a") as file:
        file["action"][:, 0] = 3 * T[:30, 0]
    source = Source(uri=str(root), embodiment="arm", fps=FPS)
    plain = embodiment_of(robots(root, fps=FPS), "arm", 4, 2)
    rules = {"window": Window(chunk=4, stride=1), "clip": ClipWindow(frames=5, fps=5)}
    told: list[str] = []
    for kinds in ({}, {"action_0": "degrees"}):
        arm = Embodiment.model_validate(plain.model_dump() | {"kinds": kinds})
        manifest = build_manifest([source], embodiments={"arm": arm}, tell=told.append, **rules)
        assert len(manifest.samples) == 30
    (text,) = told
    assert text.startswith(f"{root}: action action_0 goes from -")


def dimension(of: str, name: str, reach: float) -> dict[str, object]:
    return {"of": of, "name": name, "min": -reach, "max": reach, "mean": 0.0, "note": ""}


@pytest.mark.parametrize(
    ("state", "action", "count"),
    [
        (("yaw", 3.1), ("yaw", 178.0), 1),
        (("yaw", 170.0), ("yaw", 3.0), 1),
        (("yaw", 3.1), ("yaw", 3.1), 0),
        (("x", 0.1), ("x", 5.0), 0),
        (("yaw_deg", 3.1), ("yaw_deg", 3.1), 2),
        (("yaw_deg", 90.0), ("joint1_rad", 90.0), 1),
    ],
)
def test_names_and_ranges_that_disagree_are_told(
    state: tuple[str, float], action: tuple[str, float], count: int
) -> None:
    found = list(check_units([dimension("state", *state), dimension("action", *action)]))
    assert len(found) == count
    assert all(finding.consequence == "ignored" for finding in found)


def test_inspection_looks_at_units(tmp_path: Path) -> None:
    root = write_aloha(tmp_path / "set", lengths=(30,), cameras=(TOP,))
    with h5py.File(root / "episode_0.hdf5", "a") as file:
        file["yaw_deg"] = 3 * T[:30]
    facts = describe(Source(uri=str(root), fps=FPS, state=("yaw_deg",)))
    said = {finding["item"]: finding["what"] for finding in facts["findings"]}
    assert "is called degrees" in said["state yaw_deg_0"]
