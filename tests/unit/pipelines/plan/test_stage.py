"""Plans of the released stages, by hand: both families, every part."""

import json
from pathlib import Path

import pytest
import torch

from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.activations import activation_bytes
from pipelines.plan.choice import fits
from pipelines.plan.machines import Assumed
from pipelines.plan.memory import GPUS_GB, largest_micro_batch, memory_of
from pipelines.plan.sample import SampleShape
from pipelines.plan.show import show_stage
from pipelines.plan.stage import checkpoint_bytes, plan_stage
from tests.unit.pipelines.jobs.test_stages import FRAMES, FULL, STAGES

GB = 1e9
# Parameters of the released shapes, as the papers' tables have them.
MIXTURE, DENSE = FULL["policy"], FULL["policy-gwp0"]


def stage(name: str, *sets: str) -> TrainJob:
    return load_config(STAGES / f"{name}.yaml", TrainJob, list(sets))


@pytest.mark.parametrize(("name", "count"), [("policy", MIXTURE), ("policy-gwp0", DENSE)])
def test_what_a_gpu_holds_by_hand(name: str, count: int) -> None:
    """ZeRO-2 over 8 GPUs, bf16, 16 samples each at once: weights whole, the rest an eighth."""
    parts = memory_of(stage(f"full/{name}")).parts
    assert parts["parameters"] == 2 * count
    assert parts["gradients"] == pytest.approx(2 * count / 8)
    assert parts["optimiser"] == pytest.approx(12 * count / 8)
    assert parts["average of weights"] == pytest.approx(4 * count / 8)
    # A bucket of 5e8 numbers in bf16.
    assert parts["buffers"] == 500_000_000 * 2
    assert 2 * 705_000_000 < parts["video codec"] < 6 * GB


def test_zero_stages_shard_one_part_more_each() -> None:
    job = stage("full/policy")
    first, second, third = (memory_of(job, zero_stage=s, micro_batch=4).parts for s in (1, 2, 3))
    # Sums over four micro-batches are fp32: whole, then an eighth.
    assert first["gradients"] == 4 * MIXTURE
    assert second["gradients"] == third["gradients"] == pytest.approx(4 * MIXTURE / 8)
    assert second["parameters"] == 2 * MIXTURE
    assert third["parameters"] == pytest.approx(2 * MIXTURE / 8)
    assert {p["optimiser"] for p in (first, second, third)} == {first["optimiser"]}


def test_what_does_not_train_needs_neither_gradients_nor_states() -> None:
    """One GPU: weights of all, and of the rest no more than of what trains."""
    for recipe in ("lora", "action-expert"):
        job = stage("full/policy", f"recipe={recipe}", "cluster.workers=1", "engine.micro_batch=1")
        parts = memory_of(job).parts
        assert parts["parameters"] == 2 * MIXTURE
        assert parts["optimiser"] == 12 * job.trained < 2.1 * MIXTURE
        assert parts["gradients"] == 4 * job.trained
        assert parts["average of weights"] == 4 * job.trained
        whole = checkpoint_bytes(stage("full/policy"), MIXTURE)
        assert (
            checkpoint_bytes(job, MIXTURE, job.trained)
            == 2 * MIXTURE + 16 * job.trained
            < whole / 3
        )


def test_what_trains_and_what_does_not_by_hand() -> None:
    """Adapters stand beside the weights; the projections of states and actions train themselves."""
    whole = plan_stage(stage("full/policy"))
    assert (whole.trained, whole.frozen) == (MIXTURE, 0)
    expert = plan_stage(stage("full/policy", "recipe=action-expert"))
    assert expert.trained + expert.frozen == MIXTURE
    # The expert's share of the blocks is most of it.
    assert whole.parameters["action"] < expert.trained < 1.05 * whole.parameters["action"]
    adapters = plan_stage(stage("full/policy", "recipe=lora", "lora.whole=[]"))
    assert adapters.frozen == MIXTURE
    projections = plan_stage(stage("full/policy", "recipe=lora"))
    assert projections.trained - adapters.trained == MIXTURE - projections.frozen > 0


def test_adapters_of_the_released_shape_fit_the_card_that_their_file_names() -> None:
    assert fits(stage("full/policy-lora"), 24) is None
    assert fits(stage("full/policy-lora", "lora=null", "recipe=null"), 24)
    one = ("recipe=action-expert", "cluster.workers=1", "engine.micro_batch=4")
    assert fits(stage("full/policy", *one), 48) is None


def test_fp32_without_sharding_is_sixteen_bytes_a_parameter() -> None:
    job = stage("policy", "engine.zero_stage=0", "engine.ema_decay=0", "cluster.workers=1")
    memory = memory_of(job)
    count = sum(plan_stage(job).parameters.values())
    states = {"parameters", "gradients", "optimiser", "buffers", "average of weights"}
    assert sum(memory.parts[name] for name in states) == 16 * count


