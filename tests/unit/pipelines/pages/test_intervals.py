"""Intervals hold what they promise on data whose truth is known."""

import numpy as np
import pytest

from pipelines.pages.intervals import Interval, hierarchical, mean_of, paired, ratio, wilson


def drawn(
    rng: np.random.Generator, seeds: int, rates: list[float], episodes: int, spread: float
) -> list[dict[str, list[float]]]:
    """Successes of training seeds that differ by `spread` (standard deviation of the rate)."""
    found = []
    for _ in range(seeds):
        shift = rng.normal(0, spread)
        found.append(
            {
                f"task-{k}": (rng.random(episodes) < np.clip(rate + shift, 0, 1))
                .astype(float)
                .tolist()
                for k, rate in enumerate(rates)
            }
        )
    return found


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.80), (6, 0.85)])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_intervals_cover_the_truth(seeds: int, least: float, spread: float) -> None:
    rng = np.random.default_rng(1)
    rates = [0.3, 0.5, 0.7]
    trials = 200
    hits = 0
    for _ in range(trials):
        found = hierarchical(drawn(rng, seeds, rates, 20, spread), rate=True)
        assert found is not None
        hits += found.low <= 0.5 <= found.high
    assert hits / trials >= least


def test_differences_cover_the_truth_and_pairs_make_them_narrower() -> None:
    rng = np.random.default_rng(2)
    hits, widths = 0, []
    for _ in range(60):
        ours, theirs = [], []
        for _ in range(5):
            # The starts are the same for both: how hard each one is decides most of it.
            hard = rng.random(40)
            ours.append({"t": (hard < 0.6).astype(float).tolist()})
            theirs.append({"t": ((hard < 0.6) & (rng.random(40) < 0.75)).astype(float).tolist()})
        found, alone = paired(ours, theirs, rate=True), hierarchical(ours, rate=True)
        assert found is not None
        assert alone is not None
        hits += found.low <= 0.15 <= found.high
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert hits >= 51
    assert np.mean(widths) < 0.9


def test_nothing_and_everything_won_still_have_width() -> None:
    for value in (0.0, 1.0):
        found = hierarchical([{"a": [value] * 25, "b": [value] * 25}] * 2, rate=True)
        assert found == Interval(value, *wilson(int(100 * value), 100), 2, 100)
    same = [{"a": [0.0, 1.0] * 10}] * 3
    found = paired(same, same, rate=True)
    assert found is not None
    assert found.mean == 0
    assert found.low == -found.high < 0


def test_the_same_numbers_give_the_same_interval() -> None:
    data = drawn(np.random.default_rng(3), 3, [0.4, 0.6], 10, 0.1)
    assert hierarchical(data, rate=True) == hierarchical(data, rate=True)
    assert hierarchical(data, seed=1) != hierarchical(data)


def test_tasks_count_alike_whatever_their_episodes() -> None:
    groups = {"many": [1.0] * 30, "few": [0.0, None, 0.0]}
    assert mean_of(groups) == 0.5
    found = hierarchical([groups])
    assert found is not None
    assert (found.mean, found.episodes, found.seeds) == (0.5, 32, 1)


def test_what_is_missing_leaves_both_of_a_pair() -> None:
    found = paired([{"t": [1.0, None, 1.0]}], [{"t": [0.0, 0.0, None]}])
    assert found is not None
    assert (found.mean, found.episodes) == (1.0, 1)
    assert hierarchical([]) is None
    assert hierarchical([{"t": [None]}]) is None
    assert paired([{"t": [None]}], [{"t": [1.0]}]) is None


def test_a_ratio_is_of_pairs() -> None:
    found = ratio([100.0, 200.0], [1000.0, 2000.0])
    assert found is not None
    assert found.mean == pytest.approx(10)
    assert found.low == pytest.approx(10)
    assert ratio([], []) is None


def test_more_seeds_do_not_make_up_for_few_starts() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        # How hard a recording is decides most of its error, whoever is judged on it.
        hard = rng.normal(0, 1, (4, 8))
        seeds = [
            {str(k): (row + rng.normal(0, 0.2, 8)).tolist() for k, row in enumerate(hard)}
            for _ in range(3)
        ]
        found = hierarchical(seeds)
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert hits >= 176


def test_the_few_episodes_of_a_task_are_no_more_certain_than_they_are() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        found = hierarchical([{str(k): rng.normal(0, 1, 3).tolist() for k in range(8)}])
        assert found is not None
        hits += found.low <= 0 <= found.high
    # The plain bootstrap of threes has 250.
    assert hits >= 270


def test_tasks_that_all_win_or_all_lose_still_have_width() -> None:
    both = [{"a": [1.0] * 20, "b": [0.0] * 20}] * 3
    found = hierarchical(both, rate=True)
    assert found is not None
    assert found.low < found.mean == 0.5 < found.high
    lost = [{"a": [0.0] * 20, "b": [0.0] * 20}] * 3
    won = [{"a": [1.0] * 20, "b": [1.0] * 20}] * 3
    for first, mean in ((both, 0.5), (won, 1.0)):
        found = paired(first, lost, rate=True)
        assert found is not None
        assert found.low < found.mean == mean
        assert found.high <= 1
