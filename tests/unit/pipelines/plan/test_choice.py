"""What is chosen for a GPU: it fits, and nothing that fits is cheaper."""

import re
from itertools import pairwise, product

import pytest

from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.choice import cheaper, cheapest, fits
from pipelines.plan.machines import CARDS, GPUS, Assumed
from pipelines.plan.memory import USABLE, largest_micro_batch, memory_of
from pipelines.plan.stage import plan_stage
from pipelines.plan.time import step_time
from tests.unit.pipelines.jobs.test_stages import STAGES

ASSUMED = Assumed()
FILES = ["policy", "policy-gwp0", "policy-lora", "embodied", "world"]


def stage(name: str, *sets: str) -> TrainJob:
    return load_config(STAGES / "full" / f"{name}.yaml", TrainJob, list(sets))


def followed(name: str, sets: list[str], *before: str) -> TrainJob:
    return stage(name, *before, *sets)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("gb", CARDS)
def test_what_is_said_to_fit_fits_by_its_own_sum(name: str, gb: int) -> None:
    """As the file that follows the advice is planned, not as the choice says of itself."""
    job = stage(name)
    workers = job.cluster.min_workers
    choice = cheapest(job, ASSUMED, CARDS[gb], workers)
    if choice is None:
        pytest.skip("nothing fits")
    memory = memory_of(followed(name, choice.sets(job)))
    assert sum(memory.parts.values()) <= USABLE * gb * 1e9
    assert memory.loading <= USABLE * gb * 1e9
    assert memory == choice.memory
    assert choice.passes * choice.micro_batch >= job.share(workers)


@pytest.mark.parametrize("gb", [24, 48, 80])
def test_nothing_that_fits_is_cheaper(gb: int) -> None:
    """Of all stages, micro-batches that divide a share, and numbers of blocks computed again."""
    job, gpu = stage("policy"), GPUS[CARDS[gb]]
    best = cheapest(job, ASSUMED, CARDS[gb], 8)
    assert best
    for zero, micro, again in product((1, 2, 3), (16, 8, 4, 2, 1), (0, 1, 7, 15, 24, 29, 30)):
        update = {
            "zero_stage": zero,
            "micro_batch": micro,
            "gradient_checkpointing": {0: False, 30: True}.get(again, again),
        }
        other = job.model_copy(update={"engine": job.engine.model_copy(update=update)})
        if memory_of(other, 8).fits(gb):
            assert step_time(other, ASSUMED, gpu, 8).middle >= best.time.middle


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("gb", [48, 80])
def test_the_largest_micro_batch_is_the_largest_that_fits(gb: int, zero: int) -> None:
    """One pass needs no sums in fp32, so that 16 samples may fit where 15 do not."""
    job = stage("policy", "engine.gradient_checkpointing=false", f"engine.zero_stage={zero}")
    fitting = [n for n in range(1, 17) if memory_of(job, 8, zero, n).fits(gb)]
    assert largest_micro_batch(job, gb, 8, zero) == max(fitting, default=0)


@pytest.mark.parametrize("name", FILES)
def test_a_larger_card_is_never_dearer(name: str) -> None:
    """Of the same speed; and none that fits is followed by one where nothing does."""
    job = stage(name)
    found = [
        cheapest(job, ASSUMED, "h100", job.cluster.min_workers, gb) for gb in range(16, 160, 12)
    ]
    for smaller, larger in pairwise(found):
        if smaller:
            assert larger
            assert larger.time.middle <= smaller.time.middle
    assert found[-1]