def test_in_mixed_batches_every_sample_costs_what_one_with_actions_does() -> None:
    modes = "objective.modes={video: 1, ac_wm: 1, wam: 2}"
    apart = stage("full/embodied", modes)
    mixed = stage("full/embodied", modes, "data.batches=mixed")
    assert SampleShape.of(mixed).flop(mixed) > SampleShape.of(apart).flop(apart)
    plain = stage("full/embodied", "objective.modes={wam: 1}")
    assert SampleShape.of(mixed).flop(mixed) == SampleShape.of(plain).flop(plain)
    # Where nothing acts, nothing is paid for it.
    alone = "objective.modes={video: 1, wam: 0}"
    video = stage("full/embodied", alone, "data.batches=mixed")
    assert SampleShape.of(video) == SampleShape.of(stage("full/embodied", alone))


@pytest.mark.parametrize("family", ["policy", "policy-gwp0"])
def test_activations_of_a_block_by_hand(family: str) -> None:
    """In bf16, of one layer more: everything that the formulas of a block need again."""
    job = stage(f"full/{family}")
    shape, config = SampleShape.of(job), job.model_config_
    each = activation_bytes(
        config, shape.largest, shape.latent, shape.text_rows, torch.bfloat16, False
    )
    widths = {"visual": (240, 3072, 14336), "action": (49, 1024, 4096)}
    if family == "policy-gwp0":
        widths = {"shared": (289, 3072, 14336)}
    bytes_ = 0
    for tokens, width, ffn in widths.values():
        # Twice the feed-forward's inner activation, and the input of its second product.
        bytes_ += tokens * ffn * 2 * 2
        # Queries, keys, values, outputs of both attentions, and their fp32 norms.
        bytes_ += tokens * 3072 * (2 * 8 + 4 * 2)
        # Norms, modulation and gates in fp32 over the expert's width.
        bytes_ += tokens * width * (4 * 12)
    assert each / config.num_layers == pytest.approx(bytes_, rel=0.5)


def test_checkpointing_keeps_a_block_and_what_the_others_begin_with() -> None:
    job = stage("full/policy")
    shape, config = SampleShape.of(job), job.model_config_
    args = (config, shape.largest, shape.latent, shape.text_rows, torch.bfloat16)
    all_of_it, some = activation_bytes(*args, False), activation_bytes(*args, True)
    two = activation_bytes(*args, True, 2)
    begin = 30 * (240 * 3072 + 49 * 1024) * 2
    block = all_of_it / 30
    # Texts are projected outside of the blocks that are computed again: norms of keys in fp32.
    texts = 30 * 2 * 64 * 3072 * 2 * 4
    assert begin + block * 0.7 < two - some < begin + block + texts
    # Weights of modulation in fp32, once: 6 x 3072 x 3072 numbers, and those of the embedding.
    assert some - (two - some) == pytest.approx(4 * (3072**2 + 1024**2) * 7, rel=0.1)
    assert two - some < all_of_it / 4


def test_activations_follow_what_torch_keeps_of_a_real_pass() -> None:
    """On the CPU, in fp32: bytes that autograd keeps, with the attention that is taken there."""
    job = stage("policy")
    shape, config = SampleShape.of(job), job.model_config_
    counted = activation_bytes(
        config, shape.largest, shape.latent, shape.text_rows, torch.float32, False
    )
    half = activation_bytes(
        config, shape.largest, shape.latent, shape.text_rows, torch.bfloat16, False
    )
    assert counted / 2 < half < counted


def test_latent_frames_are_counted_as_such() -> None:
    """At the released shape: 48 x 24 x 20 numbers a frame hold the state, and 30 copies of a chunk of
    48 x 16; a frame is 120 tokens.
    """
    dense = "model={{released: gwp0, visibility: joint{}}}"
    joint = stage("full/policy-gwp0", dense.format(""))
    frames = stage("full/policy-gwp0", dense.format(", actions: latent-frame"))
    assert SampleShape.of(joint).acting == {"S": 1, "R": 120, "A": 48, "F": 120}
    assert SampleShape.of(frames).acting == {"S": 120, "R": 120, "A": 120, "F": 120}
    plain, plan = plan_stage(joint), plan_stage(frames)
    assert plan.tokens_step == 128 * 480
    assert plan.flop_sample / plain.flop_sample == pytest.approx(480 / 289, rel=0.05)
    narrow, wide, d, width = 128, 256, 16, 3072
    encoder = 2 * narrow * (d + 1) + narrow * wide + wide + wide * width + width
    decoder = width * wide + wide + wide * narrow + narrow + 2 * d * (narrow + 1)
    parts, fewer = plain.memory.parts, plan.memory.parts
    assert (parts["parameters"] - fewer["parameters"]) / 2 == encoder + decoder
    # Blocks are computed again: what they begin with, and one whole.
    ratio = fewer["activations"] / parts["activations"]
    assert 1.4 < ratio < 480 / 289
    with pytest.raises(GwpError, match="the state has to fit into one"):
        SampleShape.of(stage("policy", *FRAMES, "model.action_channels=2000"))


