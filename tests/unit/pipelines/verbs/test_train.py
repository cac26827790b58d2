"""`gwp train` with several files, as far as nothing is started."""

import json

import pytest

from pipelines.cli import main
from tests.unit.pipelines.jobs.test_stages import STAGES, TINY

FILES = [str(STAGES / f"{name}.yaml") for name in TINY]


def test_several_stages_are_shown_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *FILES, "--dry-run"]) == 0
    assert [job["stage"] for job in json.loads(capsys.readouterr().out)] == TINY
    assert main(["train", FILES[0], "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == "world"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*FILES, "--from", "3"], "--from is for one file"),
        ([*FILES[::-1], "--dry-run"], "policy starts from embodied, which is given behind it"),
        ([*FILES, "--set", "run.name=one"], "two of the files are the run"),
    ],
)
def test_what_cannot_be_a_sequence_is_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert told in capsys.readouterr().err
