"""`gwp train` as its user runs it: a process of its own, of which only files and its terminal are
seen.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipelines.training.control.watch import worker_progress
from tests.unit.pipelines.jobs.test_stages import STAGES

ROOT = STAGES.parents[1]


class Driver:
    """One `gwp train`, and what it wrote."""

    def __init__(self, folder: Path, run: str, sets: Sequence[str], env: Mapping[str, str]) -> None:
        """folder: where it runs and logs; run: the run folder"""
        self.run = run
        count = len(list(folder.glob("train-*.log")))
        self._log = folder / f"train-{count}.log"
        self._out = folder / f"train-{count}.json"
        command = [sys.executable, "-m", "pipelines.cli", "train", str(STAGES / "policy.yaml")]
        command += [word for text in sets for word in ("--set", text)]
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**env, "PYTHONPATH": str(ROOT)},
                stdout=out,
                stderr=log,
            )

    @property
    def lines(self) -> list[str]:
        """Of its terminal, without the progress."""
        lines = self._log.read_text().splitlines()
        return [line for line in lines if not line.startswith('{"event": "progress"')]

    @property
    def result(self) -> dict[str, Any]:
        """What it printed at its end."""
        found: dict[str, Any] = json.loads(self._out.read_text())
        return found

    def until(self, holds: Callable[[], Any], timeout: float = 300) -> Any:
        """What `holds` returns as soon as it is true, while the process runs."""
        end = time.monotonic() + timeout
        while not (found := holds()):
            assert self.process.poll() is None, "\n".join(self.lines[-30:])
            assert time.monotonic() < end, "\n".join(self.lines[-30:])
            time.sleep(0.1)
        return found

    def reports(self, step: int) -> list[dict[str, Any]]:
        """Those of this start, once every rank has done `step`."""

        def there() -> list[dict[str, Any]] | None:
            found = worker_progress(self.run)
            own = [r for r in found if r["time"] > self.process_begun]
            return own if len(own) == 2 and min(r["step"] for r in own) >= step else None

        reports: list[dict[str, Any]] = self.until(there)
        return reports

    @property
    def process_begun(self) -> float:
        """Seconds since 1970."""
        return psutil.Process(self.process.pid).create_time()

    def wait(self, timeout: float) -> int:
        """Its exit code."""
        return self.process.wait(timeout)


@contextmanager
def driver(
    folder: Path, run: str, sets: Sequence[str], env: Mapping[str, str] | None = None
) -> Iterator[Driver]:
    """A driver that is killed at the end of the block if it still runs."""
    found = Driver(folder, run, sets, os.environ if env is None else env)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def gone(reports: list[dict[str, Any]], timeout: float) -> float:
    """Wait until the processes of these ranks are no more; the seconds that it took."""
    begin = time.monotonic()
    while any(map(_lives, reports)):
        assert time.monotonic() < begin + timeout, "a training process goes on"
        time.sleep(0.05)
    return time.monotonic() - begin


def _lives(report: dict[str, Any]) -> bool:
    try:
        found = psutil.Process(report["pid"])
        return found.create_time() == report["born"] and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
