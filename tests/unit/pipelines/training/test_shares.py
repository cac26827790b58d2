"""Every sample of a batch is in one share, shares differ by one at most, and rows are equal."""

import numpy as np

from pipelines.training.samples.shares import PADDING, counts_of, positions_of, rows_of


def test_shares_are_even_have_every_sample_once_and_as_many_rows() -> None:
    for size in range(1, 20):
        for world in range(1, size + 1):
            shares = [positions_of(40, size, rank, world) for rank in range(world)]
            assert {len(share) for share in shares} == {rows_of(size, world)}
            real = [[p for p in share if p != PADDING] for share in shares]
            # In order of ranks, and padding behind the samples.
            assert [p for share in real for p in share] == list(range(40, 40 + size))
            assert all(share[: len(r)] == r for share, r in zip(shares, real, strict=True))
            counts = [len(r) for r in real]
            assert min(counts) >= 1
            assert max(counts) - min(counts) <= 1
            assert counts_of(np.array([size]), world).tolist() == [counts]


def test_eight_samples_on_three_ranks() -> None:
    assert [positions_of(0, 8, rank, 3) for rank in range(3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, PADDING],
    ]
