"""A local file is there whole or not at all, and one creator alone has made it."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gwp import storage
from gwp.errors import BundleError, GwpError
from gwp.policy.bundle import read_bundle, seal
from gwp.storage import local_files
from pipelines.training.checkpoint import checkpoints
from tests.support.paths import ROOT

# Stops in the call that is named, says so, and waits to be killed.
CHILD = """
import os, sys, time
from gwp import storage
from gwp.storage import local_files
name, create_only, path = sys.argv[1], sys.argv[2] == "create", sys.argv[3]
def stop(*_, **__):
    print("there", flush=True)
    time.sleep(60)
setattr(os, name, stop)
storage.write_bytes(path, b"x" * 1_000_000, create_only=create_only)
"""


def killed_in(call: str, how: str, path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, call, how, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=20)


@pytest.mark.parametrize(
    ("call", "how"),
    [("fsync", "create"), ("link", "create"), ("fsync", "write"), ("replace", "write")],
)
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path, call: str, how: str) -> None:
    path = tmp_path / "run" / "MANIFEST.json"
    # The folder is made, and on the disk, before.
    path.parent.mkdir()
    killed_in(call, how, path)
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 1
    assert storage.list_files(str(tmp_path)) == {}
    storage.write_bytes(str(path), b"whole", create_only=True)
    assert path.read_bytes() == b"whole"


def test_what_is_left_over_is_no_part_of_bundles_checkpoints_or_copies(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "policy.json").write_text("{}")
    killed_in("fsync", "write", bundle / "policy.json")
    left = next(path for path in bundle.iterdir() if path.name != "policy.json")
    identity = seal(bundle)
    with pytest.raises(BundleError, match="PolicyConfig does not fit"):
        # Read as far as this toy goes: the left-over is no file too many.
        read_bundle(bundle)
    left.unlink()
    assert seal(bundle) == identity
    killed_in("fsync", "write", bundle / "policy.json")
    assert set(checkpoints.upload_files(bundle, str(tmp_path / "uploaded"))) == {
        "policy.json",
        "MANIFEST.json",
    }
    storage.upload(bundle, str(tmp_path / "copy"))
    assert set(storage.list_files(str(tmp_path / "copy"))) == {"policy.json", "MANIFEST.json"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"policy.json", "MANIFEST.json"}


def test_old_left_overs_go_with_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in("fsync", "write", tmp_path / "a")
    (left,) = tmp_path.iterdir()
    assert local_files.is_temporary(str(left))
    monkeypatch.setattr(local_files, "_swept", {})
    # It may belong to somebody who still writes.
    storage.write_bytes(str(tmp_path / "b"), b"b")
    assert left.exists()
    hours_ago = time.time() - 2 * 3600
    os.utime(left, (hours_ago, hours_ago))
    monkeypatch.setattr(local_files, "_swept", {})
    storage.write_bytes(str(tmp_path / "b"), b"b")
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_many_creators_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for attempt in range(20):
        path, wins = tmp_path / f"{attempt}", []
        start = threading.Barrier(4)

        def create(
            number: int, path: Path = path, wins: list[int] = wins, start: threading.Barrier = start
        ) -> None:
            start.wait()
            try:
                storage.write_bytes(str(path), bytes([number]) * 1000, create_only=True)
            except FileExistsError:
                return
            wins.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = wins
        assert path.read_bytes() == bytes([winner]) * 1000
    assert {path.name for path in tmp_path.iterdir()} == {str(attempt) for attempt in range(20)}


def _create(
    path: str,
    start: "multiprocessing.synchronize.Barrier",
    wins: "multiprocessing.Queue[int]",
    number: int,
) -> None:
    start.wait()
    for attempt in range(20):
        try:
            storage.write_bytes(f"{path}/{attempt}", bytes([number]) * 1000, create_only=True)
        except FileExistsError:
            continue
        wins.put((attempt, number))


def test_of_many_processes_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_create, args=(str(tmp_path), start, wins, number))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    won = dict(wins.get(timeout=60) for _ in range(20))
    for process in processes:
        process.join(timeout=60)
    assert wins.empty()
    assert {int(path.name): path.read_bytes()[0] for path in tmp_path.iterdir()} == won


def test_a_failed_create_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", broken)
    for create_only in (True, False):
        with pytest.raises(OSError, match="Input/output"):
            storage.write_bytes(str(tmp_path / "a"), b"x", create_only=create_only)
    assert list(tmp_path.iterdir()) == []


def test_a_link_whose_answer_was_lost_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def lost(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", lost)
    storage.write_bytes(str(tmp_path / "a"), b"x", create_only=True)
    with pytest.raises(FileExistsError):
        storage.write_bytes(str(tmp_path / "a"), b"x", create_only=True)


def test_bytes_and_names_are_on_the_disk_before_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "new" / "folder" / "file"
    (tmp_path / "source").write_bytes(b"z")
    for write in (
        lambda: storage.write_bytes(str(path), b"x", create_only=True),
        lambda: storage.put_file(tmp_path / "source", str(path)),
    ):
        write()
        # The file under its first name, then the folder that got the second.
        assert local_files.is_temporary(synced[-2])
        assert synced[-1] == str(path.parent)
    assert {str(tmp_path), str(tmp_path / "new")} <= set(synced)
    # Of one that may be replaced, the bytes: before or after, it is whole.
    storage.write_bytes(str(path), b"y")
    assert local_files.is_temporary(synced[-1])


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    real = tmp_path / "disk"
    (real / "videos/top").mkdir(parents=True)
    (real / "videos/top/0.mp4").write_bytes(b"123")
    root = tmp_path / "set"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/rows").write_bytes(b"1234")
    (root / "videos").symlink_to(real / "videos")
    (root / "file").symlink_to(root / "a/b/rows")
    # A folder within itself, two that hold each other, and links that lead nowhere.
    (root / "a/b/up").symlink_to(root / "a")
    (real / "videos/back").symlink_to(root)
    (root / "none").symlink_to(tmp_path / "gone")
    (root / "itself").symlink_to(root / "itself")
    expected = {"a/b/rows": 4, "file": 4, "videos/top/0.mp4": 3}
    assert storage.list_files(str(root)) == expected
    storage.upload(root, str(tmp_path / "copy"))
    assert storage.list_files(str(tmp_path / "copy")) == expected
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    # Whoever begins inside sees what is below, from there.
    below = storage.list_files(str(root / "videos"))
    assert below == {"top/0.mp4": 3, "back/a/b/rows": 4, "back/file": 4}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look anywhere")
def test_a_linked_folder_that_may_not_be_looked_into_is_no_absence(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/videos").symlink_to(closed)
    closed.chmod(0)
    try:
        with pytest.raises(GwpError, match="access denied"):
            storage.list_files(str(tmp_path / "set"))
    finally:
        closed.chmod(0o700)
