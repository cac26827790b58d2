"""Ray on this machine has room for whatever is asked of it."""

import os
from typing import Any

import pytest
import ray

from pipelines.config.load import load_config
from pipelines.jobs.ray_start import cpus_of, ensure_ray
from pipelines.jobs.train_job import TrainJob
from tests.unit.pipelines.jobs.test_stages import STAGES


def job(*sets: str) -> TrainJob:
    return load_config(STAGES / "policy.yaml", TrainJob, sets)


def test_of_several_jobs_the_largest_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = "{sources: [{uri: other, embodiment: metaworld-sawyer}], worker: {cpus: 1.5}}"
    first, second = job("cluster.workers=1"), job("cluster.workers=32", f"validation={held_out}")
    # A decoding task more than it asks for, and whole CPUs for who judges.
    assert cpus_of(second) == 32 + second.cluster.decode_tasks + 1 + 2
    asked: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    # Ray itself is another's.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    ensure_ray(first, second)
    assert asked["num_cpus"] == max(cpus_of(second), os.cpu_count() or 1)
