"""The way to a Ray cluster from outside: its address, its token and its version, all of them known
before anything starts there.
"""

import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlsplit

import psutil
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from clusters.compat import server_version
from gwp.errors import GwpError

T = TypeVar("T")

READY_S = 60.0
"""Seconds for which a cluster that has just started, or is busy, is asked again."""
_POLL_S = 2.0
_ANSWER_S = 20.0
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_SAID = 200
_NODES = 10_000
_FOR_GOOD = (
    requests.exceptions.SSLError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)
"""What is no better later."""
# They tell of each upload and each connection that ends.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)

logger = logging.getLogger(__name__)


def connect(
    address: str | None, *, insecure: bool = False, any_version: bool = False
) -> JobSubmissionClient:
    """The way to the jobs of a cluster.

    address: `http://HOST:8265`; None: RAY_API_SERVER_ADDRESS. insecure: also to a cluster elsewhere
    that asks for no token, where whoever reaches it may run anything. any_version: also to a
    cluster of another Ray. GwpError when it does not answer, refuses us, or is one of these.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    url = _address(address)
    _require_token_asked(url, insecure)

    def answering() -> JobSubmissionClient:
        with _addressed(url):
            client = JobSubmissionClient(url)
        client.list_jobs()
        return client

    client = patiently(answering, url, "the cluster does not answer")
    _require_version(url, server_version(client), any_version)
    return client


def is_here(address: str) -> bool:
    """Whether every node of a cluster is this machine. The address does not tell: a forwarded port
    is one of ours too.
    """
    ours = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    try:
        with _addressed(address):
            # All of them: with a filter Ray takes those that it leaves out for lost, and raises.
            nodes = list_nodes(address=address, limit=_NODES, raise_on_missing_output=False)
    except RayStateApiException as error:
        said = " ".join(str(error).split())[:_SAID]
        raise GwpError(f"{address} does not say which nodes it has ({said}); try again") from error
    return all(node.node_ip in ours for node in nodes if node.state == "ALIVE")


def patiently(call: Callable[[], T], address: str, what: str) -> T:
    """The result of `call`, tried again for a while: a cluster that has just started, or is busy,
    answers and takes jobs only after some seconds. GwpError, beginning with `what`, after that, and
    at once where asking again is of no use or our token is not taken.
    """
    deadline = time.monotonic() + READY_S
    told = False
    while True:
        try:
            return call()
        except AuthenticationError as error:
            raise GwpError(_refused(address)) from error
        except _FOR_GOOD as error:
            reason = " ".join(str(error).split())[:_SAID]
            raise GwpError(
                f"{address}: {what} ({reason}); check --address, http:// or https:// too"
            ) from error
        except (ConnectionError, requests.RequestException, RuntimeError) as error:
            if time.monotonic() > deadline:
                reason = " ".join(str(error).split())[:_SAID]
                raise GwpError(
                    f"{address}: {what} ({reason}); check --address, and that the cluster is up"
                ) from error
            if not told:
                logger.warning("%s: %s; asking again for %g s", address, what, READY_S)
                told = True
            time.sleep(_POLL_S)


def _address(given: str | None) -> str:
    address = given or os.environ.get(_ADDRESS) or ""
    if not address:
        raise GwpError(f"no cluster: give --address http://HOST:8265, or set {_ADDRESS}")
    wrong = GwpError(
        f"--address {address}: give the cluster's dashboard, http://HOST:8265 or https://HOST"
    )
    try:
        parts = urlsplit(address)
        # Looked at, since only then a port that is none is noticed.
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise wrong from None
    if not good:
        raise wrong
    if parts.username or parts.password:
        raise GwpError("--address: leave the password out; the token comes from RAY_AUTH_TOKEN")
    return address.rstrip("/")


@contextmanager
def _addressed(url: str) -> Iterator[None]:
    """Ray takes the address in its environment before the one that it is given."""
    names = (_ADDRESS, "RAY_ADDRESS")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[_ADDRESS] = url
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _require_token_asked(url: str, insecure: bool) -> None:
    """GwpError when a cluster elsewhere lets in whoever comes. Asked without our token, which a
    machine that does not ask for it has no business to see.
    """

    def asked() -> int:
        # Of a server that sends us on, the first answer counts: it did not let us in.
        answer = requests.get(f"{url}/api/jobs/", timeout=_ANSWER_S, allow_redirects=False)
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            answer.raise_for_status()
        return answer.status_code

    status = patiently(asked, url, "the cluster does not answer")
    if status == HTTPStatus.NOT_FOUND:
        raise GwpError(f"{url} is no dashboard of Ray: give --address http://HEAD:8265")
    if status == HTTPStatus.OK and not insecure and not _is_loopback(url):
        raise GwpError(
            f"{url} asks for no token: whoever reaches it can run anything on it. Start its nodes "
            "with RAY_AUTH_MODE=token, or submit with --insecure"
        )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(a).partition("%")[0]).is_loopback for a in found)


def _refused(url: str) -> str:
    places = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    given = next((name for name in places if os.environ.get(name)), None)
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return f"{url} asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    if given is None:
        return f"{url} refuses the token in ~/.ray/auth_token, or there is none: set RAY_AUTH_TOKEN"
    return (
        f"{url} refuses the token in {given}: it is that of another cluster, or has been replaced"
    )


def _require_version(url: str, version: str, any_version: bool) -> None:
    if _line(version) != _line(ray.__version__) and not any_version:
        raise GwpError(
            f"{url} runs Ray {version}, this is Ray {ray.__version__}: install the cluster's one "
            "here, or submit with --any-version"
        )


def _line(version: str) -> list[str]:
    """Major and minor version; patches go together."""
    return version.split(".")[:2]
