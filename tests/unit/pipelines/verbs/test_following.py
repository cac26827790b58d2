"""What the terminal shows of a job elsewhere."""

import json

import pytest

from clusters.jobs.jobs import Job
from pipelines.verbs.submit.following import _Lines, last_progress, leaving, results_of

PROGRESS = {"event": "progress", "task": "policy: a", "done": 3, "total": 9, "loss": 0.5}
FINISHED = {"event": "finished", "stage": "policy", "run": "a", "steps": 9}
LOG = "\n".join(
    [
        "Running entrypoint for job gwp-a-1",
        json.dumps({"event": "note", "text": "cameras"}),
        json.dumps(PROGRESS),
        '{"event" is no JSON',
        json.dumps(FINISHED),
        "",
    ]
)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_lines_are_the_same_however_they_come(
    size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with _Lines() as lines:
        for begin in range(0, len(LOG), size):
            lines.take(LOG[begin : begin + size])
    shown = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in shown] == ["log", "note", "progress", "log", "finished"]
    assert shown[0]["text"] == "Running entrypoint for job gwp-a-1"
    assert shown[2] | PROGRESS == shown[2]
    assert lines.results == [{"stage": "policy", "run": "a", "steps": 9}]


def test_a_last_line_without_its_end_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with _Lines() as lines:
        lines.take("killed")
    assert json.loads(capsys.readouterr().err) == {"event": "log", "text": "killed"}


def test_a_line_of_megabytes_is_cut_and_what_follows_it_is_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with _Lines() as lines:
        # As the stream brings it.
        for _ in range(3000):
            lines.take("x" * 1000)
        lines.take("\n" + json.dumps(FINISHED) + "\n")
    first, second = capsys.readouterr().err.splitlines()
    assert json.loads(first)["text"].endswith("x... (3000000 characters)")
    assert len(first) < 5000
    assert json.loads(second)["event"] == "finished"
    assert lines.results


def test_ctrl_c_says_how_to_come_back() -> None:
    job = Job(
        "gwp-a-1", "gwp-a", 1, ("a",), ("s3://b/a",), ("policy",), "d", "RUNNING", "", 0, None
    )
    said = r"gwp-a-1 goes on; .* `gwp jobs stop gwp-a-1`"
    with pytest.raises(KeyboardInterrupt, match=said), leaving(job):
        raise KeyboardInterrupt


def test_how_far_a_job_is_and_what_it_gave_are_read_from_its_log() -> None:
    assert last_progress(LOG) == PROGRESS
    assert last_progress("nothing yet") is None
    assert results_of(LOG) == [{"stage": "policy", "run": "a", "steps": 9}]
