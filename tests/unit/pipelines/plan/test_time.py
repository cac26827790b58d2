"""Time of a step by hand: products, what is sent, what is read; of a mixture and of a dense model."""

import pytest

from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.machines import GPUS, Assumed
from pipelines.plan.sample import SampleShape
from pipelines.plan.time import StepTime, sent_bytes, step_flop, step_time
from tests.unit.pipelines.jobs.test_stages import FULL, STAGES

MODELS = ["policy", "policy-gwp0"]
H100 = GPUS["h100"]


def stage(name: str, *sets: str) -> TrainJob:
    return load_config(STAGES / "full" / f"{name}.yaml", TrainJob, list(sets))


def of(job: TrainJob, workers: int = 8, **told: object) -> StepTime:
    return step_time(job, Assumed(**told), H100, workers)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_eight_gpus_by_hand(name: str) -> None:
    """ZeRO 2, 16 samples of each at once, every block computed again: 4/3 of the arithmetic of
    16 samples, at 14 to 33 % of 989e12 FLOP/s.
    """
    job, n = stage(name), FULL[name]
    time = of(job)
    arithmetic = 16 * SampleShape.of(job).flop(job) * 4 / 3
    assert time.products == pytest.approx((arithmetic / 989e12 / 0.33, arithmetic / 989e12 / 0.14))
    # Sums of gradients around the ring twice, weights once, in bf16; 7/8 of it leaves a GPU.
    sent = (2 + 1) * 2 * n * 7 / 8
    assert sent_bytes(job, 8) == pytest.approx(sent)
    assert time.sent == pytest.approx(sent / 450e9)
    # Weights three times and gradients once in bf16; an eighth of four states, read and written.
    memory = 2 * n * (3 + 1) + 2 * 4 * 4 * n / 8
    assert time.memory == pytest.approx(memory / 3350e9)
    least, most = time.range
    assert least == pytest.approx(time.products[0])
    assert most == pytest.approx(time.products[1] + time.sent + time.memory)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("zero", "micro", "rounds"),
    [
        # In numbers of two bytes; stage 1 sends once, however many micro-batches there are.
        (1, 16, 2 + 1),
        (1, 4, 2 + 1),
        (2, 16, 2 + 1),
        # The gradients of each of four micro-batches, and weights once.
        (2, 4, 4 * 2 + 1),
        # Weights forward and backward, gradients once, each of four times.
        (3, 16, 2 + 1),
        (3, 4, 4 * (2 + 1)),
    ],
)
def test_what_is_sent_by_hand(name: str, zero: int, micro: int, rounds: int) -> None:
    job = stage(name, f"engine.zero_stage={zero}", f"engine.micro_batch={micro}")
    assert sent_bytes(job, 8) == pytest.approx(rounds * 2 * FULL[name] * 7 / 8)
    assert sent_bytes(job, 1) == 0


def test_without_sharding_sums_go_around_twice() -> None:
    job = stage("policy", "engine.zero_stage=0", "engine.precision=fp32")
    assert sent_bytes(job, 8) == pytest.approx(2 * 4 * FULL["policy"] * 7 / 8)


def test_between_machines_the_network_of_one_counts() -> None:
    job = stage("policy", "cluster.workers=32")
    sent = 3 * 2 * FULL["policy"] * 31 / 32
    assert of(job, 32).sent == pytest.approx(sent / 50e9)
    assert of(job, 32, network_gb=25.0).sent == pytest.approx(sent / 25e9)
    # Never wider than what is between the GPUs of a machine.
    assert of(job, 32, network_gb=1000.0).sent == pytest.approx(sent / 450e9)
    assert of(job, 32, gpus_per_node=32).sent == pytest.approx(sent / 450e9)


@pytest.mark.parametrize("name", MODELS)
def test_what_does_not_train_costs_no_gradients_of_weights(name: str) -> None:
    """With adapters two thirds of the arithmetic is left, and what is sent is theirs."""
    whole = stage(name, "engine.gradient_checkpointing=false")
    adapters = stage(name, "recipe=lora", "engine.gradient_checkpointing=false")
    flop = 16 * SampleShape.of(whole).flop(whole)
    assert step_flop(whole, 8) == pytest.approx(flop)
    assert 2 / 3 * flop < step_flop(adapters, 8) < 0.68 * flop
    assert sent_bytes(adapters, 8) == pytest.approx(3 * 2 * adapters.trained * 7 / 8)
    again = stage(name, "recipe=lora", "engine.gradient_checkpointing=15")
    assert step_flop(again, 8) - step_flop(adapters, 8) == pytest.approx(flop / 6)


def test_the_least_is_the_longest_part_and_the_most_their_sum() -> None:
    assert StepTime((1.0, 2.0), 0.25, 0.5).range == (1.0, 2.75)
    assert StepTime((1.0, 2.0), 3.0, 0.5).range == (3.0, 5.5)
    assert StepTime((1.0, 2.0), 0.0, 4.0).range == (4.0, 6.0)
    assert StepTime((1.0, 2.0), 3.0, 0.5).middle == 4.25
