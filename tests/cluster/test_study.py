"""A study on the cluster, from its document to its page: a cell that breaks ends nothing, and what
is done is not done again.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusters.mini import MiniCluster
from gwp import storage
from pipelines.cli import main
from pipelines.tracking.runs import client
from tests.unit.pipelines.jobs.test_stages import STAGES

pytest.importorskip("metaworld")

STUDIES = STAGES.parent / "studies"
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
