"""The closed loop of a policy: parallel as one at a time, what latency costs, and how sure rates
are.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.policy.policy import Policy
from gwp.sim.charged import Charge
from gwp.sim.metaworld import BENCHMARK, EMBODIMENT
from gwp.sim.parallel import Outcome
from gwp.sim.rollout import EpisodeResult
from gwp.sim.trial import Rules, Trial, run_trial
from pipelines.evaluation.charge import charge_of, check_charge, latency_ms, measured_ms
from pipelines.evaluation.closed_loop_page import write_closed_loop
from pipelines.evaluation.simulation import (
    baseline_success,
    check_run,
    closed_loop,
    figures,
    successes,
    trials_of,
)
from pipelines.pages.intervals import wilson
from tests.support.fake_sim import FAKE, FakeSim
from tests.support.tiny import make_tiny_bundle

# A tiny bundle has chunks of 8.
ARM = EMBODIMENT.model_copy(update={"chunk": 8, "replan": 4})


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.load(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), arm=ARM))


def alone(policy: Policy, task: str, episodes: int, charge: Charge | None) -> list[EpisodeResult]:
    """One at a time, in this process."""
    rules = Rules(FAKE, 24, ARM.replan, charge)
    return [
        run_trial(FakeSim(task), trial, rules, lambda o: lambda: policy.act(o))
        for trial in trials_of("policy", [task], episodes)
    ]


@pytest.mark.parametrize("charge", [None, Charge(20.0, blend=4), Charge(40.0, delay=3)])
def test_a_policy_acts_the_same_for_many_as_for_one(policy: Policy, charge: Charge | None) -> None:
    one = alone(policy, "reach", 4, charge)
    many = closed_loop(
        policy, FAKE, ["reach"], 4, 24, simulators=4, charge=charge, agents=["policy"]
    )
    for expected, outcome in zip(one, many, strict=True):
        got = outcome.episode
        assert got is not None
        assert (got.success, got.steps, got.requests, got.dry) == (
            expected.success,
            expected.steps,
            expected.requests,
            expected.dry,
        )
        # The batch has another rounding, and nothing else.
        np.testing.assert_allclose(np.stack(got.actions), np.stack(expected.actions), atol=1e-4)
    assert len({tuple(np.stack(episode.actions).ravel()) for episode in one}) == 4


def test_meta_world_in_parallel_is_meta_world(policy: Policy) -> None:
    pytest.importorskip("metaworld", reason="the sim extra is not installed")
    task = "handle-press-v3"
    outcomes = closed_loop(policy, BENCHMARK, [task], 2, 12, simulators=2)
    assert [o.trial.agent for o in outcomes] == ["policy"] * 2 + ["random"] * 2 + ["blind"] * 2
    assert not [o.failure for o in outcomes if o.failure]
    found = successes(outcomes)[task]
    for agent in ("random", "blind"):
        assert found[agent] == baseline_success(BENCHMARK, agent, [task], 2, 12)[task]


def episode(success: bool, dry: int = 0) -> EpisodeResult:
    return EpisodeResult(success, 20, 3, [1.0], waited=2, dry=dry, late=1)


def test_episodes_that_were_not_run_count_in_no_rate_and_are_named() -> None:
    trials = trials_of("policy", ["reach"], 3)
    outcomes = [
        Outcome(trials[0], episode(True, dry=4)),
        Outcome(trials[1], None, "simulator 1 (process 7) ended with exit code -9"),
        Outcome(trials[2], episode(False, dry=5)),
        Outcome(Trial("reach", 7000, "random"), None, "no"),
    ]
    (row,) = figures(outcomes, Charge(30.0, blend=4), EMBODIMENT.fps).values()
    assert (row["success"], row["episodes"]) == (0.5, 2)
    assert row["success_95"] == pytest.approx(wilson(1, 2), abs=1e-4)
    assert (row["success_random"], row["success_random_95"]) == (None, [0, 1])
    assert row["failed_to_run"] == [
        "policy in reach, seed 9001: simulator 1 (process 7) ended with exit code -9",
        "random in reach, seed 7000: no",
    ]
    assert row["charged"] == {
        "latency_ms": 30.0,
        "latency_steps": 3,
        "delay": 0,
        "blend": 4,
        "stops": False,
        "requests": 6,
        "steps": 40,
        "steps_waited": 4,
        "steps_dry": 9,
        "late": 2,
    }
    json.dumps(row)


def test_the_page_shows_intervals_the_charge_and_what_failed(tmp_path: Path) -> None:
    trials = trials_of("policy", ["reach"], 2)
    outcomes = [Outcome(trials[0], episode(True)), Outcome(trials[1], None, "it <b>died</b>")]
    for name, charge, words in (
        ("free", None, "the world waited for each chunk"),
        ("charged", Charge(33.5), ">33.5</td>"),
    ):
        file = tmp_path / "pages" / f"{name}.html"
        write_closed_loop(
            file,
            "a" * 64,
            "metaworld, shift camera",
            successes(outcomes),
            figures(outcomes, charge, EMBODIMENT.fps),
        )
        page = file.read_text()
        # Rates under a shift are no others' rates.
        assert "metaworld, shift camera" in page
        assert words in page
        assert "1 of 1 (21 to 100 %)" in page
        assert "it &lt;b&gt;died&lt;/b&gt;" in page


@pytest.mark.parametrize("text", ["40", "ms", "-3ms", "fast", "1e3ms", "nanx", "2 x"])
def test_a_charge_without_a_unit_is_refused_with_what_it_may_be(text: str) -> None:
    with pytest.raises(GwpError, match=r"give milliseconds \(40ms\), a factor"):
        check_charge(text)


def test_milliseconds_are_what_they_say_and_a_factor_is_of_this_machine(policy: Policy) -> None:
    assert latency_ms("0", policy, "x", BENCHMARK) == latency_ms("0ms", policy, "x", BENCHMARK) == 0
    assert latency_ms("37.5ms", policy, "x", BENCHMARK) == 37.5
    assert measured_ms(policy, BENCHMARK) > 0
    assert latency_ms("1x", policy, "x", BENCHMARK) > 0
    assert latency_ms("0x", policy, "x", BENCHMARK) == 0


def test_a_table_is_read_from_its_most_exact_name_on(policy: Policy, tmp_path: Path) -> None:
    table = tmp_path / "latency.yaml"

    def write(**entries: object) -> str:
        table.write_text(json.dumps({k.replace("__", "/"): v for k, v in entries.items()}))
        return str(table)

    family = policy.settings.family
    assert latency_ms(write(default=5, other=9), policy, "models:/x", BENCHMARK) == 5
    assert latency_ms(write(default=5, **{family: 6}), policy, "models:/x", BENCHMARK) == 6
    with_id = {family: 6, policy.id[:12]: 7}
    assert latency_ms(write(**with_id), policy, "models:/x", BENCHMARK) == 7
    assert latency_ms(write(**with_id, **{"models:__x": 8}), policy, "models:/x", BENCHMARK) == 8
    with pytest.raises(GwpError, match=f"no entry for this policy; add `{policy.id[:12]}`"):
        latency_ms(write(other=9), policy, "models:/x", BENCHMARK)
    for wrong in (-1, "fast", True, None):
        with pytest.raises(GwpError, match=r"other is .*; give milliseconds"):
            latency_ms(write(other=wrong), policy, "models:/x", BENCHMARK)
    table.write_text("[unfinished")
    with pytest.raises(GwpError, match="not YAML or JSON"):
        latency_ms(str(table), policy, "models:/x", BENCHMARK)
    table.write_text("[1, 2]")
    with pytest.raises(GwpError, match="write one line per model"):
        latency_ms(str(table), policy, "models:/x", BENCHMARK)


def test_late_chunks_take_over_as_the_endpoint_recommends(policy: Policy) -> None:
    assert charge_of(policy, 0, EMBODIMENT) is None
    # Not trained for delays: four rows are blended.
    recommended = charge_of(policy, 40.0, EMBODIMENT)
    assert recommended is not None
    assert (recommended.delay, recommended.blend) == (0, 4)
    naive = charge_of(policy, 40.0, EMBODIMENT, "naive")
    assert naive is not None
    assert (naive.delay, naive.blend) == (0, 0)
    # Nothing is known of what it was trained for, so it may be tried; behind 4 rows nothing can
    # be promised.
    for ms, delay in ((12.5, 1), (40.0, 4), (80.0, 4)):
        realtime = charge_of(policy, ms, EMBODIMENT, "realtime")
        assert realtime is not None
        assert realtime.delay == delay
    with pytest.raises(GwpError, match="100 ms are 8 control steps, and a chunk has 8 actions"):
        charge_of(policy, 100.0, EMBODIMENT)


@pytest.mark.parametrize(("trained", "delay"), [(2, 2), (4, 4), (9, 4)])
def test_no_more_is_promised_than_was_trained(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, trained: int, delay: int
) -> None:
    knows = policy.contract.model_copy(update={"trained_delay": trained})
    monkeypatch.setattr(policy, "contract", knows)
    charge = charge_of(policy, 60.0, EMBODIMENT)
    assert charge is not None
    assert (charge.delay, charge.blend) == (delay, 0)


def test_real_time_chunking_needs_a_policy_that_was_trained_for_it(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows = policy.contract.model_copy(update={"trained_delay": 0})
    monkeypatch.setattr(policy, "contract", knows)
    with pytest.raises(GwpError, match="--chunking realtime: this policy was trained without"):
        charge_of(policy, 40.0, EMBODIMENT, "realtime")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((["juggle"], 1, 10, None), "tasks juggle: choose from"),
        ((["push-v3", "push-v3"], 1, 10, None), "name each task once"),
        ((["push-v3"], 0, 10, None), "--episodes 0"),
        ((["push-v3"], 1001, 10, None), "--episodes 1001"),
        ((["push-v3"], 1, 501, None), "--max-steps 501"),
        ((["push-v3"], 1, 10, 0), "--simulators 0"),
    ],
)
def test_what_cannot_be_run_is_told_before_a_policy_is_loaded(wrong: tuple, words: str) -> None:
    with pytest.raises(GwpError, match=words):
        check_run(BENCHMARK, *wrong)
