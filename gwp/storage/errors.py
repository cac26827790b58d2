"""What went wrong with storage, in one line that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from gwp.errors import DataError, GwpError, MissingError
from gwp.storage.retry import (
    PATIENCE,
    Answer,
    answer_of,
    causes,
    denied,
    expired,
    passing,
    unreachable,
    without_credentials,
)

_KEYS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
_MISSING = ("NoSuchKey", "NoSuchVersion", "NotFound")
_ELSEWHERE = (
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "Redirect",
    "TemporaryRedirect",
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what storage libraries raise about `uri` into an error of ours: by codes and types,
    whatever the texts say.

    FileExistsError, and what no table here knows, are raised as they came.
    """
    try:
        yield
    except (GwpError, FileExistsError):
        raise
    except Exception as error:
        ours = _explain(uri, error)
        if ours is None:
            raise
        raise ours from error


def _explain(uri: str, error: Exception) -> GwpError | None:
    # What storage itself answered says more than what a library made of it.
    answer = answer_of(error)
    if answer:
        return _explain_answer(uri, error, answer)
    if without_credentials(error):
        return GwpError(f"{uri}: access denied; {_KEYS}")
    if unreachable(error):
        where = "AWS_ENDPOINT_URL and the network" if uri.startswith("s3://") else "the network"
        return GwpError(f"{uri}: storage does not answer ({error}); check {where}")
    if passing(error):
        return _keeps_failing(uri, error)
    # By name: botocore is loaded only where S3 is used.
    kinds = {f"{type(e).__module__}.{type(e).__name__}" for e in causes(error)}
    if "botocore.exceptions.ParamValidationError" in kinds:
        return GwpError(f"{uri} is no address that S3 takes; correct the URI")
    return _explain_local(uri, error)


def _explain_local(uri: str, error: Exception) -> GwpError | None:
    if isinstance(error, FileNotFoundError):
        return _missing(uri)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, PermissionError) or number in _FORBIDDEN:
        return GwpError(
            f"{uri}: access denied; {_KEYS if uri.startswith('s3://') else 'check its owner and mode'}"
        )
    if isinstance(error, IsADirectoryError):
        return GwpError(f"{uri}: is a folder; name a file")
    if number in _FULL:
        return GwpError(f"{uri}: no space left; free some, or choose another folder")
    return None


def _explain_answer(uri: str, error: Exception, answer: Answer) -> GwpError:
    reason = f"{answer.status} {answer.code}"
    # From the particular to the general: several of these come with the same status.
    if answer.code == "NoSuchBucket":
        return GwpError(
            f"{uri}: bucket '{_bucket(uri)}' does not exist; create it or correct the URI"
        )
    if answer.code == "InvalidBucketName":
        return GwpError(f"{uri}: '{_bucket(uri)}' is no name for a bucket; correct the URI")
    if answer.code == "RequestTimeTooSkewed":
        return GwpError(
            f"{uri}: the clock of this machine and that of storage differ; set the clock ({reason})"
        )
    if answer.code == "InvalidObjectState":
        return GwpError(
            f"{uri}: is archived; restore it to a storage class that can be read at once ({reason})"
        )
    if answer.code in _ELSEWHERE or answer.status in (301, 307):
        return GwpError(
            f"{uri}: the bucket is elsewhere; check AWS_REGION and AWS_ENDPOINT_URL ({reason})"
        )
    if expired(error):
        return GwpError(
            f"{uri}: credentials have expired or are wrong; renew them where the AWS_* "
            f"environment finds them ({reason})"
        )
    if denied(error):
        return GwpError(f"{uri}: access denied; {_KEYS} ({reason})")
    if answer.code in _MISSING or answer.status == 404:
        return _missing(uri)
    if answer.code == "InvalidRange" or answer.status == 416:
        return DataError(
            f"{uri}: ends before the bytes that were asked for; it is truncated or was replaced"
        )
    if answer.code == "PreconditionFailed" or answer.status == 412:
        return DataError(f"{uri}: changed while it was read; read it again")
    if passing(error):
        return _keeps_failing(uri, error)
    return GwpError(
        f"{uri}: storage refuses the request ({reason} {answer.message}); see what its "
        "documentation says of this code"
    )


def _missing(uri: str) -> MissingError:
    return MissingError(
        f"{uri}: not found; check the URI"
        + (" and AWS_ENDPOINT_URL" if uri.startswith("s3://") else "")
    )


def _keeps_failing(uri: str, error: Exception) -> GwpError:
    return GwpError(
        f"{uri}: storage keeps failing ({type(error).__name__}: {error}); try later, or raise "
        f"{PATIENCE}"
    )


def _bucket(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[0]