def test_time_and_money_by_hand() -> None:
    """6 x (4.91e9 x 240 + 1.01e9 x 49) = 7.4e12 at most, without the text's share of the layers;
    128 samples on eight GPUs.
    """
    job = stage("full/policy")
    prices = {"h100": 2.0, "core": 0.05}
    plan = plan_stage(job, Assumed(prices=prices))
    assert plan.flop_sample == pytest.approx(7.37e12, rel=0.1)
    # A third more because blocks are computed again.
    assert plan.flop_step == pytest.approx(128 * plan.flop_sample * 4 / 3)
    assert plan.tokens_step == 128 * (240 + 49)
    slow = plan.step_s[1]
    assert plan.days[1] == pytest.approx(30_000 * slow / 86_400)
    assert plan.gpu_hours[1] == pytest.approx(plan.days[1] * 24 * 8)
    # Five pictures of three cameras a sample, at 525 a second of a core.
    assert plan.decode_cores[0] == pytest.approx(15 * (128 / slow) / 8 / 525)
    hourly = 2.0 + 0.05 * plan.decode_cores[0]
    assert plan.price
    assert plan.price[1] == pytest.approx(plan.gpu_hours[1] * hourly)
    # 2 + 12 + 4 bytes a parameter; an eighth of it from each worker at 200 MB/s.
    assert plan.checkpoint_gb == pytest.approx(18 * MIXTURE / GB)
    assert plan.checkpoint_s == pytest.approx(18 * MIXTURE / 8 / 200e6)
    # Two are kept, and one is on its way.
    assert plan.kept_gb == pytest.approx(3 * 18 * MIXTURE / GB)
    # A canvas of 384 x 320 in three colours, five times.
    assert plan.store_mb_s == pytest.approx(5 * 384 * 320 * 3 * plan.samples_s[1] / 1e6)


def test_a_cache_takes_the_decoders_and_most_of_the_traffic() -> None:
    frames = stage("full/policy")
    cached = stage("full/policy", "data.cache=s3://b/cache", "data.augment=false")
    plan = plan_stage(cached)
    assert plan.decode_cores == (0, 0)
    # Two latent frames of 48 x 24 x 20 numbers of two bytes.
    assert plan.store_mb_s == pytest.approx(2 * 48 * 24 * 20 * 2 * plan.samples_s[1] / 1e6)
    assert plan.store_mb_s < plan_stage(frames).store_mb_s / 5
    assert plan.memory.parts["video codec"] == 0


def test_what_fits_grows_with_the_gpu_and_with_sharding() -> None:
    plan = plan_stage(stage("full/policy"))
    for row in plan.fitting.values():
        assert list(row) == list(GPUS_GB)
        assert list(row.values()) == sorted(row.values())
    for gb in GPUS_GB:
        column = [plan.fitting[s][gb] for s in (1, 2, 3)]
        assert column == sorted(column)
    assert plan.fitting[2][24] == 0
    assert plan.fitting[2][80] == 16


@pytest.mark.parametrize("gb", [24, 48, 80])
def test_the_micro_batch_is_the_largest_that_fits(gb: int) -> None:
    job = stage("full/policy", "cluster.workers=2")
    best = largest_micro_batch(job, gb, 2, 3)
    if best:
        assert memory_of(job, 2, 3, best).fits(gb)
    if best < job.share(2):
        assert not memory_of(job, 2, 3, best + 1).fits(gb)


@pytest.mark.parametrize(
    ("assumed", "words"),
    [
        (Assumed(gpu="gtx"), "choose one of .*h100"),
        (Assumed(workers=500), "500 workers for a batch of 128"),
        (Assumed(utilisation=(0.5, 1.5)), "between 0 and 1"),
        (Assumed(utilisation=(0.0, 0.3)), "between 0 and 1"),
        (Assumed(prices={"a100": 1.0}), "no price of h100"),
    ],
)
def test_what_makes_no_plan_is_one_line(assumed: Assumed, words: str) -> None:
    with pytest.raises(GwpError, match=words):
        plan_stage(stage("full/policy"), assumed)


def test_a_canvas_that_is_no_multiple_of_a_patch_is_refused() -> None:
    job = stage("full/policy", "data.canvas={layout: t, width: 320, height: 376}")
    with pytest.raises(GwpError, match="height 376 is no multiple of 32"):
        plan_stage(job)


# Recipes are planned for their page.
@pytest.mark.parametrize(
    "path",
    sorted([*STAGES.glob("*.yaml"), *(STAGES / "full").glob("*.yaml")]),
    ids=lambda p: p.stem,
)
def test_every_stage_of_the_repository_has_a_plan(path: Path) -> None:
    if path.stem in ("tiny", "gwp05"):
        # Parts of others.
        return
    job = load_config(path, TrainJob)
    plan = plan_stage(job)
    json.dumps(plan.to_json())
    text = show_stage(plan, Assumed())
    assert all(len(line) <= 110 for line in text.splitlines())
