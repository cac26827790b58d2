"""The endpoint's health check."""

from gwp.client.connection.address import health_url
from gwp.client.connection.link import Proxy


def is_healthy(url: str, timeout_s: float, proxy: Proxy) -> bool:
    """True when the endpoint of a websocket address says within `timeout_s` that it is alive."""
    from urllib.error import URLError
    from urllib.request import ProxyHandler, build_opener

    # urllib would take a proxy of the environment by itself.
    chosen = {} if proxy is None else {"http": str(proxy), "https": str(proxy)}
    handler = ProxyHandler() if proxy is True else ProxyHandler(chosen)
    try:
        with build_opener(handler).open(health_url(url), timeout=timeout_s) as reply:
            return int(reply.status) == 200
    except (URLError, OSError):
        return False
