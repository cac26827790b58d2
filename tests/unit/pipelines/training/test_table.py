"""The table of checkpoints has each that was ever whole, and says what became of it."""

from pathlib import Path
from typing import Any

import pytest

from gwp import storage
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    FileEntry,
    checkpoint_uri,
    commit,
)
from pipelines.training.checkpoint.retention import prune
from pipelines.training.checkpoint.table import COLUMNS, FILE, as_columns, read_table, updated


def taken(run: str, step: int, validation: float | None = None, attempt: int = 1) -> Any:
    """A whole checkpoint at a step, with what follows when it has become so."""
    uri = checkpoint_uri(run, step, attempt)
    storage.write_bytes(f"{uri}/state/a", b"x" * step)
    manifest = CheckpointManifest(
        files={"state/a": FileEntry(size=step, sha256="0" * 64)},
        step=step,
        samples_seen=8 * step,
        world_size=1,
        zero_stage=2,
        attempt=attempt,
        plan_hash="p",
        config_hash="c",
        validation=validation,
    )
    commit(uri, manifest)
    prune(run, 2)
    return updated(run, 2, manifest, seconds=1.5)


def states(rows: list[dict[str, Any]]) -> dict[int, str]:
    return {row["step"]: row["state"] for row in rows}


def test_what_is_kept_and_what_is_gone_has_its_reason(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert read_table(run) == []
    for step, loss in ((10, 0.9), (20, 0.5), (30, 0.7), (40, 0.6), (50, 0.8)):
        rows = taken(run, step, loss)
    assert states(rows) == {
        10: "gone: not one of the newest 2",
        20: "kept: best by validation",
        30: "gone: not one of the newest 2",
        40: "kept: one of the newest 2",
        50: "kept: one of the newest 2",
    }
    assert read_table(run) == rows
    assert [row["bytes"] for row in rows] == [10, 20, 30, 40, 50]
    assert (rows[0]["seconds"], rows[0]["validation"]) == (1.5, 0.9)


def test_the_best_may_be_one_of_the_newest(tmp_path: Path) -> None:
    taken(str(tmp_path), 10, 0.9)
    rows = taken(str(tmp_path), 20, 0.4)
    assert states(rows)[20] == "kept: best by validation, one of the newest 2"


def test_steps_that_are_taken_again_have_rows_of_their_own(tmp_path: Path) -> None:
    """After `--from`: what was newer is set aside."""
    run = str(tmp_path)
    for step in (10, 20, 30):
        taken(run, step)
    for step in (20, 30):
        storage.remove_tree(checkpoint_uri(run, step, 1))
    rows = taken(run, 20, attempt=2)
    assert [(row["step"], row["attempt"], row["state"].split(":")[0]) for row in rows] == [
        (10, 1, "gone"),
        (20, 1, "gone"),
        (20, 2, "kept"),
        (30, 1, "gone"),
    ]
    assert rows[3]["state"] == "gone: set aside"


def test_a_table_that_cannot_be_read_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text("{")
    assert len(taken(str(tmp_path), 10)) == 1
    assert "begun anew" in caplog.text


def test_mlflow_gets_columns_and_rows(tmp_path: Path) -> None:
    rows = taken(str(tmp_path), 10)
    text = as_columns(rows).decode()
    assert text.startswith('{"columns": ["step", "attempt", "bytes"')
    assert f'"data": [[10, 1, 10, 1.5, null, "{rows[0]["created"]}"' in text
    assert set(rows[0]) == set(COLUMNS)
