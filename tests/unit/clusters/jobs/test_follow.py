"""Following a job: every character once, however often the connection is lost; and Ctrl-C."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from clusters.jobs import jobs as module
from clusters.jobs.jobs import Job, Jobs, UnknownJobError
from gwp.errors import GwpError

JOB = Job("gwp-a-1", "gwp-a", 1, ("a",), ("s3://b/a",), ("policy",), "d", "RUNNING", "", 0.0, None)


@dataclass
class Connections:
    """What a cluster sends on each connection, and whether it ends well. Ray's own client begins
    anew with each.
    """

    log: str
    ends: list[int]
    """Characters after which a connection is lost; the last one ends well."""
    size: int = 3
    most: int = 1 << 30
    """Characters of the longest line that a message holds; behind it, connections end well."""
    made: int = 0
    closed: int = 0

    def get_job_logs(self, job_id: str) -> str:
        assert job_id == JOB.id
        return self.log

    def get_address(self) -> str:
        return "http://head:8265"

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        assert job_id == JOB.id
        end = self.ends[min(self.made, len(self.ends) - 1)]
        self.made += 1
        try:
            for begin in range(0, end, self.size):
                await asyncio.sleep(0)
                if begin >= self.most:
                    return
                yield self.log[begin : min(begin + self.size, end)]
            if end < len(self.log):
                raise RuntimeError("WebSocket connection closed unexpectedly")
        finally:
            self.closed += 1


def following(connections: Any, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    found = Jobs(connections)
    monkeypatch.setattr(found, "get", lambda _: replace(JOB, status="SUCCEEDED"))
    return found


@pytest.mark.parametrize("ends", [[20], [0, 7, 7, 11, 20], [19, 3, 20]])
@pytest.mark.parametrize("known", [0, 5, 20])
def test_every_character_comes_once(
    ends: list[int], known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections("abcdefghijklmnopqrst", ends)
    jobs = following(connections, monkeypatch)
    assert "".join(jobs.follow(JOB, known)) == connections.log[known:]
    assert connections.made == connections.closed == len(ends)


def test_what_a_stream_cannot_hold_comes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's stream ends without an error at a line of megabytes."""
    connections = Connections("abcdefghijklmnopqrst", [20], most=6)
    jobs = following(connections, monkeypatch)
    states = iter(["RUNNING", "RUNNING", "SUCCEEDED"])
    monkeypatch.setattr(jobs, "get", lambda _: replace(JOB, status=next(states)))
    assert "".join(jobs.follow(JOB)) == connections.log
    # While it runs, what comes behind is looked for again.
    assert connections.made == 3


def test_a_job_that_is_gone_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = following(Connections("abc", [3]), monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(jobs, "all", list)
    with pytest.raises(UnknownJobError, match="knows no job gwp-a-1 any more"):
        list(jobs.follow(JOB))


def test_a_log_that_cannot_be_had_hides_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = following(Connections("abc", [1]), monkeypatch)
    monkeypatch.setattr(module, "READY_S", 0.05)
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    states = iter(["RUNNING", "RUNNING", "SUCCEEDED"])
    monkeypatch.setattr(jobs, "get", lambda _: replace(JOB, status=next(states)))
    assert "".join(jobs.follow(JOB)) == "a"


def test_a_cluster_that_is_gone_is_told_with_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = following(Connections("abc", [1]), monkeypatch)

    def silent(_: str) -> Job:
        raise GwpError("the cluster does not answer any more")

    monkeypatch.setattr(jobs, "get", silent)
    monkeypatch.setattr(module, "READY_S", 0.05)
    with pytest.raises(
        GwpError, match=r"does not answer any more .*`gwp jobs logs gwp-a-1 --follow`"
    ):
        list(jobs.follow(JOB))


def test_ctrl_c_ends_the_following_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Connections):
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            self.made += 1
            try:
                yield "first"
                await asyncio.sleep(300)
            finally:
                self.closed += 1

    connections = Silent("", [])
    jobs = following(connections, monkeypatch)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    begin = time.monotonic()
    try:
        pieces = jobs.follow(JOB)
        assert next(pieces) == "first"
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 100, "it waited for the next line"
    assert connections.made == connections.closed == 1
