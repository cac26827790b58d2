"""Frames by time, whatever holds them: a video, a part of a file that is one, or pictures one
by one.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from gwp import storage
from gwp.data.formats import hdf5, rlds
from gwp.data.formats.vectors import parquet_errors, row_groups
from gwp.data.video.decode import frames_at, open_video
from gwp.errors import DataError
from gwp.yuv import Picture

Frames = Callable[[Sequence[float]], Iterator[tuple[float, Picture]]]


@contextmanager
def open_frames(
    uri: str,
    size: int | None,
    offset: int = 0,
    key: str = "",
    format: str = "lerobot",  # noqa: A002
    rate: float = 0.0,
    tolerance: float | None = None,
) -> Iterator[Frames]:
    """A function that gives the frames nearest to times (seconds, ascending, distinct), as
    `frames_at` does, of one view.

    A view is a video, `size` bytes from `offset` of the file (None: all of it), or, where there
    is a `key`, pictures at `rate` Hz, the k-th of row k, in a data file of `format`.
    `tolerance` is for videos.
    """
    if not key:
        with open_video(uri, size, offset) as handle:
            yield lambda times: frames_at(handle, times, tolerance)
    else:
        yield lambda times: _pictures_at(uri, size, offset, key, format, rate, times)


def _pictures_at(
    uri: str,
    size: int | None,
    offset: int,
    key: str,
    format: str,  # noqa: A002
    rate: float,
    times: Sequence[float],
) -> Iterator[tuple[float, np.ndarray]]:
    if format == "hdf5":
        source = hdf5.pictures(uri, key)
    elif format == "rlds":
        source = rlds.pictures(uri, offset, size or 0)
    else:
        source = _parquet_pictures(uri, key)
    with source as (count, get):
        for t in times:
            # Half-way the earlier one, as in a video.
            i = ceil(t * rate - 0.5 - 1e-4)
            if not 0 <= i < count:
                raise DataError(f"{uri}: no picture {i} of {key}; there are {count}")
            yield t, _decoded(get(i), f"{uri}: picture {i} of {key}")


def _decoded(raw: Any, name: str) -> np.ndarray:
    """uint8 `[H, W, 3]`, RGB as the encoded picture says."""
    if isinstance(raw, np.ndarray):
        return raw
    if not raw:
        raise DataError(f"{name} is not there (no bytes)")
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} cannot be decoded ({error}); it is damaged") from error


@contextmanager
def _parquet_pictures(uri: str, column: str) -> Iterator[tuple[int, Any]]:
    """Number of rows, and a function that gives the picture of one."""
    with parquet_errors(uri):
        edges = row_groups(uri)

    def get(i: int) -> Any:
        group = int(np.searchsorted(edges, i, side="right")) - 1
        with parquet_errors(uri):
            return _group(uri, column, group)[i - edges[group]].as_py()

    yield edges[-1], get


@lru_cache(maxsize=2)
def _group(uri: str, column: str, group: int) -> Any:
    with storage.open_read(uri) as handle:
        found = (
            pq.ParquetFile(handle).read_row_group(group, columns=[column])[column].combine_chunks()
        )
    if isinstance(found, pa.ChunkedArray):
        found = pa.concat_arrays(found.chunks)
    return found.field("bytes") if pa.types.is_struct(found.type) else found
