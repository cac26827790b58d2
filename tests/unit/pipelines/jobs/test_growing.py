"""What a run tells of the machines that it waits for. tests/cluster/test_growing.py has them come."""

from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.jobs.cluster import POOL, ClusterConfig
from pipelines.jobs.growing import asked, there
from pipelines.jobs.ray_start import require_secrets
from pipelines.jobs.train_job import TrainJob
from tests.unit.pipelines.jobs.test_stages import STAGES


def node(pool: str | None, cpus: float, alive: bool = True) -> dict[str, Any]:
    labels = {POOL: pool} if pool else {}
    return {"Alive": alive, "Labels": labels, "Resources": {"CPU": cpus}}


def test_what_is_asked_is_the_least_that_a_run_can_begin_with() -> None:
    found = asked(ClusterConfig(workers=(2, 8), cpus_per_worker=4, gpu=True, train_pool="train"))
    assert found == (
        "2 workers with 4 CPU and a GPU each in pool 'train', 1 CPU for decoding in any pool"
    )


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
