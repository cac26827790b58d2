"""Disks that are soon full."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of so many MiB at `folder`; the test is skipped where nothing may be mounted."""
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount") or _mount(folder, f"size={megabytes}m"):
        pytest.skip("no small disk can be mounted here")
    try:
        yield folder
    finally:
        # Lazily: a process that was killed may still be about to close its files.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder: Path, megabytes: int) -> None:
    """Let the disk at `folder` have so many MiB."""
    assert not _mount(folder, f"remount,size={megabytes}m")


def _mount(folder: Path, options: str) -> int:
    mount = ["mount", "-t", "tmpfs", "-o", options, "gwp-test", str(folder)]
    return subprocess.run(mount, check=False, capture_output=True).returncode
