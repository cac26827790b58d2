"""Many simulators beside each other: the same episodes as one after the other, and none lost."""

import multiprocessing as mp
import re
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.charged import Charge
from gwp.sim.parallel import Outcome, run_trials
from gwp.sim.trial import Rules, Trial, run_trial
from tests.support.fake_sim import FAKE, FakeSim, seeing

# Within 18 steps some starts are won and others are not: a test that all are won shows little.
RULES = Rules(FAKE, max_steps=18, replan=6)
TRIALS = [Trial("reach", seed) for seed in range(5)] + [
    Trial("other", 5),
    Trial("other", 6, "random", 6),
    Trial("other", 6, "blind", 6),
]


def act(observations: Sequence[Observation]) -> list[ActionChunk]:
    return [seeing(observation) for observation in observations]


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.trial == other.trial
    assert one.episode is not None
    assert other.episode is not None
    assert one.episode.success == other.episode.success
    assert one.episode.requests == other.episode.requests
    np.testing.assert_array_equal(np.stack(one.episode.actions), np.stack(other.episode.actions))


@pytest.mark.parametrize("charge", [None, Charge(30.0), Charge(60.0, delay=4)])
def test_neither_order_nor_processes_change_an_episode(charge: Charge | None) -> None:
    rules = Rules(FAKE, RULES.max_steps + (5 if charge else 0), RULES.replan, charge)
    alone = [
        Outcome(trial, run_trial(FakeSim(trial.task), trial, rules, lambda o: lambda: seeing(o)))
        for trial in TRIALS
    ]
    beside = run_trials(TRIALS, act, rules, simulators=3)
    backwards = run_trials(TRIALS[::-1], act, rules, simulators=2)[::-1]
    for one, two, three in zip(alone, beside, backwards, strict=True):
        assert_same(one, two)
        assert_same(one, three)
    won = [o.episode.success for o in alone if o.episode and o.trial.agent == "policy"]
    assert len(set(won)) == 2


def test_those_that_wait_are_answered_together_and_never_more_than_allowed() -> None:
    sizes: list[int] = []
    threads: set[int] = set()

    def batch(observations: Sequence[Observation]) -> list[ActionChunk]:
        sizes.append(len(observations))
        threads.add(threading.get_ident())
        return act(observations)

    outcomes = run_trials(TRIALS[:4], batch, RULES, simulators=4, most=2)
    asked = sum(o.episode.requests for o in outcomes if o.episode)
    assert sum(sizes) == asked > 0
    assert max(sizes) <= 2
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("die", r"simulator \d+ \(process \d+\) ended with exit code -9"),
        ("hang", r"simulator \d+ \(process \d+\) said nothing for 15 s"),
        ("raise", "FloatingPointError: the physics blew up"),
    ],
)
# Charged, an answer is under way when it happens; the next episode must not take it for its own.
@pytest.mark.parametrize("charge", [None, Charge(60.0)])
def test_an_episode_that_cannot_be_run_is_named_and_costs_no_other(
    kind: str, why: str, charge: Charge | None
) -> None:
    trials = [Trial(f"{kind}:1", seed) for seed in range(4)]
    told: list[Outcome] = []
    # Starting a process takes a second, and counts.
    silence_s = 15.0 if kind == "hang" else 300.0
    outcomes = run_trials(
        trials,
        act,
        Rules(FAKE, RULES.max_steps, RULES.replan, charge),
        simulators=2,
        silence_s=silence_s,
        on_outcome=told.append,
    )
    assert [o.trial for o in outcomes] == trials
    assert [o.episode is None for o in outcomes] == [False, True, False, False]
    assert sorted(map(str, (o.trial for o in told))) == sorted(map(str, trials))
    assert re.fullmatch(why, outcomes[1].failure)


def test_processes_that_die_one_after_the_other_end_the_run() -> None:
    trials = [Trial("stillborn", seed) for seed in range(50)]
    with pytest.raises(GwpError, match=r"4 simulators in a row died.*exit code -9"):
        run_trials(trials, act, RULES, simulators=2)


def test_what_is_wrong_with_every_episode_ends_the_run() -> None:
    def wrong(observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(np.zeros((12, 3), np.float32), "wrong") for _ in observations]

    with pytest.raises(GwpError, match="the policy answered with actions"):
        run_trials(TRIALS, wrong, RULES, simulators=2)
    with pytest.raises(GwpError, match="simulators 0"):
        run_trials(TRIALS, act, RULES, simulators=0)


def test_an_error_of_the_policy_comes_out_and_leaves_no_process() -> None:
    def broken(_observations: Sequence[Observation]) -> list[ActionChunk]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_trials(TRIALS, broken, RULES, simulators=2)
    assert not mp.active_children()
