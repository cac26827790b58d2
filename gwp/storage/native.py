"""Objects of S3 through Arrow: no Python thread is waited for, and a request costs a quarter of
the work that it costs through our own client.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from gwp.errors import DataError, GwpError
from gwp.storage.door import arrow_filesystem, call
from gwp.storage.handles import read_ranges
from gwp.storage.retry import PATIENCE


def read_parts(uri: str, size: int, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Bytes `begin` to `end` of an object of `size` bytes, for each part. DataError when it is
    of another size.
    """
    fs, path = arrow_filesystem(uri, patient=False)
    try:
        with fs.open_input_file(path) as file:
            same = file.size() == size
            found = [file.read_at(end - begin, begin) for begin, end in parts] if same else []
    except OSError:
        # Whatever it was: our own client is patient, and knows what to say.
        begins, ends = [begin for begin, _ in parts], [end for _, end in parts]
        found = read_ranges([uri] * len(parts), begins, ends)
    if [len(part) for part in found] != [end - begin for begin, end in parts]:
        raise DataError(f"{uri}: changed while it was read; read it again")
    return found


@contextmanager
def native(uri: str, ahead: int) -> Iterator[Any]:
    """An object of S3 through Arrow. A read that fails, whatever a library made of it, leaves
    the block as the error it was.
    """
    failures: list[OSError] = []
    fs, path = arrow_filesystem(uri)
    try:
        raw = fs.open_input_file(path)
    except OSError as error:
        _explain_native(uri, error)
    try:
        with _Native(raw, failures) as handle:
            yield io.BufferedReader(handle, ahead)
    except Exception:
        # The library holds its lock no longer, so Python threads may be waited for.
        if failures:
            _explain_native(uri, failures[0])
        raise


def _explain_native(uri: str, error: OSError) -> NoReturn:
    """Raise what ails `uri`. Arrow, which has been patient in its own way, has words only; the
    answer to our own client has a code.
    """
    call(uri, lambda fs, path: fs.cat_file(path, start=0, end=1))
    raise GwpError(
        f"{uri}: storage keeps failing ({error}); try later, or raise {PATIENCE}"
    ) from error


class _Native(io.RawIOBase):
    """A file of Arrow's that notes what failed before a library between turns it into something
    else.
    """

    def __init__(self, raw: Any, failures: list[OSError]) -> None:
        self._raw = raw
        self._failures = failures

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._raw.readinto(buffer))
        except OSError as error:
            self._failures.append(error)
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
