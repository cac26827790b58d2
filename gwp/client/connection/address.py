"""Where an endpoint is: what people write, as the address of its websocket."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from gwp.client.connection.wire import ClientError


def websocket_url(url: str) -> str:
    """`ws://host:port/path` for `host:port`, `http://...` and the like. ClientError for what is
    no address.
    """
    # `host:port` alone has no scheme; `urlsplit` would take the host for one.
    if "://" not in url:
        url = f"ws://{url}"
    scheme, _, rest = url.partition("://")
    scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    parts = urlsplit(f"{scheme}://{rest}")
    try:
        valid = scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ClientError(f"{url}: not an endpoint address; write ws://host:port")
    return urlunsplit(parts._replace(path=parts.path or "/"))


def announcing(url: str, robot: Mapping[str, Any]) -> str:
    """The address with what a robot says of itself in its query."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query) + [(name, _text(value)) for name, value in robot.items()]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(value)
    return str(value)


def health_url(url: str) -> str:
    """Where the endpoint of a websocket address says that it is alive."""
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}[parts.scheme]
    return urlunsplit((scheme, parts.netloc, "/healthz", "", ""))
