"""Addresses in a cluster document: what other machines can ask, and what each pod itself would be."""

import ipaddress
import re
import socket
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator

from clusters.document.words import HostPort

_OWN_NAMES = ("localhost", "ip6-localhost", "ip6-loopback")
_LAST_PORT = 65535


def loopback(url: str) -> bool:
    """Whether an address stands for the machine that asks."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host in _OWN_NAMES or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            # `127.1` and `0`, as every resolver reads them.
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _has_port(parts: SplitResult) -> bool:
    """Whether the port of an address is one, or left out."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _split(url: str) -> SplitResult | None:
    """The parts of an address with a scheme, a host and a port that can be; None otherwise."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    good = parts.scheme in ("http", "https") and parts.hostname and _has_port(parts)
    return parts if good else None


def _require_elsewhere(address: str, url: str) -> None:
    if loopback(url):
        raise ValueError(
            f"{address} is each pod itself; give the address under which the whole cluster reaches "
            "it"
        )


def _reachable(url: str) -> str:
    if re.search(r"[\s\x00-\x1f?#]", url):
        raise ValueError(f"{url.partition('?')[0]!r}: give http(s)://HOST without spaces and query")
    parts = _split(url)
    if parts is None:
        raise ValueError(f"{url!r} is no address that other machines can ask; give http(s)://HOST")
    _require_elsewhere(url, url)
    if parts.username or parts.password:
        raise ValueError(
            "an address with a password in it would be logged; name it under `secrets`"
        )
    return url


def _host_port(address: str) -> str:
    port = int(address.rpartition(":")[2])
    if not 1 <= port <= _LAST_PORT:
        raise ValueError(f"{address}: the port is {port}; give one from 1 to {_LAST_PORT}")
    _require_elsewhere(address, f"//{address}")
    return address


def _networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    for network in networks:
        try:
            inside = ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise ValueError(f"{network!r} is no network; give one such as 10.20.0.0/16") from None
        # `10.0.0.1/8` may be meant as the one machine or as all of them.
        if inside != _exact(network):
            raise ValueError(f"{network} has host bits set; give {inside}, or one machine alone")
    return networks


def _exact(network: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(network)
    except ValueError:
        return None


Url = Annotated[str, AfterValidator(_reachable)]
"""http(s)://HOST that every pod can ask, without a password."""
Address = Annotated[HostPort, AfterValidator(_host_port)]
"""HOST:PORT that every pod can ask."""
Networks = Annotated[tuple[str, ...], AfterValidator(_networks)]
"""Networks of robots, as `10.20.0.0/16`."""
