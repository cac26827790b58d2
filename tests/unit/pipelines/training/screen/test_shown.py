"""A stage is shown as a picture on a terminal, and as lines elsewhere or when asked to."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.load import load_config
from pipelines.console import warn
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.training.screen import shown as module
from pipelines.training.screen.shown import shown
from tests.unit.pipelines.training.screen.test_panel import FIGURES


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """Without its colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    return found


def job(folder: Path) -> TrainJob:
    sets = [f"run.storage={folder}", "run.name=arm", "run.steps=50"]
    return load_config("pipelines/stages/world.yaml", TrainJob, sets)


def write(job: TrainJob, **more: Any) -> None:
    folder = Path(run_uri(job)) / "progress"
    folder.mkdir(parents=True, exist_ok=True)
    report = {"rank": 0, "step": 7, "logged": 7, "start": "new", "attempt": 1, "phase": "stepping"}
    figures = {"speed/samples_per_s": 12.5, "speed/mfu": 0.3, "data_wait_share": 0.01}
    note = report | {"phase_s": 0.0, "loss": 0.75, "figures": figures} | more
    (folder / "rank-0.json").write_text(json.dumps(note))


def test_lines_have_the_figures_of_the_newest_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    found = job(tmp_path)
    with shown(found) as seen:
        write(found, started={"start/list": 1.0, "start/total": 3.25})
    assert seen.step == 7
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (started,) = [line for line in lines if line["event"] == "started"]
    assert started == {"event": "started", "list_s": 1.0, "total_s": 3.25}
    told = [line for line in lines if line["event"] == "progress"][-1]
    wanted = {"done": 7, "total": 50, "loss": 0.75, "samples_per_s": 12.5, "mfu": 0.3}
    assert told.items() >= (wanted | {"data_bound": 0.01, "task": "world: arm"}).items()


def test_a_terminal_gets_the_picture_with_warnings_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_a_terminal(monkeypatch)
    found = job(tmp_path)
    with shown(found):
        write(found, figures=FIGURES)
        warn("the disk is nearly full")
    text = terminal.text()
    assert '"event"' not in text
    # Above the picture when it came, and in it.
    assert text.count("the disk is nearly full") > 1
    assert "step 7 of 50" in text


def test_a_report_that_lacks_figures_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of workers of another version."""
    terminal = on_a_terminal(monkeypatch)
    found = job(tmp_path)
    with shown(found):
        write(found, figures={"speed/samples_per_s": 3.0})
    assert "world: arm" in terminal.text()


def test_a_terminal_gets_lines_when_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_a_terminal(monkeypatch)
    found = job(tmp_path)
    with shown(found, plain=True):
        write(found)
    (line,) = terminal.getvalue().splitlines()
    assert json.loads(line)["done"] == 7
