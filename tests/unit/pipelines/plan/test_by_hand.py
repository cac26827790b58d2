"""Plans against what a person computes from the papers' tables, and against checkpoints that were written.

Nothing here calls the functions that plans are made of, but for what is compared.
"""

import math
from pathlib import Path

import pytest

from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.memory import memory_of
from pipelines.plan.stage import checkpoint_bytes, plan_stage
from tests.support import ranks
from tests.unit.pipelines.jobs.test_stages import STAGES

FULL = {"gwp05": STAGES / "full" / "policy.yaml", "gwp0": STAGES / "full" / "policy-gwp0.yaml"}


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def expert(width: int, ffn: int, inner: int) -> int:
    """Of one layer: two attentions, the norm between them, feed-forward, six modulations."""
    attention = 3 * linear(width, inner) + linear(inner, width) + 2 * inner
    return 2 * attention + 2 * width + linear(width, ffn) + linear(ffn, width) + 6 * width


def conditions(width: int, text: int) -> int:
    """Noise level (of 256 waves) and text, and the head's two modulations."""
    time = linear(256, width) + linear(width, width) + linear(width, 6 * width)
    return time + linear(text, width) + linear(width, width) + 2 * width


def of_actions(width: int, channels: int, robots: int) -> int:
    """128, then 256 wide; the layer at the robot's side once for each robot."""
    return robots * linear(channels, 128) + linear(128, 256) + linear(256, width)


def parameters(family: str) -> int:
    inner, channels, robots, text, layers = 24 * 128, 16, 2, 4096, 30
    experts = {"gwp05": [(3072, 14336), (1024, 4096)], "gwp0": [(3072, 14336)]}[family]
    count = sum(layers * expert(*e, inner) + conditions(e[0], text) for e in experts)
    # Patches of 1 x 2 x 2 of 48 channels, in and out.
    count += linear(4 * 48, 3072) + linear(3072, 4 * 48)
    narrow = experts[-1][0]
    encoders = 2 if family == "gwp05" else 1
    decoder = linear(narrow, 256) + linear(256, 128) + robots * linear(128, channels)
    return count + encoders * of_actions(narrow, channels, robots) + decoder


@pytest.mark.parametrize("family", list(FULL))
def test_parameters(family: str) -> None:
    plan = plan_stage(load_config(FULL[family], TrainJob))
    assert sum(plan.parameters.values()) == parameters(family)


