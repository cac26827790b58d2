"""What a run tells of itself: rank 0 for all, each rank of its time, nothing counted twice."""

from collections.abc import Callable

import pytest

from gwp.metrics.meter import Meter
from pipelines.tracking.live import LiveRun
from tests.unit.gwp.metrics.test_meter import Backend


@pytest.fixture
def told() -> Callable[[int, Callable[[LiveRun], None]], dict[str, list[float]]]:
    def run(rank: int, do: Callable[[LiveRun], None]) -> dict[str, list[float]]:
        """Name, and part or phase or kind where there is one -> what came."""
        backend = Backend()
        live = LiveRun(
            Meter(backend, run="r", rank=str(rank)), rank, 2, steps=100, checkpoint_every=10
        )
        do(live)
        live.close()
        found = {}
        for (name, tags), values in backend.told.items():
            last = dict(tags).get("part") or dict(tags).get("phase") or ""
            found[f"{name.removeprefix('gwp_train_')} {last}".strip()] = values
        return found

    return run


Told = Callable[[int, Callable[[LiveRun], None]], dict[str, list[float]]]


def steps(live: LiveRun) -> None:
    live.begins(20)
    for step in range(21, 26):
        live.stepped(step, samples=8, flop=1e9, skipped=max(0, step - 23))
    live.losses({"loss": 0.5})
    live.losses({"loss": 0.7}, validation=True)
    live.taken(25)
    live.resumes()
    live.stepped(26, samples=8, flop=1e9, skipped=2)
    live.committed(25)
    live.spent("stepping", 1.5)


def test_rank_0_speaks_for_the_run(told: Told) -> None:
    found = told(0, steps)
    assert sum(found["samples"]) == 6 * 8
    assert sum(found["flop"]) == 6e9
    assert sum(found["steps_skipped"]) == 2
    assert found["step"][-1] == 26
    assert found["unsaved_steps"][-1] == 1
    assert found["workers"][-1] == 2
    assert (found["steps_planned"][-1], found["checkpoint_every_steps"][-1]) == (100, 10)
    assert found["loss loss"][-1] == 0.5
    assert found["loss validation_loss"][-1] == 0.7
    # Between six steps, the checkpoint's time is no part of it: from the first on, five.
    assert len(found["step_seconds"]) == 5
    assert len(found["checkpoint_seconds"]) == 1
    assert found["phase_seconds stepping"] == [1.5]


def test_other_ranks_say_where_their_time_goes_and_nothing_else(told: Told) -> None:
    assert told(1, steps) == {"phase_seconds stepping": [1.5]}


def test_a_run_that_begins_has_no_step_unsaved(told: Told) -> None:
    found = told(0, lambda live: live.begins(40))
    assert found["unsaved_steps"][-1] == 0
    assert found["step"][-1] == 40
