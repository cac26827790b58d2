"""Large objects of S3 in parts, each with a patience of its own: a hiccup costs one part, not
the file.
"""

import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import fsspec

from gwp.errors import GwpError
from gwp.storage.retry import answer_of

T = TypeVar("T")

PART = 16 << 20
"""Bytes of a part, at least; smaller objects go in one request."""
_MOST_PARTS = 10_000
# Enough to keep a link busy; each holds one part.
PARALLEL = 4
# User metadata of an object: which call wrote it.
_WRITER = "writer"

logger = logging.getLogger(__name__)


class Call(Protocol):
    """Does something with the file system and path of an object, `patient` or once."""

    def __call__(
        self, work: Callable[[fsspec.AbstractFileSystem, str], T], patient: bool = True
    ) -> T: ...


def put(
    uri: str, call: Call, read: Callable[[int, int], bytes], size: int, create_only: bool = False
) -> None:
    """Write an object of `size` bytes; `read(start, end)` gives its bytes, the same ones
    whenever it is asked.

    FileExistsError when it is there already and `create_only`. An object is there when the last
    part is: until then, and after a failure, the one before stays.
    """
    # An attempt whose answer was lost may have written the object: by this it is known again.
    token = uuid.uuid4().hex
    condition: dict[str, Any] = {"IfNoneMatch": "*"} if create_only else {}
    if size < 2 * PART:
        data = _exactly(uri, read, 0, size)

        def put_whole(fs: Any, path: str) -> None:
            fs.call_s3(
                "put_object", **_object(fs, path), Body=data, Metadata={_WRITER: token}, **condition
            )

        call(lambda fs, path: _unless_done(uri, token, fs, path, put_whole))
        return
    upload = call(lambda fs, path: _begin(fs, path, token))
    try:
        parts = _send_parts(uri, call, read, size, upload)

        # The object appears with this call, so the condition belongs to it.
        def complete(fs: Any, path: str) -> None:
            fs.call_s3(
                "complete_multipart_upload",
                **_object(fs, path),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **condition,
            )

        call(lambda fs, path: _unless_done(uri, token, fs, path, complete))
    except BaseException:
        # Also when a run is stopped: parts are paid for as long as they lie there.
        _abort(uri, call, upload)
        raise


def _object(fs: Any, path: str) -> dict[str, str]:
    bucket, key, _ = fs.split_path(path)
    return {"Bucket": bucket, "Key": key}


def _begin(fs: Any, path: str, token: str) -> str:
    reply = fs.call_s3("create_multipart_upload", **_object(fs, path), Metadata={_WRITER: token})
    return str(reply["UploadId"])


def _exactly(uri: str, read: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    # Its size was taken before; somebody may write to it meanwhile.
    data = read(start, end)
    if len(data) != end - start:
        raise GwpError(f"{uri}: the local file changed while it was copied; write it again")
    return data


def _send_parts(
    uri: str, call: Call, read: Callable[[int, int], bytes], size: int, upload: str
) -> list[dict[str, Any]]:
    length = max(PART, -(-size // _MOST_PARTS))

    def send(number: int) -> dict[str, Any]:
        data = _exactly(uri, read, (number - 1) * length, min(number * length, size))

        def put_part(fs: Any, path: str) -> dict[str, Any]:
            # Sent again, a part takes the place of itself.
            sent = fs.call_s3(
                "upload_part", **_object(fs, path), UploadId=upload, PartNumber=number, Body=data
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        return call(put_part)

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(send, range(1, -(-size // length) + 1)))


def _unless_done(
    uri: str, token: str, fs: Any, path: str, work: Callable[[Any, str], None]
) -> None:
    """`work`; it is well too when it is refused because an earlier attempt did it."""
    try:
        work(fs, path)
    except OSError as error:
        # 412: the condition does not hold. No such upload: it was completed, or aborted.
        answer = answer_of(error)
        refused = isinstance(error, FileExistsError) or (
            answer is not None and answer.status == 412
        )
        ended = answer is not None and answer.code == "NoSuchUpload"
        if not refused and not ended:
            raise
        if _writer(fs, path) == token:
            return
        if refused:
            raise FileExistsError(uri) from error
        raise GwpError(
            f"{uri}: somebody ended the upload before it was complete; write it again"
        ) from error


def _writer(fs: Any, path: str) -> str | None:
    try:
        token: str | None = fs.metadata(path).get(_WRITER)
    except FileNotFoundError:
        return None
    return token


def _abort(uri: str, call: Call, upload: str) -> None:
    def abort(fs: Any, path: str) -> None:
        fs.call_s3("abort_multipart_upload", **_object(fs, path), UploadId=upload)

    try:
        call(abort, patient=False)
    except Exception as error:  # noqa: BLE001  what failed before is what matters
        logger.warning(
            "%s: parts of an upload that failed stay in the bucket until a lifecycle rule "
            "removes them (%s)",
            uri,
            error,
        )
