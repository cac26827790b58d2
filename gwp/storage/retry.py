"""Patience with storage: what passes is tried again, what does not pass is told at once."""

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

PATIENCE = "GWP_STORAGE_PATIENCE_S"
"""Environment variable: seconds for which one operation is tried again."""
_PATIENCE_S = 30.0
_FIRST_S, _LONGEST_S = 0.1, 5.0
"""Waits grow from the first to the longest, each drawn at random up to its bound: workers that
failed together must not come together.
"""

# By name, because their libraries are loaded only where they are used.
_PASSING = frozenset(
    {
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ClientOSError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "EndpointConnectionError",
        "ConnectionClosedError",
        "ResponseStreamingError",
        "IncompleteReadError",
        "IncompleteRead",
        "FSTimeoutError",
        "HTTPClientError",
        "ChecksumError",
        "FlexibleChecksumError",
        "AwsChunkedWrapperError",
        "ContentLengthError",
    }
)
_PASSING_CODES = frozenset(
    {
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "PriorRequestNotComplete",
        "429",
        "500",
        "502",
        "503",
        "504",
    }
)
_EXPIRED_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "InvalidToken",
        "TokenRefreshRequired",
    }
)
_DENIED_CODES = frozenset({"403", "AccessDenied", "InvalidAccessKeyId", "Forbidden"})


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _codes(error: BaseException) -> set[str]:
    """Error codes and HTTP states of S3 along the chain of causes."""
    codes = set()
    for e in _chain(error):
        response = getattr(e, "response", None)
        if isinstance(response, dict):
            codes |= {
                str(response.get("Error", {}).get("Code")),
                str(response.get("ResponseMetadata", {}).get("HTTPStatusCode")),
            }
    return codes


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: throttling, server errors, broken or
    slow connections.
    """
    if _codes(error) & _PASSING_CODES:
        return True
    return any(
        isinstance(e, (ConnectionError, TimeoutError)) or type(e).__name__ in _PASSING
        for e in _chain(error)
    )


def expired(error: BaseException) -> bool:
    """Whether credentials are too old, as far as storage tells: answers to HEAD have no body
    that names the reason for a 400.
    """
    return bool(_codes(error) & (_EXPIRED_CODES | {"400"}))


def denied(error: BaseException) -> bool:
    """Whether other credentials could help."""
    return (
        expired(error) or isinstance(error, PermissionError) or bool(_codes(error) & _DENIED_CODES)
    )


def patience_s() -> float:
    """Seconds for which one operation is tried again."""
    return float(os.environ.get(PATIENCE) or _PATIENCE_S)


def patiently(work: Callable[[], T], renew: Callable[[], None]) -> T:
    """The result of `work`, tried again while what it raises is passing, for as long as the
    patience lasts.

    renew: forgets connections and credentials; called once when access is denied, because
    short-lived credentials are renewed in the environment or in files under the feet of a long
    run. The last error is raised as it came.
    """
    deadline = time.monotonic() + patience_s()
    renewed, attempt = False, 0
    while True:
        try:
            return work()
        except Exception as error:
            if denied(error) and not renewed:
                renewed = True
                renew()
                continue
            wait = random.uniform(0, min(_LONGEST_S, _FIRST_S * 2**attempt))
            if not passing(error) or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        attempt += 1
