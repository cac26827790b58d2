"""A study on the cluster, from its document to its page: a cell that breaks ends nothing, and what
is done is not done again.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from clusters.mini import MiniCluster
from gwp import storage
from gwp.data.formats.lerobot.write import LeRobotWriter
from pipelines.cli import main
from pipelines.tracking.runs import client
from tests.support.sets import SHARED
from tests.unit.pipelines.jobs.test_stages import STAGES

pytest.importorskip("metaworld")

STUDIES = STAGES.parent / "studies"
REAL = SHARED / "g1_bottle_many"
TASKS = ["reach-v3", "door-open-v3"]
CLOSED = {"kind": "closed-loop", "name": "success", "tasks": TASKS, "episodes": 1, "max_steps": 12}


def document(place: str) -> dict[str, Any]:
    video = [{"uri": "x/policy", "with_actions": False}]
    held_out = [{"uri": "x/held-out", "embodiment": "metaworld-sawyer"}]
    return {
        "kind": "Study",
        "version": 1,
        "name": "small",
        "claim": "It runs to its end.",
        "storage": place,
        "data": {
            "policy": {"tasks": TASKS, "episodes": 1, "seed": 10000, "size": 32},
            "held-out": {"tasks": TASKS, "episodes": 1, "seed": 20000, "size": 32},
        },
        "codec": {"kind": "pca", "spatial": 8, "channels": 24, "fit_clips": 32},
        "set": {
            "data.canvas": {"layout": "single", "width": 32, "height": 32},
            "engine.zero_stage": 0,
            "engine.global_batch": 8,
            "cluster": {
                "workers": 1,
                "decode_tasks": 1,
                "train_pool": "train",
                "data_pool": "data",
            },
            "run.steps": 4,
            "run.checkpoint_every": 2,
        },
        "stages": {
            "video": [{"file": str(STAGES / "embodied.yaml"), "set": {"data.sources": video}}]
        },
        "stage": {
            "file": str(STAGES / "policy.yaml"),
            "set": {"validation": {"sources": held_out, "samples": 4, "looked_at": 4}},
        },
        "demonstrations": [1],
        "seeds": [1],
        "arms": {
            "begun": {"start": "video"},
            "joint": {"start": "video", "set": {"model.visibility": "joint"}},
            # Nobody sets it, which its training finds out.
            "broken": {"set": {"cluster.secrets": ["GWP_TEST_NOWHERE"]}},
        },
        "judge": [CLOSED, {"kind": "open-loop", "name": "error", "data": "held-out"}],
        "compare": [
            {"arms": ["begun", "joint"], "measure": "error"},
            {"arms": ["begun", "joint"], "measure": "steps-to-error", "error": 100.0},
        ],
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_ends_with_a_cell_that_broke_and_goes_on_where_it_was(
    mini: MiniCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{mini.bucket}/studies"
    root, file = f"{place}/small", tmp_path / "study.yaml"
    asked = document(place)
    file.write_text(yaml.safe_dump(asked, sort_keys=False))

    assert main(["study", str(file)]) == 1
    told = capsys.readouterr()
    figures = json.loads(storage.read_bytes(f"{root}/study.json"))
    assert list(figures["broken"]) == ["broken-d1-s1"]
    assert "GWP_TEST_NOWHERE is not set" in figures["broken"]["broken-d1-s1"]
    assert figures["missing"] == []
    assert "broken-d1-s1" in told.out
    rows = {row["arm"]: row["judged"] for row in figures["rows"]}
    assert set(rows) == {"begun", "joint"}
    for judged in rows.values():
        assert set(judged) == {"success", "error"}
        assert judged["success"]["episodes"] == 2
        # One episode of each task.
        assert judged["error"]["episodes"] == 2
    assert {one["agent"] for one in figures["controls"]} == {"random", "blind"}
    pairs = {row["measure"]: row for row in figures["compare"]}
    assert pairs["steps-to-error"]["steps"] == [[2.0, 2.0]]
    assert len(figures["curves"]["begun-d1-s1"]) == 2
    page = storage.read_bytes(f"{root}/study.html").decode()
    assert "broken-d1-s1" in page

    mlflow = client()
    experiment = mlflow.get_experiment_by_name("small")
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    study = runs.pop("study/small")
    assert study.info.status == "FAILED"
    # Every run that ended as it should is shown below the study's.
    finished = [run for run in runs.values() if run.info.status == "FINISHED"]
    assert len(finished) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in finished} == {study.info.run_id}

    def changed() -> dict[str, bytes]:
        names = [name for name in storage.list_files(root) if name.endswith("result.json")]
        return {name: storage.read_bytes(f"{root}/{name}") for name in names}

    assert main(["study", str(file)]) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    before = changed()
    # The arm that broke is taken out, and a judgement comes in: nothing is trained.
    del asked["arms"]["broken"]
    asked["judge"].append({"kind": "video", "name": "imagined", "data": "held-out", "clips": 2})
    asked["judge"].append({"kind": "latency", "name": "latency", "repeats": 3})
    asked["judge"].append(CLOSED | {"name": "charged", "charge": "1x"})
    file.write_text(yaml.safe_dump(asked, sort_keys=False))
    assert main(["study", str(file), "--resume"]) == 0
    assert changed() == before
    figures = json.loads(storage.read_bytes(f"{root}/study.json"))
    assert figures["broken"] == {}
    for row in figures["rows"]:
        assert set(row["judged"]) == {"success", "error", "imagined", "latency", "charged"}
        assert row["judged"]["charged"]["charged_ms"][0] > 0
        assert row["judged"]["latency"]["mean"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["speed", "video", "stages"])
def test_the_studies_that_come_with_the_package_run(mini: MiniCluster, name: str) -> None:
    # One seed of each arm. All three record and train in one storage, as its users would.
    place = f"{mini.bucket}/scaled"
    pools = ["set.cluster.train_pool=train", "set.cluster.data_pool=data"]
    settings = [f"storage={place}", *pools]
    small = ["--scale", "0.02", "--only", "*-s1"]
    file = str(STUDIES / f"{name}.yaml")
    sets = [part for setting in settings for part in ("--set", setting)]
    main(["study", file, *small, *sets])
    figures = json.loads(storage.read_bytes(f"{place}/{name}-x0.02/study.json"))
    assert figures["broken"] == {}
    study = yaml.safe_load(Path(file).read_text())
    assert {row["arm"] for row in figures["rows"]} == set(study["arms"])
    assert all(row["judged"] for row in figures["rows"])


def there(place: str, uri: str) -> dict[str, Any]:
    """A study of recordings that are there: two arms, from pictures."""
    parts = {"train": "0::3,1::3", "validation": "2::6", "test": "5::6"}
    stage = {
        "data.sources": [{"uri": "x/train", "embodiment": "arm"}],
        "data.embodiments": {"arm": {"id": 0}},
        "data.window": {"chunk": 4, "stride": 1},
        "objective": {"modes": {"wam": 1}},
        "validation": {
            "sources": [{"uri": "x/validation", "embodiment": "arm"}],
            "samples": 4,
            "looked_at": 4,
        },
    }
    judge = [
        {"kind": "open-loop", "name": f"error-{name}", "data": name}
        for name in ("validation", "test")
    ]
    own = {
        "name": "there",
        "data": {name: {"uri": uri, "episodes": part} for name, part in parts.items()},
        "labelled": "train",
        "train_from": "pictures",
        "stages": {},
        "stage": {"file": str(STAGES / "policy.yaml"), "set": stage},
        "arms": {"varied": {"set": {"data.zoom": 1.1, "data.light": 0.2}}, "plain": {}},
        "seeds": [1, 2],
        "judge": judge,
        "compare": [{"arms": ["varied", "plain"], "measure": "error-test", "unequal": ["data"]}],
    }
    whole = document(place) | own
    del whole["demonstrations"]
    return whole


def write_set(folder: Path) -> Path:
    """Six episodes of noise."""
    rng = np.random.default_rng(0)
    axes = ("x", "y")
    with LeRobotWriter(
        str(folder),
        fps=10.0,
        robot_type="dot",
        cameras={"observation.images.top": (32, 32)},
        state_names=axes,
        action_names=axes,
        with_actions=True,
    ) as writer:
        for _ in range(6):
            frames = rng.integers(0, 256, (14, 32, 32, 3), np.uint8)
            states, actions = rng.normal(size=(2, 14, len(axes))).astype(np.float32)
            writer.add_episode({"observation.images.top": frames}, "go", states, actions)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_of_recordings_that_are_there_tells_each_held_out_episode(
    mini: MiniCluster, tmp_path: Path
) -> None:
    place = f"{mini.bucket}/others"
    storage.upload(write_set(tmp_path / "set"), f"{place}/recorded")
    before = sorted(storage.list_files(f"{place}/recorded"))
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(there(place, f"{place}/recorded"), sort_keys=False))

    assert main(["study", str(file)]) == 0
    figures = json.loads(storage.read_bytes(f"{place}/there/study.json"))
    assert (figures["broken"], figures["missing"], figures["demonstrations"]) == ({}, [], [None])
    assert set(figures["curves"]) == {f"{arm}-s{s}" for arm in ("varied", "plain") for s in (1, 2)}
    for row in figures["rows"]:
        for judgement, number in (("error-validation", "2"), ("error-test", "5")):
            episodes = row["judged"][judgement]["by_episode"]["mse"]
            # The one episode that its set chooses, of both seeds.
            assert list(episodes["errors"]) == [number]
            assert set(episodes["by_seed"]) == {"1", "2"}
    assert "Held-out episodes" in storage.read_bytes(f"{place}/there/study.txt").decode()
    # From pictures nothing is encoded before, and nothing is recorded.
    assert not list(storage.list_files(f"{place}/common/cache"))
    assert not list(storage.list_files(f"{place}/common/data"))
    assert sorted(storage.list_files(f"{place}/recorded")) == before
    # All arms have one codec.
    runs = [storage.read_bytes(f"{cell}/codec/codec.safetensors") for cell in _runs(place)]
    assert len(runs) == 4
    assert len(set(runs)) == 1


def _runs(place: str) -> list[str]:
    cells = ("varied-s1", "varied-s2", "plain-s1", "plain-s2")
    uris = [f"{place}/there/cells/{cell}/result.json" for cell in cells]
    return [json.loads(storage.read_bytes(uri))["run"] for uri in uris]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real recordings are not at {REAL}")
def test_the_study_of_real_recordings_runs(mini: MiniCluster) -> None:
    place = f"{mini.bucket}/real"
    storage.upload(REAL, f"{place}/recorded")
    sets = [f"data.{name}.uri={place}/recorded" for name in ("train", "validation", "test")]
    pools = ["set.cluster.train_pool=train", "set.cluster.data_pool=data"]
    parts = [f"--set={one}" for one in (f"storage={place}", "codec.fit_clips=32", *sets, *pools)]
    file = str(STUDIES / "g1.yaml")
    assert main(["study", file, "--scale", "0.02", "--only", "*-s1", *parts]) == 0
    figures = json.loads(storage.read_bytes(f"{place}/g1-x0.02/study.json"))
    assert figures["broken"] == {}
    numbers = {"error-validation": range(7, 80, 8), "error-test": range(3, 80, 8)}
    for row in figures["rows"]:
        for name, chosen in numbers.items():
            errors = row["judged"][name]["by_episode"]["mse"]["errors"]
            assert list(map(int, errors)) == list(chosen)
