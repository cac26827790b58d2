"""A proxy before an S3 server that does what real storage does on a bad day."""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import urlparse

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from gwp.storage.retry import PATIENCE

Fault = Literal["slow down", "error", "reset", "short", "slow", "vanished", "expired"]
_XML = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
_ANSWERS = {
    "slow down": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "vanished": (404, "NoSuchKey"),
    "expired": (400, "ExpiredToken"),
}


@dataclass
class FaultyProxy:
    """`fault(method, path, key)` says what happens to a request of that access key; None: it is
    forwarded. Counts what passed through.
    """

    target: str
    fault: Callable[[str, str, str], Fault | None] = lambda *_: None
    requests: list[str] = field(default_factory=list)
    faults: int = 0
    bytes_out: int = 0

    def __enter__(self) -> Self:
        proxy = self
        where = urlparse(self.target)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def log_message(self, *_: object) -> None:
                pass

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append(f"{self.command} {self.path}")
                key = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization") or "")
                fault = proxy.fault(self.command, self.path, key[1] if key else "")
                if fault:
                    proxy.faults += 1
                if fault in _ANSWERS:
                    status, code = _ANSWERS[fault]
                    return self._answer(
                        status,
                        {"Content-Type": "application/xml"},
                        _XML.format(code=code).encode(),
                        None,
                    )
                up = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=20)
                try:
                    up.request(
                        self.command,
                        self.path,
                        body,
                        {k: v for k, v in self.headers.items() if k.lower() != "connection"},
                    )
                    answer = up.getresponse()
                    data = answer.read()
                finally:
                    up.close()
                # A length of its own, also for the answer to HEAD.
                skip = {"transfer-encoding", "connection", "content-length"}
                headers = {k: v for k, v in answer.getheaders() if k.lower() not in skip}
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                return self._answer(answer.status, headers, data, fault, length)

            def _answer(
                self,
                status: int,
                headers: dict[str, str],
                data: bytes,
                fault: Fault | None,
                length: str | None = None,
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault in ("reset", "short"):
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    if fault == "reset":
                        # Closed with a lingering time of zero, a connection is reset.
                        self.connection.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                    self.close_connection = True
                    self.connection.shutdown(
                        socket.SHUT_WR
                    ) if fault == "short" else self.connection.close()
                    return
                if fault == "slow":
                    for i in range(0, len(data), max(1, len(data) // 8)):
                        self.wfile.write(data[i : i + max(1, len(data) // 8)])
                        time.sleep(0.02)
                else:
                    self.wfile.write(data)
                proxy.bytes_out += len(data)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _do

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


@contextmanager
def faulty_s3(bucket: str) -> Iterator[FaultyProxy]:
    """An empty bucket behind a proxy that the environment leads to, with 8 s of patience."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with FaultyProxy(f"http://{host}:{port}") as found, pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", found.url),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            (PATIENCE, "8"),
        ):
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=bucket)
        yield found
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