@pytest.mark.parametrize("family", list(FULL))
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("micro", [16, 4])
def test_bytes_of_a_gpu_of_eight(family: str, zero: int, micro: int) -> None:
    sets = [f"engine.zero_stage={zero}", f"engine.micro_batch={micro}"]
    memory = memory_of(load_config(FULL[family], TrainJob, sets))
    parts, n = memory.parts, parameters(family)
    part = math.ceil(n / 8)
    # Of a share of 16 samples: all at once, or four times four, whose gradients are summed in fp32.
    gradient = 2 if micro == 16 else 4
    assert parts["parameters"] == 2 * (part if zero == 3 else n)
    assert parts["gradients"] == gradient * (n if zero == 1 else part)
    assert parts["optimiser"] == (4 + 4 + 4) * part
    assert parts["average of weights"] == pytest.approx(4 * n / 8, abs=8)
    bucket = {1: gradient * 500e6, 2: 2 * 500e6, 3: 2 * 500e6 + 2 * 1e9}[zero]
    assert parts["buffers"] == bucket
    # Whole at first, then a share beside it; in fp32 in the machine's memory.
    assert memory.loading == 2 * n + (2 * (n // 8) if zero == 3 else 0)
    assert memory.host == 4 * n
    # 705e6 parameters, and four of its widest maps: 160 channels of four pictures of half the sides.
    maps = 4 * 160 * 4 * (384 // 2) * (320 // 2)
    assert parts["video codec"] == 2 * (705_000_000 + micro * maps)


def test_what_changes_buckets_changes_the_plan() -> None:
    sets = ["engine.overrides={zero_optimization: {reduce_bucket_size: 1000000}}"]
    assert memory_of(load_config(FULL["gwp05"], TrainJob, sets)).parts["buffers"] == 2_000_000


def test_elastic_workers() -> None:
    """By the fewest: they have most to hold and take longest. Two of them share 128 samples, 64
    each, in 16 turns of 4; gradients are summed in fp32, also where eight would need no turns.
    """
    sets = ["cluster.workers=[2, 8]", "engine.micro_batch=4"]
    job = load_config(FULL["gwp05"], TrainJob, sets)
    plan, n = plan_stage(job), parameters("gwp05")
    assert (plan.workers, plan.micro_batch) == (2, 4)
    assert plan.memory.parts["gradients"] == 4 * n // 2
    assert plan.memory.parts["optimiser"] == 12 * n // 2
    eight = load_config(
        FULL["gwp05"], TrainJob, ["cluster.workers=[2, 8]", "engine.micro_batch=16"]
    )
    assert memory_of(eight, workers=8).parts["gradients"] == 4 * math.ceil(n / 8)
    # The same arithmetic, whoever does it.
    fixed = plan_stage(load_config(FULL["gwp05"], TrainJob, ["cluster.workers=8"]))
    four = tuple(4 * seconds for seconds in fixed.time.products)
    assert plan.time.products == pytest.approx(four)
    assert plan.checkpoint_gb == pytest.approx(18 * n / 1e9)


@pytest.mark.parametrize("family", list(FULL))
def test_cores_for_decoding_and_traffic(family: str) -> None:
    """Five pictures of three cameras of a sample, at 525 a second of a core; to the object store goes
    a canvas of 384 x 320 in three colours, or two latent frames of 48 x 24 x 20 numbers in fp16.
    """
    plan = plan_stage(load_config(FULL[family], TrainJob))
    for cores, rate in zip(plan.decode_cores, plan.samples_s, strict=True):
        assert cores == pytest.approx(5 * 3 * rate / 525 / 8)
    assert plan.store_mb_s == pytest.approx(5 * 384 * 320 * 3 * plan.samples_s[1] / 1e6)
    sets = ["data.cache=s3://b/cache", "data.augment=false"]
    cached = plan_stage(load_config(FULL[family], TrainJob, sets))
    assert cached.decode_cores == (0, 0)
    assert cached.store_mb_s == pytest.approx(2 * 48 * 24 * 20 * 2 * cached.samples_s[1] / 1e6)


def written(rank: ranks.Rank, stage: int, precision: str) -> int:
    """Parameters of the model whose checkpoint of two ranks is written, behind a step."""
    rank.start(stage, f"engine.precision={precision}")
    rank.take(range(1))
    rank.save("checkpoint")
    return sum(math.prod(rank.engine.shape(name)) for name in rank.engine.parameters())


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "bf16")]
)
def test_checkpoints_are_as_large_as_planned(tmp_path: Path, stage: int, precision: str) -> None:
    count = ranks.run(written, 2, tmp_path, stage, precision)
    files = [p for p in (tmp_path / "checkpoint").rglob("*") if p.is_file() and p.suffix != ".py"]
    size = sum(p.stat().st_size for p in files)
    sets = [f"engine.zero_stage={stage}", f"engine.precision={precision}", "cluster.workers=2"]
    job = load_config(STAGES / "world.yaml", TrainJob, sets)
    by_hand = {0: 4 + 8, 1: 4 + 12, 2: 4 + 12, 3: 12}[stage] + 4
    if precision == "bf16" and stage < 3:
        by_hand -= 2
    assert checkpoint_bytes(job, count) == by_hand * count
    # Names and shapes come on top: the less, the larger the model.
    assert by_hand * count < size < 1.15 * by_hand * count
