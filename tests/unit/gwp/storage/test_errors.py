"""What storage says is known by its codes: no path, bucket or message changes what an error
means.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from gwp import storage
from gwp.errors import BundleError, DataError, GwpError, MissingError
from gwp.policy.bundle import read_id
from gwp.policy.contract import PolicyContract
from gwp.storage.errors import explained
from gwp.storage.retry import PATIENCE, denied, expired, passing
from pipelines.tracking import runs as tracking
from tests.support.faults import FaultyProxy, faulty_s3

# Status, code and what is said of it; every code that any table of ours names.
CODES = [
    (404, "NoSuchBucket", "bucket '{bucket}' does not exist"),
    (400, "InvalidBucketName", "'{bucket}' is no name for a bucket"),
    (404, "NoSuchKey", "not found; check the URI and AWS_ENDPOINT_URL"),
    (404, "NoSuchVersion", "not found"),
    (404, "404", "not found"),
    *(
        (400, code, "credentials have expired or are wrong; renew them")
        for code in (
            "ExpiredToken",
            "ExpiredTokenException",
            "RequestExpired",
            "InvalidToken",
            "TokenRefreshRequired",
        )
    ),
    *(
        (403, code, "access denied; check AWS_ACCESS_KEY_ID")
        for code in (
            "AccessDenied",
            "AccountProblem",
            "AllAccessDisabled",
            "Forbidden",
            "InvalidAccessKeyId",
            "InvalidSecurity",
            "NotSignedUp",
            "SignatureDoesNotMatch",
            "403",
            "SomethingNew",
        )
    ),
    (401, "Unauthorized", "access denied"),
    (403, "RequestTimeTooSkewed", "clock of this machine"),
    (403, "InvalidObjectState", "is archived"),
    *(
        (status, code, "the bucket is elsewhere; check AWS_REGION")
        for status, code in (
            (301, "PermanentRedirect"),
            (301, "301"),
            (307, "TemporaryRedirect"),
            (400, "AuthorizationHeaderMalformed"),
            (400, "IllegalLocationConstraintException"),
        )
    ),
    (416, "InvalidRange", "ends before the bytes"),
    (412, "PreconditionFailed", "changed while it was read"),
    *(
        (status, code, "storage keeps failing")
        for status, code in (
            (503, "SlowDown"),
            (500, "InternalError"),
            (503, "ServiceUnavailable"),
            (400, "RequestTimeout"),
            (503, "503"),
            (502, "502"),
            (429, "TooManyRequests"),
            (409, "OperationAborted"),
            (409, "ConditionalRequestConflict"),
        )
    ),
    # HEAD told no more, and asking why did not either; and codes that no table names.
    (400, "400", "storage refuses the request"),
    (400, "InvalidRequest", "storage refuses the request"),
    (405, "MethodNotAllowed", "storage refuses the request"),
]
WORDS = (
    "403 404 400 Forbidden ExpiredToken NoSuchBucket access denied AWS Error ACCESS_DENIED "
    "during HeadObject operation"
)
URIS = [
    "s3://robots/set/file",
    f"s3://robots/{WORDS}/file",
    "s3://nosuchbucket-403-expiredtoken/x",
    "s3://access.denied.404/SlowDown",
]


def refusal(status: int, code: str, message: str = "") -> OSError:
    """What s3fs raises for an answer."""
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error: OSError = translate_boto_error(ClientError(response, "GetObject"))
    return error


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize(("status", "code", "said"), CODES)
def test_each_code_has_its_line_whatever_the_path_says(
    status: int, code: str, said: str, uri: str
) -> None:
    for message in ("", WORDS, uri):
        with pytest.raises(GwpError) as caught, explained(uri):
            raise refusal(status, code, message)
        assert str(caught.value).startswith(uri)
        assert said.format(bucket=uri.removeprefix("s3://").split("/")[0]) in str(
            caught.value
        ).removeprefix(uri)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", URIS)
def test_errors_without_an_answer_are_known_by_their_types(uri: str) -> None:
    botocore_errors = botocore.exceptions
    for error, said in (
        (FileNotFoundError(WORDS), "not found"),
        (PermissionError(WORDS), "access denied"),
        (botocore_errors.NoCredentialsError(), "access denied"),
        (botocore_errors.EndpointConnectionError(endpoint_url=WORDS), "storage does not answer"),
        (ConnectionResetError(WORDS), "storage does not answer"),
        (
            botocore_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2),
            "storage keeps failing",
        ),
        (botocore_errors.ParamValidationError(report=WORDS), "no address that S3 takes"),
        (OSError(errno.ENOSPC, WORDS), "no space left"),
    ):
        with pytest.raises(GwpError) as caught, explained(uri):
            raise error
        assert said in str(caught.value).removeprefix(uri)
    for error in (OSError(WORDS), ValueError(WORDS), RuntimeError(WORDS)):
        with pytest.raises(type(error)), explained(uri):
            raise error
        assert not any(judge(error) for judge in (passing, denied, expired))


def test_kinds_of_error_are_those_that_callers_catch() -> None:
    for status, code, kind in (
        (404, "NoSuchKey", MissingError),
        (416, "InvalidRange", DataError),
        (412, "PreconditionFailed", DataError),
    ):
        with pytest.raises(kind), explained("s3://robots/x"):
            raise refusal(status, code)
    with pytest.raises(GwpError) as caught, explained("s3://robots/x"):
        raise refusal(503, "SlowDown")
    assert not isinstance(caught.value, DataError)


def test_an_error_raised_from_nothing_is_judged_by_itself() -> None:
    handled = ValueError("text")
    handled.__context__ = refusal(503, "SlowDown")
    assert passing(handled)
    handled.__suppress_context__ = True
    assert not passing(handled)


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with faulty_s3("nosuchbucket-403") as running:
        yield running


@pytest.fixture(autouse=True)
def _calm(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").fault = lambda *_: None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, "ExpiredToken"), "credentials have expired"),
        ((400, "InvalidRequest"), "storage refuses the request"),
        ((403, "InvalidAccessKeyId"), "access denied"),
        ((403, "RequestTimeTooSkewed"), "clock of this machine"),
        ((403, "InvalidObjectState"), "is archived"),
        ((404, "NoSuchKey"), "not found"),
    ],
)
def test_refusals_are_explained_by_every_way_to_a_file(
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch,
    answer: tuple[int, str],
    said: str,
) -> None:
    """The first request of most is HEAD, whose answer names no reason."""
    monkeypatch.setenv(PATIENCE, "0.05")
    uri = f"s3://nosuchbucket-403/{WORDS}/file"
    storage.write_bytes(uri, b"x")
    proxy.fault = lambda *_: answer

    def natively() -> None:
        with storage.open_native(uri, 1024) as handle:
            handle.read()

    def size_of() -> int | None:
        return storage.size_of(uri)

    for call in (
        size_of,
        natively,
        lambda: storage.read_bytes(uri),
        lambda: storage.open_read(uri),
        lambda: storage.get_file(uri, tmp_path / "never"),
    ):
        if call is size_of and said == "not found":
            assert call() is None
            continue
        with pytest.raises(GwpError) as caught:
            call()
        assert said in str(caught.value).removeprefix(uri)


def test_a_refusal_of_head_alone_is_told_as_it_is(proxy: FaultyProxy) -> None:
    storage.write_bytes("s3://nosuchbucket-403/x", b"x")
    proxy.fault = lambda method, *_: (400, "ExpiredToken") if method == "HEAD" else None
    with pytest.raises(GwpError, match=r"storage refuses the request \(400"):
        storage.size_of("s3://nosuchbucket-403/x")


def test_a_failure_is_no_absence(proxy: FaultyProxy, monkeypatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.05")
    uri = "s3://nosuchbucket-403/there"
    storage.write_bytes(uri, b"x")
    proxy.fault = lambda *_: "slow down"
    for call in (
        storage.exists,
        storage.size_of,
        storage.list_files,
        storage.remove,
        storage.remove_tree,
    ):
        with pytest.raises(GwpError, match="keeps failing"):
            call(uri)
    proxy.fault = lambda *_: None
    assert storage.read_bytes(uri) == b"x"


def test_local_paths_that_sound_like_errors(tmp_path: Path) -> None:
    folder = tmp_path / WORDS
    with pytest.raises(MissingError, match="not found; check the URI"):
        storage.read_bytes(str(folder / "file"))
    storage.write_bytes(str(folder / "file"), b"x")
    with pytest.raises(FileExistsError):
        storage.write_bytes(str(folder / "file"), b"x", create_only=True)
    assert storage.list_files(str(folder)) == {"file": 1}
    assert not storage.exists(str(folder / "file" / "below"))


def test_a_local_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        # Nothing is forbidden to root, who may run the tests.
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(GwpError, match="access denied; check its owner and mode"):
        storage.list_files(str(tmp_path))


def test_a_bundle_is_missing_only_when_its_manifest_is(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv(PATIENCE, "0.05")
    for place in (str(tmp_path / "not found"), "s3://nosuchbucket-403/not found"):
        for read in (read_id, PolicyContract.read):
            with pytest.raises(BundleError, match=r"not a (whole )?policy bundle"):
                read(place)
    proxy.fault = lambda *_: (403, "AccessDenied")
    for read in (read_id, PolicyContract.read):
        with pytest.raises(GwpError, match="access denied") as caught:
            read("s3://nosuchbucket-403/not found")
        assert not isinstance(caught.value, BundleError)


def test_mlflow_is_unreachable_by_what_it_wraps_not_by_its_words() -> None:
    import requests
    from mlflow.exceptions import MlflowException

    words = "Max retries exceeded; Connection refused; ConnectTimeout; ReadTimeout"
    with pytest.raises(MlflowException), tracking.explained("http://tracking"):
        raise MlflowException(words)
    wrapping = MlflowException("anything")
    # MLflow names no cause.
    wrapping.__context__ = requests.exceptions.ConnectionError("anything")
    with pytest.raises(GwpError, match="does not answer"), tracking.explained("http://tracking"):
        raise wrapping
