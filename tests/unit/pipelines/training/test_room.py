"""Memory and disks that are too small end a run with one line, and leave nothing in the way."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.training import scratch as scratch_module
from pipelines.training.control.room import NoRoomError, disk_told, memory_told, room_told
from pipelines.training.control.stopped import StoppedError, lasting
from pipelines.training.scratch import Scratch, sweep
from tests.support.disks import small_disk
from tests.unit.pipelines.training.test_prepare import job

MB = 1 << 20


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_ran_out_says_what_to_set(error: Exception) -> None:
    with (
        pytest.raises(StoppedError) as caught,
        lasting(),
        memory_told("at step 7", job(), lambda: 4),
    ):
        raise error
    assert str(caught.value) == (
        "out of memory at step 7 with 4 samples at a time: lower engine.micro_batch, set "
        "engine.gradient_checkpointing: true, raise engine.zero_stage (it is 2), give it more workers"
    )
    # What is set already is not named.
    most = job("engine.gradient_checkpointing=true", "engine.zero_stage=3")
    with (
        pytest.raises(NoRoomError, match=r"at a time: give it more workers$"),
        memory_told("at step 7", most, lambda: 1),
    ):
        raise error
    with pytest.raises(ValueError, match="x"), memory_told("at step 7", job()):
        raise ValueError("x")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    with small_disk(tmp_path / "small", 4) as folder:
        yield folder


def test_a_disk_that_is_full_is_told_with_what_was_needed(small: Path) -> None:
    with pytest.raises(NoRoomError) as caught, disk_told(small, "a checkpoint", 64 * MB):
        pytest.fail("must not come so far")
    assert str(caught.value) == (
        f"{small}: no room for a checkpoint, which takes 67 MB: 4.2 MB were free; free some, or let "
        "TMPDIR name a larger disk, and start the same command again"
    )
    # Nobody knows before the first one how large it is; torch makes an error of its own of it.
    big = torch.zeros(8 * MB, dtype=torch.uint8)
    with (
        pytest.raises(NoRoomError, match=r"no room for a checkpoint: 4.2 MB were free"),
        disk_told(small, "a checkpoint", 0),
    ):
        torch.save(big, small / "x.pt")
    (small / "x.pt").unlink(missing_ok=True)
    run = small / "run" / "checkpoints"
    with (
        pytest.raises(NoRoomError, match=f"^{small}: .* lower run.keep"),
        room_told(str(run), 64 * MB),
    ):
        pytest.fail("must not come so far")
    # Room for this one, which another takes meanwhile.
    with (
        pytest.raises(NoRoomError, match=r"a worker's part of .* takes 2.1 MB: \S+ MB are left;"),
        room_told(str(run), 2 * MB),
    ):
        (small / "x").write_bytes(bytes(5 * MB))
    (small / "x").unlink()
    with disk_told(small, "a checkpoint", MB), room_told(str(run), MB):
        (small / "x").write_bytes(bytes(MB))


def test_only_what_the_disk_did_is_told_of_it(tmp_path: Path) -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(NoRoomError), disk_told(tmp_path, "a checkpoint", 0):
            raise OSError(code, os.strerror(code))
    with pytest.raises(OSError, match="Input"), disk_told(tmp_path, "a checkpoint", 0):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    # A bucket is no disk.
    with room_told("s3://bucket/run", 1 << 60):
        pass


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch_module.tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal\nfrom pipelines.training.scratch import Scratch\n"
        "(Scratch().folder / 'x').write_text('x')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, timeout=120, check=False)
    (left,) = tmp_path.iterdir()
    (tmp_path / "gwp-scratch-of-others").mkdir()
    with Scratch() as own:
        (own.folder / "y").write_text("y")
        assert sweep() == [left]
        assert (own.folder / "y").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["gwp-scratch-of-others"]
    own.cleanup()
