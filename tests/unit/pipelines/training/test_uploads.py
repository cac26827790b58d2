"""A checkpoint is uploaded beside the steps, and whole when all ranks have."""

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gwp import storage
from gwp.errors import GwpError
from pipelines.training.checkpoint import checkpointer, uploads
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    checkpoint_uri,
    fetch,
    find_committed,
)
from pipelines.training.checkpoint.uploads import Uploads
from pipelines.training.scratch import Scratch

FACTS = {
    "samples_seen": 80,
    "world_size": 2,
    "zero_stage": 2,
    "plan_hash": "p",
    "config_hash": "c",
    "attempt": 1,
}


def until(holds: Callable[[], bool]) -> None:
    """Wait for it, at most 20 s."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class Two:
    """The uploads of two ranks."""

    def __init__(self, run: Path) -> None:
        self.run = str(run)
        self.told: list[tuple[object, int]] = []
        self.ranks = [
            Uploads(self.run, rank, 2, "none yet", partial(self.covered, rank), self.commit)
            for rank in (0, 1)
        ]

    def covered(self, rank: int, step: int) -> None:
        self.told.append((rank, step))

    def commit(self, uri: str, step: int) -> None:
        self.told.append((uri, step))

    def start(self, rank: int, step: int) -> Path:
        scratch = Scratch()
        (scratch.folder / f"{rank}.pt").write_bytes(bytes([rank, step]) * 100)
        uri = checkpoint_uri(self.run, step, 1)
        self.ranks[rank].start(scratch, uri, partial(CheckpointManifest, step=step, **FACTS))  # type: ignore[arg-type]
        return scratch.folder


def test_a_checkpoint_is_whole_when_all_ranks_have_uploaded(tmp_path: Path) -> None:
    two = Two(tmp_path)
    scratch = two.start(0, 5)
    until(lambda: (tmp_path / "checkpoints/step_000005-a1/shares/rank-00000.json").exists())
    assert find_committed(two.run) == []
    two.start(1, 5)
    for rank in two.ranks:
        rank.wait()
    ((uri, found),) = find_committed(two.run)
    assert sorted(found.files) == ["state/0.pt", "state/1.pt"]
    assert fetch(uri, found, tmp_path / "back").joinpath("state/1.pt").read_bytes()[:2] == b"\1\5"
    # What was measured is where it belongs before the checkpoint is.
    assert sorted(two.told[:2]) == [(0, 5), (1, 5)]
    assert two.told[2:] == [(uri, 5)]
    assert [rank.good for rank in two.ranks] == [f"{uri} (step 5)"] * 2
    assert not scratch.exists()
    assert not (Path(uri) / "shares").exists()


def test_no_step_waits_for_storage_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused for longer than a call of storage is patient."""
    back = threading.Event()
    refused: list[str] = []
    put = storage.put_file

    def away(file: Path, uri: str) -> None:
        if not back.is_set():
            refused.append(uri)
            raise ConnectionRefusedError("storage is away")
        put(file, uri)

    monkeypatch.setattr(storage, "put_file", away)
    monkeypatch.setattr(uploads, "_AGAIN_S", 0.01)
    two = Two(tmp_path)
    begin = time.monotonic()
    for rank in (0, 1):
        two.start(rank, 7)
    assert time.monotonic() - begin < 10
    until(lambda: len(refused) >= 6)
    assert find_committed(two.run) == []
    assert not two.ranks[0].arrived(0.01)
    back.set()
    assert two.ranks[0].arrived(20.0)
    for waiting in two.ranks:
        waiting.wait()
    assert [found.step for _, found in find_committed(two.run)] == [7]


def test_a_checkpoint_that_is_due_waits_for_the_one_before_and_steps_do_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps wait a little, once; then they look at each of them whether it has arrived, on all
    ranks.
    """
    monkeypatch.setattr(checkpointer, "_STAND_S", 3.0)
    waits: list[float] = []
    answers = iter([True, False, False, True, True])

    def arrived(timeout_s: float) -> bool:
        waits.append(timeout_s)
        return next(answers)

    # The other rank is late once more.
    others = iter([False, False, False, True, False])
    ranks: Any = SimpleNamespace(rank=0, anywhere=lambda flag: next(others) or flag)
    underway: Any = SimpleNamespace(arrived=arrived)
    # What it does not ask for this is nothing.
    nothing: Any = None
    taken = checkpointer.Checkpointer(nothing, 1, ranks, nothing, nothing, nothing, underway)
    came = [taken.may_take(5) for _ in range(5)]
    assert came == [True, False, False, False, True]
    assert waits == [3.0, 3.0, 0.0, 0.0, 0.0]
    assert caplog.text.count("step 5: the last checkpoint is still on its way") == 1


def test_what_does_not_pass_is_told_at_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, uri: str) -> None:
        raise GwpError(f"{uri}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "put_file", full)
        two = Two(tmp_path)
        two.start(1, 9)
        with pytest.raises(GwpError, match="no space left"):
            two.ranks[1].wait()
    # Nor does a rank wait for ever for one that died.
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.3)
    two.start(0, 9)
    with pytest.raises(TimeoutError, match="rank 1 did not upload its share"):
        two.ranks[0].wait()
    assert find_committed(two.run) == []
    assert two.ranks[0].good == "none yet"
    assert json.loads((tmp_path / "checkpoints/step_000009-a1/shares/rank-00000.json").read_text())
