"""Which checkpoint is judged next, and which of them stay until then."""

from pathlib import Path

from gwp import storage
from pipelines.tracking.curves import LOSS, add_verdict
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    checkpoint_uri,
    find_committed,
    set_aside,
)
from pipelines.training.checkpoint.retention import best, prune
from pipelines.training.checkpoint.table import judged, read_table
from pipelines.training.checkpoint.verdict import VERDICT, await_verdicts, awaited, write_verdict
from pipelines.training.judge.waiting import Waiting, without_verdict
from tests.unit.pipelines.training.test_table import states, taken


def test_what_was_left_comes_first_and_then_the_newest_alone() -> None:
    waiting = Waiting()
    waiting.add(["a", "b"])
    assert waiting.next() == "a"
    waiting.add([])
    waiting.add(["c"])
    assert waiting.names == ["a", "b", "c"]
    # It is slower than checkpoints come.
    waiting.add(["d", "e"])
    assert waiting.names == ["a", "b", "e"]
    waiting.over()
    assert waiting.next() == "b"
    waiting.over()
    assert waiting.next() == "e"
    waiting.over()
    assert waiting.next() is None
    assert waiting.names == []


def test_it_never_has_more_than_two_of_those_taken_meanwhile() -> None:
    waiting = Waiting()
    waiting.add([])
    for number in range(100):
        waiting.add([f"step {number}"])
        if number % 10 == 0:
            waiting.over()
            assert waiting.next() == f"step {number}"
        assert len(waiting.names) <= 2
        assert waiting.names[-1] == f"step {number}"


def test_each_without_a_verdict_is_found_once(tmp_path: Path) -> None:
    """Not those that the workers judged, that are in the making, or that the run went back from."""
    run = str(tmp_path)
    taken(run, 10, 0.5)
    taken(run, 20)
    taken(run, 30)
    set_aside(checkpoint_uri(run, 30, 1), "sent back")
    storage.write_bytes(f"{checkpoint_uri(run, 40, 1)}/state/a", b"x")
    known: set[str] = set()
    assert without_verdict(run, known) == ["step_000020-a1"]
    assert without_verdict(run, known) == []
    taken(run, 40)
    assert without_verdict(run, known) == ["step_000040-a1"]
    write_verdict(checkpoint_uri(run, 20, 1), 0.4)
    assert without_verdict(run, set()) == ["step_000040-a1"]


def losses(run: str) -> dict[int, float | None]:
    return {manifest.step: manifest.validation for _, manifest in find_committed(run)}


def test_one_whose_verdict_is_awaited_stays_and_may_be_the_best(tmp_path: Path) -> None:
    run = str(tmp_path)
    taken(run, 10)
    await_verdicts(run, ["step_000010-a1"])
    for step in (20, 30, 40):
        rows = taken(run, step)
    assert states(rows)[10] == "kept: its verdict is awaited"
    assert losses(run) == {10: None, 30: None, 40: None}
    # Late, and the best so far.
    write_verdict(checkpoint_uri(run, 10, 1), 0.3)
    write_verdict(checkpoint_uri(run, 40, 1), 0.5)
    await_verdicts(run, ())
    assert awaited(run) == set()
    assert best(find_committed(run)) == checkpoint_uri(run, 10, 1)
    rows = taken(run, 50)
    assert losses(run) == {10: 0.3, 40: 0.5, 50: None}
    assert states(rows)[10] == "kept: best by validation"
    assert {row["step"]: row["validation"] for row in rows} == {
        10: 0.3, 20: None, 30: None, 40: 0.5, 50: None,
    }  # fmt: skip
    # A better one, when nobody takes checkpoints any more.
    write_verdict(checkpoint_uri(run, 50, 1), 0.2)
    assert prune(run, 2) == [checkpoint_uri(run, 10, 1)]
    assert states(judged(run, 2))[50] == "kept: best by validation, one of the newest 2"
    assert states(read_table(run))[10] == "gone: not one of the newest 2"


def test_what_was_said_of_one_that_is_gone_stays_in_the_table(tmp_path: Path) -> None:
    """It went before the table was written again."""
    run = str(tmp_path)
    taken(run, 10)
    write_verdict(checkpoint_uri(run, 10, 1), 0.9)
    add_verdict(run, [("validation_loss_video", 0.7, 0, 10), (LOSS, 0.9, 0, 10)])
    taken(run, 20)
    write_verdict(checkpoint_uri(run, 20, 1), 0.5)
    for step in (30, 40):
        taken(run, step)
    rows = judged(run, 2)
    assert states(rows)[10] == "gone: not one of the newest 2"
    assert {row["step"]: row["validation"] for row in rows} == {
        10: 0.9, 20: 0.5, 30: None, 40: None,
    }  # fmt: skip


def test_a_verdict_that_is_no_number_or_cannot_be_read_is_of_nobody_best(tmp_path: Path) -> None:
    run = str(tmp_path)
    for step in (10, 20):
        taken(run, step)
    write_verdict(checkpoint_uri(run, 10, 1), float("nan"))
    storage.write_bytes(f"{checkpoint_uri(run, 20, 1)}/{VERDICT}", b"{")
    assert best(find_committed(run)) is None
    # Nor where no sample could be read.
    write_verdict(checkpoint_uri(run, 20, 1), None)
    assert losses(run)[20] is None
    assert isinstance(find_committed(run)[0][1], CheckpointManifest)
