"""What long work shows: JSON lines where nobody watches, text and a bar on a terminal."""

import io
import json
import sys

import pytest

from pipelines import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_without_a_terminal_is_json_lines_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.progress("train", total=1000) as bar:
        for step in range(1, 1001):
            bar.update(step, loss=1 / step)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [json.loads(line) for line in shown.err.splitlines()]
    assert lines[0]["done"] == 1
    assert {**lines[-1], "elapsed_s": 0} == {
        "event": "progress",
        "task": "train",
        "done": 1000,
        "total": 1000,
        "elapsed_s": 0,
        "loss": 0.001,
    }
    assert len(lines) < 100


def test_the_last_progress_is_told_even_when_the_work_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        with console.progress("train") as bar:
            bar.update(1)
            bar.update(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["done"] == 2


def test_progress_without_updates_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("nothing"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress("train", total=2) as bar:
        bar.update(2, loss=0.25)
    console.event("saved", step=2, loss=0.123456)
    shown = terminal.getvalue()
    assert "train" in shown
    assert "loss 0.25" in shown
    assert shown.endswith("saved  step 2  loss 0.1235\n")


def test_an_event_elsewhere_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    console.event("saved", step=2)
    assert json.loads(capsys.readouterr().err) == {"event": "saved", "step": 2}


def test_table_aligns_columns() -> None:
    assert (
        console.table([{"name": "act", "ms": 12.34567}, {"name": "joint", "ms": 100}])
        == "name   ms\nact    12.35\njoint  100"
    )
    assert console.table([]) == ""
