"""Calls of checkpoints on a bad day of storage."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gwp import storage
from gwp.errors import GwpError
from gwp.storage import retry
from pipelines.training.checkpoint import checkpoints, retention
from pipelines.training.checkpoint.checkpoints import CheckpointManifest
from tests.support.faults import FaultyProxy
from tests.unit.gwp.storage.test_patience import (
    AWAY,
    CALLS,
    LARGE,
    PURE,
    PURE_CHECKPOINTS,
    SMALL,
    _calm,  # noqa: F401
    plan,
    proxy,  # noqa: F401
)

DOORS = {
    "gwp.storage",
    "gwp.storage.door",
    "gwp.storage.errors",
    "gwp.storage.handles",
    "pipelines.training.checkpoint.checkpoints",
    "pipelines.training.checkpoint.retention",
}
"""Where calls of storage and of checkpoints are defined; the rest asks no storage."""


def write_checkpoint(run: str, folder: Path, step: int) -> str:
    uri = checkpoints.checkpoint_uri(run, step, 1)
    (folder / f"{step}").mkdir()
    (folder / f"{step}/small").write_bytes(SMALL)
    (folder / f"{step}/large").write_bytes(LARGE)
    files = checkpoints.upload_files(folder / f"{step}", uri)
    manifest = CheckpointManifest(
        files=files,
        step=step,
        samples_seen=step,
        world_size=1,
        zero_stage=0,
        attempt=1,
        plan_hash="p",
        config_hash="c",
    )
    checkpoints.commit(uri, manifest)
    return uri


def steps(found: list[tuple[str, CheckpointManifest]]) -> list[int]:
    return [manifest.step for _, manifest in found]


def fetched(run: str, folder: Path) -> dict[str, bytes]:
    uri, manifest = checkpoints.find_committed(run)[0]
    checkpoints.fetch(uri, manifest, folder / "back")
    return {path.name: path.read_bytes() for path in (folder / "back").iterdir()}


def verified(run: str) -> None:
    for uri, manifest in checkpoints.find_committed(run):
        checkpoints.verify(uri, manifest, deep=True)


def pruned(run: str, folder: Path) -> list[int]:
    assert retention.prune(run, keep=1) == [checkpoints.checkpoint_uri(run, 1, 1)]
    return steps(checkpoints.find_committed(run))


def aside(run: str) -> list[int]:
    checkpoints.set_aside(checkpoints.checkpoint_uri(run, 2, 1), "no more")
    return steps(checkpoints.find_committed(run))


def back(run: str) -> list[int]:
    checkpoints.go_back(run, 1)
    return steps(checkpoints.find_committed(run))


def torn(run: str, _: Path) -> list[object]:
    """Beside whole ones: removed, and not they."""
    storage.write_bytes(f"{checkpoints.checkpoint_uri(run, 3, 1)}/state/0.pt", SMALL)
    gone = [uri.rpartition("/")[2] for uri in retention.remove_torn(run)]
    return [gone, *steps(checkpoints.find_committed(run))]


# Of a run with checkpoints at steps 1 and 2, the newest last.
CHECKPOINT_CALLS: dict[str, tuple[Callable[[str, Path], object], object]] = {
    "upload_files, commit": (lambda run, folder: write_checkpoint(run, folder, 3)[-4:], "3-a1"),
    "verify": (lambda run, _: verified(run), None),
    "fetch": (fetched, {"small": SMALL, "large": LARGE}),
    "find_committed": (lambda run, _: steps(checkpoints.find_committed(run)), [2, 1]),
    "latest_committed": (lambda run, _: checkpoints.latest_committed(run, deep=True)[1].step, 2),  # type: ignore[index]
    "load_committed": (
        lambda run, _: checkpoints.load_committed(checkpoints.checkpoint_uri(run, 1, 1)).step,
        1,
    ),
    "set_aside": (lambda run, _: aside(run), [1]),
    "go_back": (lambda run, _: back(run), [1]),
    "folders": (
        lambda run, _: sorted(checkpoints.folders(run)),
        ["step_000001-a1", "step_000002-a1"],
    ),
    "next_attempt": (lambda run, _: checkpoints.next_attempt(run), 2),
    "prune": (pruned, [2]),
    "remove_torn": (torn, [["step_000003-a1"], 2, 1]),
}


@pytest.mark.parametrize("name", CHECKPOINT_CALLS)
def test_calls_of_checkpoints_outlast_them_too(
    proxy: FaultyProxy, tmp_path: Path, name: str
) -> None:
    run = f"{AWAY}/{tmp_path.name}"
    for step in (1, 2):
        write_checkpoint(run, tmp_path, step)
    call, right = CHECKPOINT_CALLS[name]
    before = proxy.faults
    proxy.fault = plan("lost")
    assert call(run, tmp_path) == right
    assert proxy.faults - before >= 3


@pytest.mark.parametrize(
    ("module", "table", "pure"),
    [
        (storage, CALLS, PURE),
        (checkpoints, CHECKPOINT_CALLS, PURE_CHECKPOINTS),
        (retention, CHECKPOINT_CALLS, PURE_CHECKPOINTS),
    ],
)
def test_no_call_is_left_out(module: ModuleType, table: dict[str, object], pure: set[str]) -> None:
    public = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ in DOORS
    }
    assert {word for name in table for word in re.findall(r"\w+", name)} >= public - pure


def test_a_hiccup_of_pruning_costs_no_attempt(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch, caplog
) -> None:
    run = f"{AWAY}/{tmp_path.name}"
    for step in (1, 2):
        write_checkpoint(run, tmp_path, step)
    monkeypatch.setenv(retry.PATIENCE, "0.1")
    for broken in ("DELETE", "HEAD", "GET"):
        proxy.fault = lambda method, *_, broken=broken: "slow down" if method == broken else None
        assert retention.prune(run, keep=1) == []
        assert "old checkpoints" in caplog.text
        caplog.clear()
        proxy.fault = lambda *_: None
        assert checkpoints.find_committed(run)[0][1].step == 2
    # The next call ends it; also where the manifest went and the rest did not.
    proxy.fault = lambda method, path, _: (
        "error" if method == "DELETE" and "MANIFEST" not in path else None
    )
    assert retention.prune(run, keep=1) == []
    proxy.fault = lambda *_: None
    assert steps(checkpoints.find_committed(run)) == [2]
    assert retention.prune(run, keep=1) == [checkpoints.checkpoint_uri(run, 1, 1)]
    assert storage.list_files(checkpoints.checkpoint_uri(run, 1, 1)) == {}


def test_failing_storage_is_not_taken_for_a_damaged_checkpoint(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch
) -> None:
    run = f"{AWAY}/{tmp_path.name}"
    newest = [write_checkpoint(run, tmp_path, step) for step in (1, 2)][-1]
    monkeypatch.setenv(retry.PATIENCE, "0.1")
    proxy.fault = lambda method, path, _: (
        "error" if newest.removeprefix("s3://") in path and "list-type" not in path else None
    )
    with pytest.raises(GwpError, match="storage keeps failing"):
        checkpoints.latest_committed(run)
