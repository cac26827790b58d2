"""What a run tells of the machines that it waits for. tests/cluster/test_growing.py has them come."""

from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.jobs.cluster import POOL, ClusterConfig
from pipelines.jobs.growing import there, wanted
from pipelines.jobs.ray_start import check_resources, require_secrets
from pipelines.jobs.train_job import TrainJob
from tests.unit.pipelines.jobs.test_stages import STAGES


def node(pool: str | None, cpus: float, alive: bool = True) -> dict[str, Any]:
    labels = {POOL: pool} if pool else {}
    return {"Alive": alive, "Labels": labels, "Resources": {"CPU": cpus}}


def test_what_is_asked_is_the_least_that_a_run_can_begin_with() -> None:
    cluster = ClusterConfig(workers=(2, 8), cpus_per_worker=4, gpu=True, train_pool="train")
    workers, decoding = wanted(cluster)
    assert workers.text == "2 workers with 4 CPU and a GPU each in pool 'train'"
    assert (workers.count, workers.each, workers.pool) == (2, {"CPU": 4, "GPU": 1}, "train")
    assert decoding.text == "1 CPU for decoding in any pool"
    assert (decoding.count, decoding.each, decoding.pool) == (1, {"CPU": 1}, None)


def test_what_is_there_is_counted_by_pool_without_the_dead() -> None:
    nodes = [node("train", 8), node("train", 8), node("train", 8, alive=False), node(None, 1)]
    assert there(nodes) == "there are 1 in no pool with 1 CPU, 2 in pool 'train' with 16 CPU"


def test_a_run_without_its_secrets_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["cluster.secrets=[GWP_SET, GWP_EMPTY, GWP_UNSET]"]
    job = load_config(STAGES / "policy.yaml", TrainJob, sets)
    monkeypatch.setenv("GWP_SET", "value-of-it")
    monkeypatch.setenv("GWP_EMPTY", "")
    with pytest.raises(GwpError, match="GWP_EMPTY, GWP_UNSET is not set") as told:
        require_secrets(job)
    assert "value-of-it" not in str(told.value)
    for name in ("GWP_EMPTY", "GWP_UNSET"):
        monkeypatch.setenv(name, "x")
    require_secrets(job)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ([], None),
        (["cluster.workers=4"], None),
        (["cluster.workers=[4, 9]"], None),
        (["cluster.workers=5"], "room for 4 workers with 1 CPU each, and 5 are asked for"),
        # Four CPUs, on three machines.
        (["cluster.cpus_per_worker=2"], "room for 1 workers with 2 CPU each, and 2 are asked for"),
        (["cluster.gpu=true"], "room for 1 workers with 1 CPU and a GPU each, and 2 are asked for"),
        (["cluster.data_pool=nowhere"], "no CPU in pool 'nowhere' for decoding"),
        (["cluster.data_pool=train"], None),
        (
            ["cluster.data_pool=train", "cluster.workers=4"],
            "has 4 CPUs in pool 'train'; 4 workers and decoding need 5",
        ),
    ],
)
def test_a_cluster_that_can_never_hold_a_job_is_told(
    sets: list[str], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("train", 2), node("train", 1), node("train", 1), node("data", 1)]
    nodes[0]["Resources"]["GPU"] = 1
    nodes.append(node("train", 64, alive=False))
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    pools = ["cluster.train_pool=train", "cluster.data_pool=data"]
    job = load_config(STAGES / "policy.yaml", TrainJob, [*pools, *sets])
    if words is None:
        check_resources(job)
        return
    with pytest.raises(GwpError, match=words):
        check_resources(job)
