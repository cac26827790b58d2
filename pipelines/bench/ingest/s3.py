"""An S3 server on loopback that counts what it gives out. Moto's, in a process of its own, with
objects in its memory.
"""

import contextlib
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUCKET = "bench"
_COUNTS = "/moto-api/gwp-counts"


@dataclass(frozen=True)
class Traffic:
    """What a server gave out: requests for objects or parts of them, and their bytes."""

    requests: int
    bytes: int

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.requests - other.requests, self.bytes - other.bytes)


@dataclass(frozen=True)
class CountedS3:
    """A running server; `uri` is its bucket."""

    url: str
    uri: str = f"s3://{BUCKET}"

    def traffic(self) -> Traffic:
        """Since it started."""
        with urllib.request.urlopen(self.url + _COUNTS, timeout=10) as answer:  # noqa: S310  loopback
            return Traffic(**json.load(answer))


@contextlib.contextmanager
def counted_s3() -> Iterator[CountedS3]:
    """Start it, with the environment of this process and its children pointing there."""
    from clusters.services import LOOPBACK, Service, free_ports

    (port,) = free_ports(1)
    settings = {
        "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }
    # These would win over the settings above, and send what is measured elsewhere.
    foreign = ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")
    # Of all of them, so that the end can put back what was there.
    before = {name: os.environ.get(name) for name in (*settings, *foreign)}
    with tempfile.TemporaryDirectory(prefix="gwp-bench-") as folder:
        server = Service(
            "S3 (moto)",
            [sys.executable, "-m", "pipelines.bench.ingest.s3", str(port)],
            port,
            "/moto-api/",
            Path(folder) / "s3.log",
            {},
        )
        server.start()
        try:
            server.wait(60)
            for name in foreign:
                os.environ.pop(name, None)
            # Inherited by all processes that are started from here on.
            os.environ |= settings
            # Moto asks for no signature.
            request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")  # noqa: S310  loopback
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
            yield CountedS3(server.url)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            server.stop()


def _serve(port: int) -> None:
    import logging
    import threading
    from typing import Any

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()
    counts = {"requests": 0, "bytes": 0}

    def counting(environ: dict[str, Any], start_response: Any) -> Any:
        # Ours, and not passed on: asking for counts does not count.
        if environ["PATH_INFO"] == _COUNTS:
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(counts).encode()]

        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            # Listings and the like have other keys in their query.
            if environ["REQUEST_METHOD"] == "GET" and not environ["QUERY_STRING"]:
                size = next(
                    (int(value) for name, value in headers if name.lower() == "content-length"), 0
                )
                with lock:
                    counts["requests"] += 1
                    counts["bytes"] += size
            return start_response(status, headers, *rest)

        return app(environ, started)

    logging.getLogger("werkzeug").setLevel("ERROR")
    run_simple("127.0.0.1", port, counting, threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
