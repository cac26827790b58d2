"""What a run tells of itself: rank 0 for all, each rank of its time, nothing counted twice."""

from collections.abc import Callable

import pytest

from gwp.metrics.meter import Meter
from pipelines.tracking.live import LiveRun, Work
from tests.unit.gwp.metrics.test_meter import Backend

WORK = Work(samples=8, tokens=400, flop=1e9, encoder_flop=1e6)


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
        live.stepped(step, WORK, skipped=max(0, step - 23))
    live.losses({"loss": 0.5})
    live.losses({"loss": 0.7}, validation=True)
    live.taken(25)
    live.resumes()
    live.stepped(26, WORK, skipped=2)
    live.committed(25)
    live.spent("stepping", 1.5)
    live.figures({"speed/mfu": 0.4, "loss/mode/wam": 0.9, "memory/process_gib": 2, "time/step": 3})
    live.phases({"data": 0.5, "rest": 0.0})
    live.phases({"data": 0.25, "rest": 0.1})
    live.started({"start/list": 3.0, "start/total": 9.0})


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
    assert (sum(found["tokens"]), sum(found["encoder_flop"])) == (2400, 6e6)
    assert (found["mfu"][-1], found["loss mode/wam"][-1]) == (0.4, 0.9)
    assert found["memory_bytes"][-1] == 2 << 30
    assert (sum(found["step_phase_seconds data"]), found["step_phase_seconds rest"]) == (
        0.75,
        [0.1],
    )
    assert (found["start_seconds list"][-1], found["start_seconds total"][-1]) == (3, 9)


def test_other_ranks_say_where_their_time_goes_and_nothing_else(told: Told) -> None:
    assert told(1, steps) == {"phase_seconds stepping": [1.5]}


def test_a_run_that_begins_has_no_step_unsaved(told: Told) -> None:
    found = told(0, lambda live: live.begins(40))
    assert found["unsaved_steps"][-1] == 0
    assert found["step"][-1] == 40
