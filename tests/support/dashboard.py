"""A server that speaks as the dashboard of a Ray cluster does, as far as jobs are concerned."""

import json
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray

from gwp import __version__

BUSY = "No available agent to submit job, please try again later."
NODE = {
    "pool": "head",
    "python": ".".join(platform.python_version_tuple()[:2]),
    "gwp": __version__,
    "lacks": [],
    "unset": [],
}


@dataclass
class Cluster:
    """What it is like, and what was asked of it."""

    answers: list[tuple[int, bool]] = field(default_factory=lambda: [(200, True)])
    """(status, whether the job is started) of each submission, the last one for ever."""
    token: str | None = None
    """Without it, nobody is let in; None: everybody is."""
    version: str = ray.__version__
    nodes: list[dict[str, Any]] = field(default_factory=lambda: [NODE])
    """What the job that looks at them prints."""
    addresses: tuple[str, ...] = ("127.0.0.1",)
    """Of its nodes."""
    gone: tuple[str, ...] = ()
    """Addresses of nodes that are dead."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Submissions; without those that look at nodes."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those that were started, by their id."""
    stopped: list[str] = field(default_factory=list)
    without_log: set[str] = field(default_factory=set)
    packages: list[bytes] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """What came as a token with each request."""
    url: str = ""

    def started(self) -> list[str]:
        """Ids, without those that look at nodes."""
        return [job for job in self.jobs if not job.startswith("gwp-probe")]


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def log_message(self, *_: object) -> None:
        pass

    def _reply(self, status: int, body: object) -> None:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _let_in(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.cluster.tokens.append(given)
        if self.cluster.token in (None, given):
            return True
        self._reply(403 if given else 401, "Unauthorized")
        return False

    def do_GET(self) -> None:
        cluster = self.cluster
        if not self._let_in():
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "version"]:
            known = {"version": "4", "ray_version": cluster.version, "ray_commit": ""}
            self._reply(200, known | {"session_name": "s"})
        elif parts == ["api", "jobs"]:
            self._reply(200, list(cluster.jobs.values()))
        elif parts[1] == "packages":
            self._reply(404, "")
        elif parts[:3] == ["api", "v0", "nodes"]:
            more = {"is_head_node": True, "state_message": "", "resources_total": {}, "labels": {}}
            states = dict.fromkeys(cluster.addresses, "ALIVE")
            states |= dict.fromkeys(cluster.gone, "DEAD")
            total = len(states)
            # Where it is asked to leave some out, Ray counts these as lost.
            if "ALIVE" in self.path:
                states = {ip: state for ip, state in states.items() if state == "ALIVE"}
            nodes = [
                {"node_id": str(i), "node_ip": ip, "state": state, "node_name": ip} | more
                for i, (ip, state) in enumerate(states.items())
            ]
            size = len(nodes)
            counts = {"total": total, "num_after_truncation": size, "num_filtered": size}
            result = {"result": nodes, **counts, "partial_failure_warning": "", "warnings": []}
            self._reply(200, {"result": True, "msg": "", "data": {"result": result}})
        elif parts[2] not in cluster.jobs:
            self._reply(404, f"Job {parts[2]} does not exist")
        elif parts[-1] == "logs" and parts[2] in cluster.without_log:
            self._reply(500, "the agent is gone")
        elif parts[-1] == "logs":
            found = "gwp-probe " + json.dumps(cluster.nodes)
            self._reply(200, {"logs": f"noise\n{found}\n"})
        else:
            self._reply(200, cluster.jobs[parts[2]])

    def do_PUT(self) -> None:
        self.cluster.packages.append(self._read())
        self._reply(200, "")

    def do_DELETE(self) -> None:
        self.cluster.jobs.pop(self.path.rpartition("/")[2])
        self._reply(200, {"deleted": True})

    def do_POST(self) -> None:
        if self.path.endswith("/stop"):
            self.cluster.stopped.append(self.path.split("/")[-2])
            self.cluster.jobs[self.path.split("/")[-2]]["status"] = "STOPPED"
            self._reply(200, {"stopped": True})
            return
        request = json.loads(self._read())
        cluster, name = self.cluster, request["submission_id"]
        probes = name.startswith("gwp-probe")
        status, starts = 200, True
        if not probes:
            cluster.asked.append(request)
            turn = min(len(cluster.asked), len(cluster.answers)) - 1
            status, starts = cluster.answers[turn]
        if starts:
            cluster.jobs[name] = {
                "type": "SUBMISSION",
                "submission_id": name,
                "status": "SUCCEEDED" if probes else "RUNNING",
                "entrypoint": request["entrypoint"],
                "metadata": request.get("metadata", {}),
                "start_time": 1,
            }
        self._reply(status, {"job_id": name, "submission_id": name} if status == 200 else BUSY)


@contextmanager
def serving(cluster: Cluster) -> Iterator[Cluster]:
    """Have it on loopback while the block lasts."""
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
