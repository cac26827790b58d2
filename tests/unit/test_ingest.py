"""Blocks of decoded samples, and the check that the stream stands where the checkpoint says. No Ray is started."""

import numpy as np
import pytest

from gwp.data.canvas import Canvas
from gwp.data.sample import SampleSpec
from gwp.data.window import ClipWindow, Window
from pipelines.ingest import batch_columns, batches

SPEC = SampleSpec(
    canvas=Canvas(layout="single", width=8, height=8), window=Window(chunk=4, stride=1), clip=ClipWindow(frames=5, fps=5.0),
    embodiments={}, stats={}, model_dim=3, augment=False, seed=0,
)


def sample(name, value):
    return {
        "view_valid": np.array([True, False, False]),
        "frames": np.full((5, 8, 8, 3), value, np.uint8), "state": np.full(3, value, np.float32),
        "actions": np.zeros((4, 3), np.float32), "step_valid": np.ones(4, bool), "dim_valid": np.ones(3, bool), "has_action": True,
        "text_key": "k", "embodiment_id": 1, "sample_id": name,
    }


def rows(*names):
    return [{"sample_id": n, "position": 10 + i, "batch": 8, "kind": "robot", "bucket": 0} for i, n in enumerate(names)]


def test_failed_samples_hold_their_place_and_say_why():
    columns = batch_columns(rows("a", "b", "c"), [sample("a", 1), sample("c", 3)], {"b": "truncated"}, SPEC)
    assert columns["ok"].tolist() == [True, False, True]
    assert columns["reason"].tolist() == ["", "truncated", ""]
    assert columns["position"].tolist() == [10, 11, 12]
    assert columns["frames"][[0, 2], 0, 0, 0, 0].tolist() == [1, 3]
    assert columns["embodiment_id"].tolist() == [1, 0, 1]


def test_a_block_without_any_good_sample_has_the_same_columns():
    bad = batch_columns(rows("a", "b"), [], {"a": "x", "b": "y"}, SPEC)
    good = batch_columns(rows("a", "b"), [sample("a", 1), sample("b", 2)], {}, SPEC)
    assert not bad["ok"].any()
    assert {k: (v.shape, v.dtype.kind) for k, v in bad.items()} == {k: (v.shape, v.dtype.kind) for k, v in good.items()}


class Shard:
    """What Ray hands to a worker: blocks as batches."""

    def __init__(self, *blocks):
        self.blocks = blocks

    def iter_batches(self, **_):
        for start, size in self.blocks:
            yield {"position": np.arange(start, start + size // 2), "batch": np.full(size // 2, size)}


def test_each_rank_gets_its_share_of_batches_of_any_size():
    got = [b["position"].tolist() for b in batches(Shard((4, 8), (10, 4), (16, 8)), 0, 1, 2)]
    assert got == [[4, 5, 6, 7], [10, 11], [16, 17, 18, 19]]


def test_a_stream_out_of_step_stops_instead_of_repeating_samples():
    stream = batches(Shard((0, 8), (4, 8)), 0, 0, 2)
    next(stream)
    with pytest.raises(RuntimeError, match=r"positions 4\.\.7, expected 8\.\.11"):
        next(stream)
