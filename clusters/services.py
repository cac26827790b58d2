"""Programs that live exactly as long as we want them.

A server runs under a small keeper process (this file as a program) that holds the reading end
of a pipe from its owner. When the owner closes the pipe or dies, however it dies, the keeper
ends the server and everything the server started. A sweeper does the same for processes that
others started.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gwp.errors import GwpError

LOOPBACK = "127.0.0.1"
_GRACE_S = 3.0
_SWEEP = "--sweep"
_DISMISSED = "dismissed\n"


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on. Below the range that the kernel hands out
    by itself, so they stay free.
    """
    ports: list[int] = []
    # At random, so that clusters that start at the same time rarely try the same ones.
    for port in random.sample(range(20_000, 32_000), 2_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise GwpError(f"no {count} free ports between 20000 and 32000 on {LOOPBACK}")


class Service:
    """One HTTP server on loopback."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        health: str,
        log: Path,
        env: Mapping[str, str],
    ) -> None:
        """`health`: path that answers 200 once the server is ready. `log`: file for what it
        prints. `env`: beside our own.
        """
        self.name = name
        self.port = port
        self.url = f"http://{LOOPBACK}:{port}"
        self.log = log
        self._command = list(command)
        self._health = health
        self._env = dict(env)
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; `wait` says when it answers."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the owner, who then ends the
            # server in order.
            self._keeper = subprocess.Popen(
                [sys.executable, __file__, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | self._env,
                start_new_session=True,
            )

    def wait(self, timeout_s: float) -> None:
        """Return when the server answers; GwpError with the end of its log when it ended or
        stays silent.
        """
        deadline = time.monotonic() + timeout_s
        while self.alive():
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(self.url + self._health, timeout=5),  # noqa: S310
            ):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        tail = " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise GwpError(f"{self.name} did not come up on {self.url}; the end of {self.log}: {tail}")

    def alive(self) -> bool:
        """Whether the program runs."""
        return self._keeper is not None and self._keeper.poll() is None

    def end(self) -> None:
        """Tell the program to stop; `stop` also waits."""
        if self._keeper and self._keeper.stdin:
            self._keeper.stdin.close()

    def stop(self) -> None:
        """Stop the program and what it started."""
        self.end()
        if self._keeper:
            # The keeper waits for the program twice: once until it ends, once for its children.
            try:
                self._keeper.wait(2 * _GRACE_S + 5)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.wait()
            self._keeper = None


class Sweeper:
    """Ends the processes it was told of if its owner dies without calling `dismiss`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, _SWEEP],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def tell(self, pids: Iterable[int]) -> None:
        """These processes must not outlive the owner."""
        assert self._process.stdin
        self._process.stdin.writelines(f"{pid}\n" for pid in pids)
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """The owner has ended them itself."""
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._process.communicate(_DISMISSED, timeout=5)


def _sweep() -> None:
    import psutil

    processes: list[psutil.Process] = []
    # Standard input ends when the owner does.
    for line in sys.stdin:
        if line == _DISMISSED:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(int(line)))
    for process in processes:
        # Checks that the number still belongs to the same process.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _keep(command: Sequence[str]) -> int:
    """Run `command` until it ends or our standard input does; then end its whole family."""
    # A session, and so a process group, of its own: what it starts can be signalled with it.
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        # Returns when the owner closes its end of the pipe, or is gone.
        sys.stdin.buffer.read()
        _signal_family(program.pid, signal.SIGTERM)
        time.sleep(_GRACE_S)
        _signal_family(program.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = program.wait()
    # Servers that the program started itself may outlive it.
    _signal_family(program.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while _signal_family(program.pid, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_family(program.pid, signal.SIGKILL)
    return code


def _signal_family(leader: int, number: int) -> bool:
    """Signal a process group; False when none of it is left."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only the pipe decides, so that no stray signal leaves the program without its keeper.
        # Not SIG_IGN: programs inherit that.
        signal.signal(number, lambda *_: None)
    if sys.argv[1] == _SWEEP:
        _sweep()
    else:
        sys.exit(_keep(sys.argv[1:]))


def node_processes() -> list[Any]:
    """This process's Ray nodes with their agents and workers, as `psutil.Process`."""
    import psutil

    processes: list[Any] = []
    for child in psutil.Process().children():
        # Any of them may end while they are looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                processes += [child, *child.children(recursive=True)]
    return processes
