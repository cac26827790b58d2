"""The plan: fair, repeatable, resumable, the same for any number of workers."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from gwp.data.plan.manifest import SCHEMA, Manifest
from gwp.data.plan.plan import Rules, make_plan, mixing, plan_slice
from gwp.errors import DataError


def manifest(*sources: tuple[int, float, bool], per_file: int = 1, buckets: int = 1) -> Manifest:
    """Sources given as number of samples, weight, labelled; so many samples in a row per file,
    buckets in turn.
    """
    rows = [
        {
            "sample_id": f"s{i}/{k // per_file}/{k}",
            "source": i,
            "weight": w,
            "has_action": labelled,
            "text_key": "",
            "kind": "robot",
            "bucket": k % buckets,
            "views": [
                {
                    "slot": "front",
                    "uri": f"{i}/{k // per_file}",
                    "bytes": 1,
                    "start_s": 0.0,
                    "offset": 0,
                }
            ],
        }
        for i, (n, w, labelled) in enumerate(sources)
        for k in range(n)
    ]
    return Manifest.of(pa.Table.from_pylist(rows, SCHEMA))


def counts(found: Manifest, epochs: int, batch: int = 1, seed: int = 0) -> Counter[int]:
    return Counter(
        int(i) for e in range(epochs) for i in make_plan(found, seed, e, Rules.even(batch)).order
    )


def test_weight_one_shows_every_sample_once_per_epoch() -> None:
    found = manifest((40, 1, True), (24, 1, True))
    for epoch in range(3):
        assert sorted(make_plan(found, 7, epoch, Rules.even(8)).order) == list(range(64))


def test_the_plan_is_a_pure_function() -> None:
    found = manifest((50, 1, True))
    first = make_plan(found, 3, 1, Rules.even(4))
    again = make_plan(manifest((50, 1, True)), 3, 1, Rules.even(4))
    assert first.order.tolist() == again.order.tolist()
    assert first.hash == again.hash
    even, more = Rules.even(4), manifest((51, 1, True))
    others = [
        make_plan(found, 4, 1, even),
        make_plan(found, 3, 2, even),
        make_plan(found, 3, 1, Rules.even(5)),
        make_plan(more, 3, 1, even),
    ]
    assert len({first.hash, *(p.hash for p in others)}) == 5
    assert first.order.tolist() != others[1].order.tolist()


def test_the_order_does_not_change_between_versions() -> None:
    assert make_plan(manifest((8, 1, True)), 0, 0, Rules.even(4)).order.tolist() == [
        5,
        0,
        7,
        2,
        4,
        1,
        3,
        6,
    ]


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5, 2, 2 / 3])
def test_weights_hold_in_proportion_and_no_sample_is_favoured(weight: float) -> None:
    shown = counts(manifest((30, weight, True), (30, 1, True)), 12)
    assert sum(shown[i] for i in range(30)) == round(12 * 30 * weight)
    assert all(shown[i] in (int(12 * weight), -int(-12 * weight // 1)) for i in range(30))
    assert all(shown[i] == 12 for i in range(30, 60))


@pytest.mark.parametrize(("samples", "batch"), [(10, 4), (9, 8), (23, 7)])
def test_what_fills_no_batch_comes_first_in_the_next_epoch(samples: int, batch: int) -> None:
    found = manifest((samples, 1, True), (3, 1, False))
    labelled = Rules.even(batch, 2)
    for epochs in range(1, 9):
        shown = Counter(
            np.concatenate([make_plan(found, 0, e, labelled).order for e in range(epochs)]).tolist()
        )
        assert all(epochs - 1 <= shown[i] <= epochs for i in range(samples))
        assert all(abs(shown[samples + i] - shown[samples]) <= 1 for i in range(3))
        assert (
            sum(shown.values()) == epochs * samples // batch * batch + epochs * 3 // batch * batch
        )


def test_batches_are_of_one_kind_and_mixed_in_order() -> None:
    found = manifest((40, 1, True), (41, 1, False), (23, 1, True))
    labelled = found.table["has_action"].to_numpy(zero_copy_only=False)
    kinds = labelled[make_plan(found, 0, 0, Rules.even(4)).order].reshape(-1, 4)
    assert (kinds.all(1) | ~kinds.any(1)).all()
    assert len(kinds) == 63 // 4 + 41 // 4
    assert np.abs(np.diff(kinds[:, 0].astype(int))).sum() > 3


def test_mixed_batches_hold_both_kinds_as_the_weights_say() -> None:
    found = manifest((60, 2, True), (120, 0.5, False), (20, 1, True))
    labelled = found.table["has_action"].to_numpy(zero_copy_only=False)
    mixed = Rules((20,), mixed=True)
    # 120 windows with actions by weight 2, 20 by weight 1, and 60 without an epoch.
    for epoch in range(4):
        kinds = labelled[make_plan(found, 3, epoch, mixed).order].reshape(-1, 20)
        assert len(kinds) == 10
        assert kinds.sum() == 140
        # Each is as a draw from all of them: 14 of 20, give or take five deviations.
        assert (np.abs(kinds.sum(1) - 14) <= 10).all()
        assert kinds.any(1).all()
    assert not kinds.all(1).all()


def test_mixed_batches_show_every_sample_once() -> None:
    found = manifest((40, 1, True), (24, 1, False), per_file=4)
    for epoch in range(3):
        plan = make_plan(found, 7, epoch, Rules((8,), 2, mixed=True))
        assert sorted(plan.order) == list(range(64))


def test_only_samples_of_one_bucket_are_mixed() -> None:
    found = manifest((60, 1, True), (60, 1, False), buckets=3)
    bucket = found.table["bucket"].to_numpy()
    labelled = found.table["has_action"].to_numpy(zero_copy_only=False)
    batches = plan_slice(found, 0, 0, 40, Rules((8, 4, 2), mixed=True))
    assert {len(set(bucket[b])) for b in batches} == {1}
    assert {len(set(labelled[b])) for b in batches} == {1, 2}


def test_mixing_changes_nothing_where_all_have_actions_but_the_name() -> None:
    found = manifest((30, 1, True), (20, 0.5, True))
    apart, mixed = (make_plan(found, 0, 1, Rules((4,), 2, mixed=m)) for m in (False, True))
    assert apart.order.tolist() == mixed.order.tolist()
    assert apart.hash != mixed.hash


@pytest.mark.parametrize("mixed", [False, True])
def test_resuming_is_a_slice(mixed: bool) -> None:
    found = manifest((13, 1, True), (9, 0.5, False))
    rules = Rules((4,), 2, mixed)
    whole = plan_slice(found, 1, 0, 30, rules)
    assert [len(b) for b in whole] == [4] * 30
    assert whole[0].dtype == np.int64
    for step in (0, 1, 3, 10, 29, 30):
        rest = plan_slice(found, 1, 4 * step, 30 - step, rules)
        assert [b.tolist() for b in rest] == [b.tolist() for b in whole[step:]]
    epochs = np.concatenate([make_plan(found, 1, e, rules).order for e in range(12)])
    assert np.concatenate(whole).tolist() == epochs[:120].tolist()
    with pytest.raises(DataError, match="no global batch begins at sample 6"):
        plan_slice(found, 1, 6, 1, rules)


def test_too_few_samples_of_a_kind_are_an_error_not_a_silence() -> None:
    with pytest.raises(
        DataError,
        match=r"no global batch is filled in an epoch .*: 2 of 4, 3 of 4\); .* lower engine.global_batch",
    ):
        make_plan(manifest((2, 1, True), (3, 1, False)), 0, 0, Rules.even(4))
    for call in (
        lambda: make_plan(manifest(), 0, 0, Rules.even(1)),
        lambda: plan_slice(manifest(), 0, 0, 5, Rules.even(1)),
    ):
        with pytest.raises(DataError, match="no samples"):
            call()


@pytest.mark.parametrize("together", [1, 2, 5])
def test_windows_of_a_file_stand_together_and_files_are_drawn_anew(together: int) -> None:
    found = manifest((60, 1, True), per_file=20)
    plan = make_plan(found, 0, 0, Rules.even(10, together))
    assert sorted(plan.order) == list(range(60))
    runs = found.files[plan.order].reshape(-1, together)
    assert (runs == runs[:, :1]).all()
    later = make_plan(found, 0, 1, Rules.even(10, together))
    pairs = [{frozenset(g) for g in p.order.reshape(-1, together).tolist()} for p in (plan, later)]
    assert together == 1 or pairs[0] != pairs[1]
    # Members of a group are not neighbours in time.
    assert together == 1 or np.abs(np.diff(plan.order.reshape(-1, together), axis=1)).mean() > 3


def test_mixing_is_a_count_of_episodes_and_files() -> None:
    found = manifest((400, 1, True), per_file=4)
    loose, tight = (
        mixing(found, make_plan(found, 0, 0, Rules.even(20, n)), workers=2) for n in (1, 4)
    )
    assert tight.episodes_per_batch == 5
    assert tight.opens_per_thousand == pytest.approx(1000 * (3 + 3) / 20)
    assert loose.episodes_per_batch == pytest.approx(loose.episodes_if_independent, rel=0.05)
    assert loose.opens_per_thousand > 3 * tight.opens_per_thousand


def test_a_batch_is_of_one_bucket_and_of_its_size() -> None:
    found = manifest((120, 1, True), (60, 1, False), buckets=3)
    rules = Rules((8, 4, 2), 2)
    bucket = found.table["bucket"].to_numpy()
    labelled = found.table["has_action"].to_numpy(zero_copy_only=False)
    seen = 0
    whole = plan_slice(found, 0, 0, 60, rules)
    for step, batch in enumerate(whole):
        assert len(set(bucket[batch])) == len(set(labelled[batch])) == 1
        assert len(batch) == rules.batch[bucket[batch[0]]]
        assert [b.tolist() for b in plan_slice(found, 0, seen, 60 - step, rules)] == [
            b.tolist() for b in whole[step:]
        ]
        seen += len(batch)
    epoch = make_plan(found, 0, 0, rules)
    assert sum(epoch.batches) == len(epoch.order) == len(set(epoch.order.tolist()))
    assert Counter(bucket[epoch.order].tolist()) == {0: 56, 1: 60, 2: 60}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_sees_the_same_batches(workers: int) -> None:
    found = manifest((64, 1, True), per_file=8)
    batches = plan_slice(found, 3, 0, 20, Rules.even(8, 2))
    ranks = [[b.reshape(workers, -1)[r] for b in batches] for r in range(workers)]
    assert [np.concatenate(parts).tolist() for parts in zip(*ranks, strict=True)] == [
        b.tolist() for b in batches
    ]