@pytest.mark.parametrize("name", ["policy", "policy-gwp0"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_more_gpus_never_need_more_of_each(name: str, zero: int) -> None:
    """With as many samples at a time; so too with a batch that is divided among them."""
    for micro in ("engine.micro_batch=1", "engine.micro_batch=null"):
        job = stage(name, f"engine.zero_stage={zero}", micro)
        peaks = [memory_of(job, workers).peak for workers in (1, 2, 4, 8, 16, 32, 64, 128)]
        assert peaks == sorted(peaks, reverse=True)


def test_the_stage_grows_where_memory_is_short() -> None:
    """Stage 1 where the card holds it, and the dearest one last; none in fp32, which shards nothing."""
    chosen = {}
    for gb in (24, 48, 80, 141):
        choice = cheapest(stage("policy"), ASSUMED, "h100", 8, gb)
        assert choice
        chosen[gb] = choice.zero_stage
    assert chosen == {24: 3, 48: 2, 80: 1, 141: 1}
    one = stage("policy-lora", "engine.precision=fp32")
    held = cheapest(one, ASSUMED, "h200", 1)
    assert held
    assert held.zero_stage == 0


def test_compiled_blocks_have_no_stage_3() -> None:
    job = stage("policy", "engine.compile=true")
    assert cheapest(job, ASSUMED, CARDS[24], 8) is None
    assert set(plan_stage(job).fitting) == {1, 2}


def test_what_a_recipe_says_is_not_advised_against() -> None:
    """Its stage is 2, so a file with it takes no other."""
    job = stage("policy-published")
    for gb in CARDS:
        choice = cheapest(job, ASSUMED, CARDS[gb], 8)
        assert choice is None or choice.zero_stage == 2
        if choice:
            assert memory_of(followed("policy-published", choice.sets(job))).fits(gb)
    said = fits(job, 24)
    assert said
    assert "zero_stage" not in said


def test_loading_counts() -> None:
    """Before stage 3 shards weights they are whole on each GPU: 6 B of them in fp32 are 24 GB,
    whatever the workers.
    """
    job = stage("policy", "engine.zero_stage=3", "engine.precision=fp32", "cluster.workers=128")
    memory = memory_of(job)
    assert memory.total < USABLE * 24e9 < memory.loading
    assert memory.loading == pytest.approx(4 * 6.02e9 * (1 + 1 / 128), rel=0.01)
    assert memory.host == pytest.approx(4 * 6.02e9, rel=0.01)
    said = fits(job, 24)
    assert said
    assert "while weights are loaded" in said


@pytest.mark.parametrize(
    ("sets", "gb", "words"),
    [
        ([], 80, None),
        ([], 24, r"needs about 33 GB, of a GPU of 24 GB 22 are usable: set engine.zero_stage=3, "),
        (
            ["engine.gradient_checkpointing=false"],
            48,
            r"set engine.zero_stage=3, engine.gradient_checkpointing=3$",
        ),
        (["cluster.workers=1"], 80, r"take 2 workers, or recipe=lora, which trains less"),
        (["cluster.workers=2"], 24, r"take GPUs of 80 GB, or 8 workers, or recipe=lora"),
        (["cluster.workers=1", "engine.global_batch=1"], 24, r"take GPUs of 141 GB, or recipe"),
        (["cluster.gpu=false"], 24, None),
    ],
)
def test_what_does_not_fit_is_said_with_what_helps(
    sets: list[str], gb: int, words: str | None
) -> None:
    said = fits(stage("policy", *sets), gb)
    if words is None:
        assert said is None
    else:
        assert said
        assert re.search(words, said), said
        assert "\n" not in said


@pytest.mark.parametrize("name", ["policy", "policy-gwp0", "embodied", "world"])
@pytest.mark.parametrize("gb", [24, 48])
def test_advice_that_is_followed_fits(name: str, gb: int) -> None:
    before = "engine.gradient_checkpointing=false"
    said = fits(stage(name, before), gb)
    assert said
    _, _, sets = said.partition(": set ")
    assert fits(followed(name, sets.split(", "), before), gb) is None


def test_a_file_that_is_dearer_than_need_be_is_told_what_to_set() -> None:
    job = stage("policy", "engine.zero_stage=3")
    better = cheaper(job, ASSUMED, 8)
    assert better
    assert "engine.zero_stage=1" in better.sets(job)
    plan = plan_stage(job)
    assert plan.cheaper == better.sets(job)
    assert plan.cheaper_s == better.time.range
    # Followed, there is nothing left to say.
    assert not plan_stage(followed("policy", plan.cheaper)).cheaper
    assert not plan_stage(stage("policy", "engine.zero_stage=3", "cluster.gpu=false")).cheaper
