"""Patience with storage: what passes is tried again, what does not pass is told at once.

An error is judged by codes and types along its chain of causes, never by its words: those hold
paths, and a path may say anything.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")

PATIENCE = "GWP_STORAGE_PATIENCE_S"
"""Environment variable: seconds for which one operation is tried again."""
_PATIENCE_S = 30.0
_FIRST_S, _LONGEST_S = 0.1, 5.0
"""Waits grow from the first to the longest, each drawn at random up to its bound: workers that
failed together must not come together.
"""

# By package and name, because the libraries are loaded only where they are used.
_UNREACHABLE = frozenset(
    {
        "aiohttp.ClientOSError",
        "aiohttp.ServerDisconnectedError",
        "botocore.ConnectTimeoutError",
        "botocore.ReadTimeoutError",
        "botocore.EndpointConnectionError",
        "botocore.ConnectionClosedError",
        "botocore.ProxyConnectionError",
        "fsspec.FSTimeoutError",
    }
)
_BROKEN_OFF = frozenset(
    {
        "aiohttp.ClientPayloadError",
        "aiohttp.ContentLengthError",
        "aiohttp.TransferEncodingError",
        "aiobotocore.AioAwsChunkedWrapperError",
        "botocore.AwsChunkedWrapperError",
        "botocore.FlexibleChecksumError",
        "botocore.HTTPClientError",
        "botocore.IncompleteReadError",
        "botocore.ResponseStreamingError",
        "botocore.ResponseParserError",
        "http.IncompleteRead",
        "urllib3.IncompleteRead",
    }
)
_NO_CREDENTIALS = frozenset(
    {
        "botocore.NoCredentialsError",
        "botocore.PartialCredentialsError",
        "botocore.CredentialRetrievalError",
        "botocore.TokenRetrievalError",
        "botocore.SSOTokenLoadError",
        "botocore.UnauthorizedSSOTokenError",
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
        "OperationAborted",
        "ConditionalRequestConflict",
    }
)
_PASSING_STATES = frozenset({429, 500, 502, 503, 504})
_EXPIRED_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "InvalidToken",
        "TokenRefreshRequired",
    }
)
_DENIED_CODES = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "NotSignedUp",
        "SignatureDoesNotMatch",
        "Unauthorized",
    }
)
# Answered with 403, but no other credentials would help.
_NOT_DENIED_CODES = frozenset({"RequestTimeTooSkewed", "InvalidObjectState", "QuotaExceeded"})


class Answer(NamedTuple):
    """What S3 said of a request that it did not fulfil."""

    code: str
    """Its error code, such as `NoSuchKey`; the HTTP status in digits when the answer had no
    body, as all to HEAD.
    """
    status: int
    """HTTP status; 0 where it is not known."""
    message: str
    """For people only."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, what it was raised from or while handling, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    # A chain may lead back to itself when an error is raised again.
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def answer_of(error: BaseException) -> Answer | None:
    """The newest answer of S3 along the chain of causes; None when the error is none of S3's."""
    for e in causes(error):
        response = getattr(e, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            reason = response["Error"]
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = str(reason.get("Code") or status)
            # To HEAD the status stands where the code would be.
            status = int(status or (code if code.isdigit() else 0))
            return Answer(code, status, str(reason.get("Message", "")))
    return None


def _is_one_of(error: BaseException, names: frozenset[str]) -> bool:
    kind = type(error)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}" in names


def unreachable(error: BaseException) -> bool:
    """Whether nobody answered: a refused, reset or silent connection."""
    # Whoever answers is reached, whatever broke before.
    if answer_of(error):
        return False
    return any(
        isinstance(e, (ConnectionError, TimeoutError)) or _is_one_of(e, _UNREACHABLE)
        for e in causes(error)
    )


def without_credentials(error: BaseException) -> bool:
    """Whether no credentials could be found or made."""
    return any(_is_one_of(e, _NO_CREDENTIALS) for e in causes(error))


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: throttling, server errors, broken or
    slow connections.
    """
    answer = answer_of(error)
    if answer:
        return answer.code in _PASSING_CODES or answer.status in _PASSING_STATES
    return unreachable(error) or any(_is_one_of(e, _BROKEN_OFF) for e in causes(error))


def expired(error: BaseException) -> bool:
    """Whether storage says that credentials are too old."""
    answer = answer_of(error)
    return answer is not None and answer.code in _EXPIRED_CODES


def denied(error: BaseException) -> bool:
    """Whether other credentials could help."""
    answer = answer_of(error)
    if answer is None:
        return without_credentials(error) or isinstance(error, PermissionError)
    if answer.code in _EXPIRED_CODES | _DENIED_CODES:
        return True
    return answer.status in (401, 403) and answer.code not in _NOT_DENIED_CODES


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
    renewed = False
    attempt = 0
    while True:
        try:
            return work()
        except Exception as error:
            # Once, and without a wait: what is denied twice stays denied.
            if denied(error) and not renewed:
                renewed = True
                renew()
                continue
            wait = random.uniform(0, min(_LONGEST_S, _FIRST_S * 2**attempt))
            if not passing(error) or time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        attempt += 1
