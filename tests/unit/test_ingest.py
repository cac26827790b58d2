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
        "frames": np.full((5, 8, 8, 3), value, np.uint8), "state": np.full(3, value, np.float32),
        "actions": np.zeros((4, 3), np.float32), "step_valid": np.ones(4, bool), "dim_valid": np.ones(3, bool), "has_action": True,
        "text_key": "k", "embodiment_id": 1, "sample_id": name,
    }


def rows(*names):
    return [{"sample_id": n, "position": 10 + i} for i, n in enumerate(names)]


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

    def __init__(self, *starts):
        self.starts = starts

    def iter_batches(self, batch_size, **_):
        for start in self.starts:
            yield {"position": np.arange(start, start + batch_size)}


def test_each_rank_gets_every_worlds_turn():
    got = [b["position"].tolist() for b in batches(Shard(4, 12, 20), 4, 4, 8)]
    assert got == [[4, 5, 6, 7], [12, 13, 14, 15], [20, 21, 22, 23]]


def test_a_stream_out_of_step_stops_instead_of_repeating_samples():
    stream = batches(Shard(0, 4), 4, 0, 8)
    next(stream)
    with pytest.raises(RuntimeError, match=r"positions 4\.\.7, expected 8"):
        next(stream)
