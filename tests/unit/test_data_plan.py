"""The plan: fair, repeatable, resumable, the same for any number of workers."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from gwp.data.manifest import SCHEMA, Manifest
from gwp.data.plan import make_plan, plan_slice
from gwp.errors import DataError


def manifest(*sources: tuple[int, float, bool]) -> Manifest:
    """Sources given as number of samples, weight, labelled."""
    rows = [
        {"sample_id": f"s{i}/{k}", "source": i, "weight": w, "has_action": labelled, "text_key": "", "kind": "robot"}
        for i, (n, w, labelled) in enumerate(sources)
        for k in range(n)
    ]
    return Manifest(pa.Table.from_pylist(rows, SCHEMA), (), {}, {})


def counts(found: Manifest, epochs: int, batch: int = 1, seed: int = 0) -> Counter[int]:
    return Counter(int(i) for e in range(epochs) for i in make_plan(found, seed, e, batch).order)


def test_weight_one_shows_every_sample_once_per_epoch() -> None:
    found = manifest((40, 1, True), (24, 1, True))
    for epoch in range(3):
        assert sorted(make_plan(found, 7, epoch, 8).order) == list(range(64))


def test_the_plan_is_a_pure_function() -> None:
    found = manifest((50, 1, True))
    first = make_plan(found, 3, 1, 4)
    again = make_plan(manifest((50, 1, True)), 3, 1, 4)
    assert first.order.tolist() == again.order.tolist()
    assert first.hash == again.hash
    others = [make_plan(found, 4, 1, 4), make_plan(found, 3, 2, 4), make_plan(found, 3, 1, 5), make_plan(manifest((51, 1, True)), 3, 1, 4)]
    assert len({first.hash, *(p.hash for p in others)}) == 5
    assert first.order.tolist() != others[1].order.tolist()


def test_the_order_does_not_change_between_versions() -> None:
    assert make_plan(manifest((8, 1, True)), 0, 0, 4).order.tolist() == [5, 0, 7, 2, 4, 1, 3, 6]


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.5, 2, 2 / 3])
def test_weights_hold_in_proportion_and_no_sample_is_favoured(weight: float) -> None:
    shown = counts(manifest((30, weight, True), (30, 1, True)), 12)
    assert sum(shown[i] for i in range(30)) == round(12 * 30 * weight)
    assert all(shown[i] in (int(12 * weight), -int(-12 * weight // 1)) for i in range(30))
    assert all(shown[i] == 12 for i in range(30, 60))


def test_whole_batches_and_others_left_out_each_time() -> None:
    found = manifest((10, 1, True))
    missing = [set(range(10)) - set(make_plan(found, 0, e, 4).order.tolist()) for e in range(12)]
    assert all(len(m) == 2 for m in missing)
    assert len(set.union(*missing)) > 6


def test_batches_are_of_one_kind_and_mixed_in_order() -> None:
    found = manifest((40, 1, True), (41, 1, False), (23, 1, True))
    labelled = found.table["has_action"].to_numpy(zero_copy_only=False)
    kinds = labelled[make_plan(found, 0, 0, 4).order].reshape(-1, 4)
    assert (kinds.all(1) | ~kinds.any(1)).all()
    assert len(kinds) == 63 // 4 + 41 // 4
    assert np.abs(np.diff(kinds[:, 0].astype(int))).sum() > 3


def test_resuming_is_a_slice() -> None:
    found = manifest((13, 1, True), (9, 0.5, False))
    whole = plan_slice(found, 1, 0, 120, 4)
    assert len(whole) == 120
    assert whole.dtype == np.int64
    for seen in (0, 1, 12, 16, 40, 119, 120):
        assert plan_slice(found, 1, seen, 120 - seen, 4).tolist() == whole[seen:].tolist()
    epochs = np.concatenate([make_plan(found, 1, e, 4).order for e in range(12)])
    assert whole.tolist() == epochs[:120].tolist()


def test_too_few_samples_of_a_kind_are_an_error_not_a_silence() -> None:
    with pytest.raises(DataError, match=r"3 samples of one kind .* one global batch of 4"):
        make_plan(manifest((40, 1, True), (3, 1, False)), 0, 0, 4)
    for call in (lambda: make_plan(manifest(), 0, 0, 1), lambda: plan_slice(manifest(), 0, 0, 5, 1)):
        with pytest.raises(DataError, match="no samples"):
            call()
