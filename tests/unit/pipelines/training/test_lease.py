"""One driver per run, and none in the way of the next when it is gone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gwp.errors import GwpError
from pipelines.training.control.lease import lease

BEAT = 0.05


def held(run: Path) -> dict:
    # Beside it may lie what is being written.
    (file,) = (run / "lease").glob("*.json")
    return json.loads(file.read_text())


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    run = str(tmp_path)
    with lease(run, BEAT):
        with (
            pytest.raises(GwpError, match=f"is being trained by process {os.getpid()} on"),
            lease(run, BEAT),
        ):
            pytest.fail("two drivers")
        # The refused one has not taken it away.
        assert held(tmp_path)["pid"] == os.getpid()
    # The next one waits for nothing, and nothing is left behind.
    assert not list((tmp_path / "lease").iterdir())
    begin = time.monotonic()
    with lease(run, 60.0):
        assert time.monotonic() - begin < 20


def test_a_driver_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pipelines.training.control.lease import lease\n"
        "with lease(sys.argv[1]):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False)
    assert held(tmp_path)["pid"] != os.getpid()
    begin = time.monotonic()
    with lease(str(tmp_path), 60.0):
        assert time.monotonic() - begin < 20


def test_a_lease_that_stands_still_is_of_a_dead_driver(tmp_path: Path) -> None:
    """On another machine nobody sees the process: its number tells. A torn one likewise."""
    for text in ('{"host": "elsewhere", "pid": 1, "beat": 7}', '{"host": "els'):
        (tmp_path / "lease").mkdir(exist_ok=True)
        for file in (tmp_path / "lease").iterdir():
            file.unlink()
        (tmp_path / "lease" / "000004.json").write_text(text)
        with lease(str(tmp_path), BEAT):
            assert [file.name for file in (tmp_path / "lease").glob("*.json")] == ["000005.json"]


def test_of_two_that_find_it_free_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both have listed the folder before either has written.
    monkeypatch.setattr("gwp.storage.list_files", lambda _: {})
    with (
        lease(str(tmp_path), BEAT),
        pytest.raises(GwpError, match="at the same moment"),
        lease(str(tmp_path), BEAT),
    ):
        pytest.fail("two drivers")


def test_the_block_may_fail(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(str(tmp_path), BEAT):
        _ = 1 / 0
    assert not list((tmp_path / "lease").iterdir())
