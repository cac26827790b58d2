"""The stage files of the repository, and what is rendered from them."""

import itertools
from pathlib import Path

import pytest
import torch

from gwp.errors import GwpError
from gwp.model.transformer import WorldActionTransformer
from pipelines.config import load_config
from pipelines.engine import deepspeed_config
from pipelines.prepare import init_uri
from pipelines.stage import OptimizerConfig, TrainJob

STAGES = Path(__file__).resolve().parents[2] / "pipelines" / "stages"
TINY = ["world", "embodied", "policy"]
FULL = {"world": 6_021_560_928, "embodied": 6_021_560_928, "policy": 6_021_560_928, "policy-gwp0": 5_001_438_304}


def parameters(job: TrainJob) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in WorldActionTransformer(job.model_config_).parameters())


@pytest.mark.parametrize("name", TINY)
def test_tiny_stages_are_tiny_and_share_one_model(name):
    job = load_config(STAGES / f"{name}.yaml", TrainJob)
    assert parameters(job) < 5_000_000
    assert job.model == load_config(STAGES / "policy.yaml", TrainJob).model
    assert deepspeed_config(job)["zero_optimization"] == {"stage": 2}
    assert job.cluster.workers == 2


@pytest.mark.parametrize("name", list(FULL))
def test_full_stages_have_the_released_shapes(name):
    job = load_config(STAGES / "full" / f"{name}.yaml", TrainJob)
    assert parameters(job) == FULL[name]
    assert deepspeed_config(job) == {
        "train_micro_batch_size_per_gpu": 16,
        "train_batch_size": 128,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2},
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": True},
    }


def test_each_stage_starts_from_the_one_before():
    jobs = [load_config(STAGES / f"{name}.yaml", TrainJob) for name in TINY]
    assert [job.init for job in jobs] == [None, jobs[0].run.name, jobs[1].run.name]


def test_overrides_reach_deepspeed_and_keep_the_rest():
    job = load_config(STAGES / "world.yaml", TrainJob, ["engine.overrides={zero_optimization: {overlap_comm: true}}"])
    assert deepspeed_config(job)["zero_optimization"] == {"stage": 2, "overlap_comm": True}


def test_learning_rate_warms_up_and_decays():
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=10, schedule="cosine", final_lr=0.1)
    rates = [optimizer.lr_at(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["model.in_channels=64"], "256 numbers but the model is 128 wide"),
        (["init=null"], "must name its codec and text encoder"),
        (["data.sources=[{uri: x, embodiment: nobody}]"], "nobody"),
        (["data.embodiments={metaworld-sawyer: {id: 7}}"], r"model\.num_embodiments above 7"),
        (["objective.chunk_prefix=0.5", "objective.max_prefix=0"], "max_prefix"),
        (["data.window={chunk: 12, stride: 5}"], r"4n \+ 1|chunk"),
        (["optimizer.learning_rate=1"], "learning_rate"),
    ],
)
def test_jobs_that_cannot_train_are_refused_with_the_reason(sets, words):
    with pytest.raises(GwpError, match=words):
        load_config(STAGES / "policy.yaml", TrainJob, sets)


def test_a_stage_whose_parent_has_not_finished_says_so(tmp_path):
    job = load_config(STAGES / "embodied.yaml", TrainJob, [f"run.storage={tmp_path}"])
    with pytest.raises(GwpError, match="run 'world' has no finished weights"):
        init_uri(job)
