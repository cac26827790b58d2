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
        ([*FILES[::-1], "--plan"], "policy starts from embodied, which is given behind it"),
        ([*FILES, "--set", "run.name=one"], "two of the files are the run"),
        ([FILES[0], "--plan", "--gpu", "gtx"], "--gpu gtx: not known; choose one of l4,"),
        ([FILES[0], "--plan", "--workers", "0"], "--workers: must be above 0"),
        ([FILES[0], "--plan", "--network-gb", "-1"], "--network-gb: must be above 0"),
        ([FILES[0], "--plan", "--gpus-per-node", "0"], "--gpus-per-node: must be above 0"),
        ([FILES[0], "--plan", "--prices", "nowhere.yaml"], "nowhere.yaml"),
        # They would be heeded by nothing.
        ([FILES[0], "--gpu", "h100"], "--gpu is for --plan"),
        ([FILES[0], "--dry-run", "--gpus-per-node", "4"], "--gpus-per-node is for --plan"),
        ([FILES[0], "--json"], "--json is for --plan"),
        (["serve/serve.yaml", "--plan"], "serve/serve.yaml: a ServeApp; give a TrainJob"),
    ],
)
def test_what_cannot_be_a_sequence_is_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"], ["--gpu", "l4", "--workers", "2", "--json"]])
def test_a_plan_is_that_of_gwp_plan(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With data sets that are nowhere: none is read."""
    sets = ["--set", "data.sources.0.uri=/nowhere/at/all"]
    assert main(["train", "--plan", FILES[0], *sets, *options]) == 0
    ours = capsys.readouterr().out
    assert main(["plan", FILES[0], *sets, *options]) == 0
    assert ours == capsys.readouterr().out


def test_plans_of_several_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--plan", *FILES, "--json"]) == 0
    assert [plan["stage"] for plan in json.loads(capsys.readouterr().out)] == TINY
    assert main(["train", "--plan", *FILES]) == 0
    shown = capsys.readouterr().out.split("\n\n\n")[0]
    assert [line.partition(":")[0] for line in shown.splitlines() if " x h100, " in line] == TINY


def test_the_exit_code_says_that_something_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    full = str(STAGES / "full" / "policy.yaml")
    assert main(["train", "--plan", full, "--gpu", "rtx4090"]) == 1
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("does not fit: ")]
    _, _, sets = line.partition(": set ")
    words = [word for text in sets.split(", ") for word in ("--set", text)]
    assert main(["train", "--plan", full, "--gpu", "rtx4090", *words]) == 0
