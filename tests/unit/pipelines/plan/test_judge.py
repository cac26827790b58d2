"""A plan counts the process that judges checkpoints beside the steps."""

import pytest

from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.machines import Assumed
from pipelines.plan.show import show_stage
from pipelines.plan.stage import plan_stage
from tests.unit.pipelines.jobs.test_stages import STAGES


def job(worker: str) -> TrainJob:
    held_out = f"validation={{sources: [{{uri: s3://w/held}}], worker: {worker}}}"
    return load_config(STAGES / "full" / "policy.yaml", TrainJob, [held_out])


def test_a_gpu_of_its_own_is_an_hour_more_for_each_of_the_stage() -> None:
    assumed = Assumed(prices={"h100": 2.0, "core": 0.05})
    alone, beside = (plan_stage(job(w), assumed) for w in ("null", "{gpus: 1, cpus: 4}"))
    workers = alone.workers
    assert beside.gpu_hours[0] == pytest.approx(alone.gpu_hours[0] * (workers + 1) / workers)
    assert alone.price
    assert beside.price
    hours = alone.gpu_hours[1] / workers
    assert beside.price[1] - alone.price[1] == pytest.approx(hours * (2.0 + 4 * 0.05))
    # The checkpoint that is judged stays meanwhile.
    assert beside.kept_gb == pytest.approx(alone.kept_gb + alone.checkpoint_gb)
    # And the best, whoever judges.
    none = plan_stage(load_config(STAGES / "full" / "policy.yaml", TrainJob), assumed)
    assert alone.kept_gb == pytest.approx(none.kept_gb + none.checkpoint_gb)
    assert "a process with 4 CPU and a GPU, beside the steps" in show_stage(beside, assumed)
    assert "judged by" not in show_stage(alone, assumed)
