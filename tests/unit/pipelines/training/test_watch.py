"""The view of a run shows this start of the workers, however the run folder looks meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest

from gwp import storage
from gwp.errors import MissingError
from pipelines.training.control.watch import (
    View,
    failures,
    forget_progress,
    resumptions,
    worker_progress,
)


def write(run: Path, report: dict[str, Any]) -> None:
    folder = run / "progress"
    folder.mkdir(exist_ok=True)
    (folder / f"rank-{report['rank']}.json").write_text(json.dumps(report))


def report(rank: int, step: int, start: str = "b", **more: Any) -> dict[str, Any]:
    own = {"rank": rank, "step": step, "start": start, "attempt": 2, "phase": "stepping"}
    return {**own, "phase_s": 0.1, **more}


def test_reports_are_those_of_the_newest_start_in_order_of_ranks(tmp_path: Path) -> None:
    assert worker_progress(str(tmp_path)) == []
    for rank in (0, 2, 10):
        write(tmp_path, report(rank, 7))
    # Of a start with more ranks.
    write(tmp_path, report(11, 90, "a"))
    assert [r["rank"] for r in worker_progress(str(tmp_path))] == [0, 2, 10]
    forget_progress(str(tmp_path))
    assert worker_progress(str(tmp_path)) == []


def test_files_that_vanish_or_are_half_written_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in range(4):
        write(tmp_path, report(rank, 7))
    (tmp_path / "progress" / "rank-1.json").write_text('{"rank": 1, "st')
    (tmp_path / "progress" / "rank-2.json").write_text("")
    (tmp_path / "progress" / f".gwp-{'0' * 32}.part").write_text("{}")
    read = storage.read_bytes

    def vanishing(uri: str) -> bytes:
        if uri.endswith("rank-3.json"):
            raise MissingError("gone")
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", vanishing)
    assert [r["rank"] for r in worker_progress(str(tmp_path))] == [0]


def test_events_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    for name, moment in (("resumed-a2", 5), ("failed-17", 4), ("failed-9", 6), ("resumed-a1", 1)):
        (tmp_path / "events" / f"{name}.json").write_text(json.dumps({"time": moment}))
    assert [event["time"] for event in resumptions(str(tmp_path))] == [1, 5]
    assert [event["time"] for event in failures(str(tmp_path))] == [4, 6]


def test_the_view_forgets_earlier_starts_and_shows_what_is_waited_for() -> None:
    old = [report(0, 90, "a"), report(1, 90, "a")]
    view = View(old)
    assert view.look(old, 0.0) is None
    assert view.look([], 1.0) is None
    new = [report(0, 40, loss=2.0), report(1, 39)]
    # The run is as far as its slowest rank.
    assert view.look(new, 2.0) == (39, {"loss": 2.0, "attempt": 2})
    # No step comes: since when is measured here.
    assert view.look(new, 22.0) == (
        39,
        {"loss": 2.0, "attempt": 2, "phase": "stepping for 20 s"},
    )
    # Whether they step, or are no more: nobody says.
    assert (view.look(new, 102.0) or (0, {}))[1]["phase"] == "no report for 100 s"
    waiting = [report(0, 40), report(1, 39, phase="waiting for data", phase_s=1.0)]
    step, figures = view.look(waiting, 103.0) or (0, {})
    assert (step, figures["phase"]) == (39, "waiting for data for 1 s")
