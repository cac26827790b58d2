"""Notes of a rank: none is waited for, none but old ones of progress are left out."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp import storage
from pipelines.training.control.journal import (
    DATA,
    SAVING,
    STARTING,
    STEPPING,
    Journal,
)
from pipelines.training.samples.shares import PADDING


def test_notes_are_written_and_the_newest_progress_wins(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), 1, 3)
    for step in range(200):
        journal.progress(step, 0, {"loss": float(step)})
    journal.resumed(40, 2)
    assert journal.flush(20)
    report = json.loads((tmp_path / "progress" / "rank-1.json").read_text())
    assert (report["step"], report["loss"], report["attempt"]) == (199, 199.0, 3)
    assert json.loads((tmp_path / "events" / "resumed-a3.json").read_text())["step"] == 40


def test_each_phase_is_told_with_its_time_when_it_is_over(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    begin = time.monotonic()
    journal = Journal(str(tmp_path), 0, 1, spent=lambda *spent: told.append(spent))
    for phase in (DATA, STEPPING, SAVING):
        journal.phase(phase, tell=False)
    journal.close(10)
    assert [phase for phase, _ in told] == [STARTING, DATA, STEPPING, SAVING]
    # All of the time since the start is in one of them, and none of it twice.
    assert 0 < sum(seconds for _, seconds in told) <= time.monotonic() - begin


def test_padding_is_no_sample(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), 2, 1)
    raw: Any = {
        "sample_id": np.array(["a", "b", ""]),
        "reason": np.array(["", "torn", ""]),
        "position": np.array([6, 7, PADDING]),
    }
    assert journal.quarantine(0, raw, np.array([True, False, False])) == 1
    assert journal.quarantine(1, raw, np.array([True, True, False])) == 0
    journal.consumed(0, raw)
    assert journal.flush(20)
    (broken,) = storage.list_files(str(tmp_path / "quarantine"))
    noted = json.loads((tmp_path / "quarantine" / broken).read_text())
    assert noted == [{"sample_id": "b", "reason": "torn"}]
    taken = json.loads((tmp_path / "consumed" / "a1" / "step_000000-rank2.json").read_text())
    assert [sample["position"] for sample in taken] == [6, 7]


def test_no_step_waits_for_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that answers nothing for a while: notes wait, of progress one only."""
    back = threading.Event()
    written: list[str] = []
    write = storage.write_bytes

    def late(uri: str, data: bytes, create_only: bool = False) -> None:
        back.wait(30)
        written.append(uri)
        write(uri, data, create_only)

    monkeypatch.setattr(storage, "write_bytes", late)
    journal = Journal(str(tmp_path), 0, 1)
    raw = {
        "sample_id": np.array(["a", "b"]),
        "reason": np.array(["", "torn"]),
        "position": np.array([0, 1]),
    }
    begin = time.monotonic()
    for step in range(100):
        journal.quarantine(step, raw, np.array([True, False]))  # type: ignore[arg-type]
        journal.progress(step, 0, {})
    assert time.monotonic() - begin < 20
    assert not journal.flush(0.05)
    back.set()
    assert journal.flush(20)
    assert len(list((tmp_path / "quarantine").iterdir())) == 100
    assert json.loads((tmp_path / "progress" / "rank-0.json").read_text())["step"] == 99
    # Each that waited was replaced by the next.
    assert len([uri for uri in written if "progress" in uri]) <= 2


def test_a_note_that_cannot_be_written_is_logged_and_the_next_one_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(str(tmp_path), 0, 1)
    # A file where the folder should be.
    (tmp_path / "events").write_text("")
    journal.resumed(1, 1)
    journal.skipped(2, [float("nan")], float("nan"), ["a"])
    assert journal.flush(20)
    assert "resumed-a1.json is not written" in caplog.text
    assert (tmp_path / "skipped_steps" / "step_000002.json").exists()


def test_a_rank_that_says_nothing_gives_a_sign_of_life_with_its_phase(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), 0, 1, "start", beat_s=0.05, node="n")

    def report() -> dict:
        return json.loads((tmp_path / "progress" / "rank-0.json").read_text())

    # Nothing was said yet, so there is nothing to repeat.
    assert journal.flush(20)
    assert not (tmp_path / "progress").exists()
    journal.phase("fetching the checkpoint", 40)
    assert journal.flush(20)
    first = report()
    assert (first["step"], first["phase"], first["start"], first["node"]) == (
        40,
        "fetching the checkpoint",
        "start",
        "n",
    )
    end = time.monotonic() + 20
    while (second := report())["beat"] < first["beat"] + 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert second["phase_s"] > first["phase_s"]
    # In the step loop nothing is written at once.
    journal.phase("stepping", tell=False)
    journal.progress(41, 0, {"loss": 1.0})
    journal.close(20)
    last = report()
    assert (last["step"], last["phase"], last["loss"]) == (41, "ended", 1.0)
