"""Submitting to a dashboard that speaks as Ray's does: a job is started once, and not given up
because nobody could take it at the first try.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from clusters import submit
from clusters.submit import Cluster
from gwp.errors import GwpError

BUSY = "No available agent to submit job, please try again later."


class Dashboard(ThreadingHTTPServer):
    """answers: (status, whether the job is started) of each submission, the last one for ever."""

    def __init__(self, answers: list[tuple[int, bool]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[str] = []
        self.started: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Dashboard

    def log_message(self, *_: object) -> None:
        pass

    def _reply(self, status: int, body: object) -> None:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path == "/api/version":
            version = {
                "version": "4",
                "ray_version": ray.__version__,
                "ray_commit": "",
                "session_name": "s",
            }
            self._reply(200, version)
        elif self.path == "/api/jobs/":
            self._reply(200, [])
        elif self.path.startswith("/api/packages/"):
            self._reply(200, "")
        elif name in self.server.started:
            self._reply(
                200,
                {
                    "type": "SUBMISSION",
                    "submission_id": name,
                    "status": "RUNNING",
                    "entrypoint": "",
                },
            )
        else:
            self._reply(404, f"Job {name} does not exist")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request["submission_id"])
        turn = min(len(self.server.asked), len(self.server.answers)) - 1
        status, starts = self.server.answers[turn]
        if starts:
            self.server.started.append(request["submission_id"])
        job = {"job_id": request["submission_id"], "submission_id": request["submission_id"]}
        self._reply(status, job if status == 200 else BUSY)


@pytest.fixture
def dashboard(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dashboard]:
    monkeypatch.setattr(submit, "_POLL_S", 0.01)
    monkeypatch.setattr(submit, "_READY_S", 5.0)
    server = Dashboard(request.param)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "dashboard",
    [
        pytest.param([(200, True)], id="at once"),
        pytest.param([(500, False), (500, False), (200, True)], id="later"),
        pytest.param([(500, True)], id="its acceptance got lost"),
    ],
    indirect=True,
)
def test_a_job_is_started_once(dashboard: Dashboard) -> None:
    job_id = Cluster(dashboard.url).submit("kind: TrainJob", {})
    assert dashboard.started == [job_id]
    assert set(dashboard.asked) == {job_id}
    assert len(dashboard.asked) == len(dashboard.answers)


@pytest.mark.parametrize("dashboard", [[(500, False)]], indirect=True)
def test_a_cluster_that_takes_no_job_is_one_clear_error(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(dashboard.url)
    monkeypatch.setattr(submit, "_READY_S", 0.05)
    with pytest.raises(GwpError, match=r"does not take the job .*No available agent"):
        cluster.submit("kind: TrainJob", {})
    assert not dashboard.started
