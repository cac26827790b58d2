"""S3 as far as reading goes, over a folder, that answers after a while. A program of its own:

    python -m pipelines.bench.far.store PORT FOLDER SECONDS

Any bucket is the folder. It knows HEAD and GET of objects and parts of them, and lists of all
keys below a prefix; a distant store in nothing but its delay, so that what is measured is the
reader.
"""

import asyncio
import json
import os
import sys
from bisect import bisect_left
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

COUNTS = "/gwp-counts"
"""Answers requests by method since the last time, and is none of them."""
_PAGE = 1000
"""Keys of a list, as S3 gives them."""
_AGE = f'ETag: "0"\r\nLast-Modified: {formatdate(0, usegmt=True)}\r\n'


class Store:
    """What lies in the folder, and what was asked of it."""

    def __init__(self, folder: Path, delay_s: float) -> None:
        self.folder, self.delay_s = folder, delay_s
        self.counts: Counter[str] = Counter()
        found = [
            (Path(place, name).relative_to(folder).as_posix(), Path(place, name).stat().st_size)
            for place, _, names in os.walk(folder)
            for name in names
        ]
        self.keys = sorted(found)

    def answer(self, head: bytes) -> bytes:
        """The whole answer to the head of a request."""
        first, *lines = head.decode("latin1").split("\r\n")
        method, target, _ = first.split(" ")
        url = urlsplit(target)
        if url.path == COUNTS:
            body = json.dumps(self.counts).encode()
            self.counts.clear()
            return _message("200 OK", body)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        self.counts[method if key else "LIST"] += 1
        if not key:
            return _message("200 OK", self._list(parse_qs(url.query)))
        file = self.folder / key
        if not file.is_file():
            return _message("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>")
        size = file.stat().st_size
        if method == "HEAD":
            return f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n{_AGE}\r\n".encode()
        begin, end, status, more = 0, size, "200 OK", ""
        for line in lines:
            name, _, value = line.partition(":")
            if name.lower() == "range":
                first, _, last = value.partition("=")[2].partition("-")
                begin, end = int(first), min(size, int(last or size) + 1)
                status = "206 Partial Content"
                more = f"Content-Range: bytes {begin}-{end - 1}/{size}\r\n"
        with file.open("rb") as handle:
            handle.seek(begin)
            return _message(status, handle.read(end - begin), more)

    def _list(self, query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        begin = int(query.get("continuation-token", [0])[0]) or bisect_left(self.keys, (prefix, 0))
        page = self.keys[begin : begin + _PAGE]
        mine = [(key, size) for key, size in page if key.startswith(prefix)]
        more = len(mine) == _PAGE and len(self.keys) > begin + _PAGE
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>&quot;0&quot;</ETag>"
            "<LastModified>1970-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, size in mine
        )
        token = f"<NextContinuationToken>{begin + _PAGE}</NextContinuationToken>" if more else ""
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<KeyCount>{len(mine)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{entries}</ListBucketResult>"
        ).encode()


def _message(status: str, body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{_AGE}{more}\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One client; its requests have no bodies."""

    def __init__(self, store: Store) -> None:
        self._store, self._waiting = store, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._waiting = (self._waiting + data).split(b"\r\n\r\n")
        for head in heads:
            asyncio.get_running_loop().call_later(self._store.delay_s, self._answer, head)

    def _answer(self, head: bytes) -> None:
        if not self._transport.is_closing() and isinstance(self._transport, asyncio.Transport):
            self._transport.write(self._store.answer(head))


async def _serve(port: int, store: Store) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(store), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Store(Path(sys.argv[2]), float(sys.argv[3]))))
