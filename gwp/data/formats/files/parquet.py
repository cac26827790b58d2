"""Rows and pictures out of Parquet files: of the row groups that hold them, and no more."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import FilePart, Pictures
from gwp.errors import DataError, MissingError
from gwp.storage.names import relative_name, shown

_FOOTERS, _METADATA, _ROW_GROUPS, _PICTURE_GROUPS = 1024, 32, 16, 2
"""What stays: files of which the row groups are known, and such of which all that their end
says is; row groups of numbers, and row groups of pictures, which are large.
"""

_TYPES = b"ARROW:schema"
"""Where Arrow notes them."""
_MOST = 0.75
"""Share of rows above which their width is that of the column, and others are damaged."""


@contextmanager
def parquet_errors(uri: str) -> Iterator[None]:
    """What Arrow says of a damaged file, as a DataError with its name. Storage that does not
    answer is no property of the file.
    """
    try:
        yield
    except (pa.ArrowException, KeyError, ValueError, OverflowError) as error:
        raise DataError(f"{uri} cannot be read as Parquet{_said(error)}") from error
    except OSError as error:
        # Arrow's own, of footers and pages that are damaged, have no number.
        if error.errno is not None:
            raise
        raise DataError(f"{uri} cannot be read as Parquet; it is truncated or damaged") from error


def _said(error: Exception) -> str:
    """What Arrow says of the types of a file; of what Python says nothing."""
    text = " ".join(str(error).split())
    return f" ({text})" if isinstance(error, pa.ArrowException) and text else "; it is damaged"


def read_rows(
    part: FilePart, first: int, count: int, keys: tuple[str, ...], reader: FileReader
) -> dict[str, np.ndarray]:
    """Rows `first ..` of columns: key -> float64 `[count, width]`. DataError when the file
    cannot be read so.
    """
    uri = part.uri
    with parquet_errors(uri):
        kept = reader.once(_ROW_GROUPS, _kept, reader, uri, keys)
        if kept is not None and first + count <= len(kept[keys[0]]):
            return {key: values[first : first + count] for key, values in kept.items()}
        # First row of each row group, and behind them the number of rows.
        edges = reader.once(_FOOTERS, _row_groups, reader, uri)
        if first + count > edges[-1]:
            raise DataError(
                f"{uri}: rows {first} to {first + count} are not there; the file has {edges[-1]}"
            )
        # From the group that holds `first` to the last that begins before the end.
        groups = range(
            np.searchsorted(edges, first, side="right") - 1,
            np.searchsorted(edges, first + count, side="left"),
        )
        parts = [reader.once(_ROW_GROUPS, _group, reader, uri, int(g), keys) for g in groups]
    skip = first - edges[groups[0]]
    return {k: np.concatenate([p[k] for p in parts])[skip : skip + count] for k in keys}


def read_places(
    part: FilePart, places: np.ndarray, keys: tuple[str, ...], reader: FileReader
) -> dict[str, np.ndarray]:
    """Rows of columns by their positions in the file, in that order: key -> float64 `[rows,
    width]`. DataError when the file cannot be read so.
    """
    uri = part.uri
    with parquet_errors(uri):
        kept = reader.once(_ROW_GROUPS, _kept, reader, uri, keys)
        if kept is not None:
            return {key: values[places] for key, values in kept.items()}
        edges = reader.once(_FOOTERS, _row_groups, reader, uri)
        groups = np.searchsorted(edges, places, side="right") - 1
        rows: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        for place, group in zip(places.tolist(), groups.tolist(), strict=True):
            held = reader.once(_ROW_GROUPS, _group, reader, uri, group, keys)
            for key in keys:
                rows[key].append(held[key][place - edges[group]])
    return {key: np.stack(values) for key, values in rows.items()}


def _kept(reader: FileReader, uri: str, keys: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Columns of a whole file that were read when it was looked at."""
    return reader.numbers.get(uri, keys)


def keep(reader: FileReader, uri: str, table: pa.Table, keys: Sequence[str]) -> None:
    """Keep these columns of a whole file for `read_rows`, if all are numbers. What is wrong with
    one is told when it is asked for.
    """
    with suppress(pa.ArrowException, DataError, KeyError, ValueError, OverflowError):
        reader.numbers.put(uri, {key: matrix(table[key], key) for key in keys})


def _row_groups(reader: FileReader, uri: str) -> tuple[int, ...]:
    """First row of each row group of a file, and the number of rows."""
    about = reader.once(_METADATA, _footer, reader, uri)
    sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    return tuple(int(x) for x in np.cumsum([0, *sizes]))


def _footer(reader: FileReader, uri: str) -> pq.FileMetaData:
    """Columns and row groups of a file."""
    with reader.open(uri) as handle:
        return pq.ParquetFile(handle).metadata


def _group(
    reader: FileReader, uri: str, group: int, keys: tuple[str, ...]
) -> dict[str, np.ndarray]:
    # Columns that are not there are left out without a word; `table[k]` raises for them.
    table = _read_group(reader, uri, group, keys)
    return {k: matrix(table[k], k) for k in keys}


def _read_group(reader: FileReader, uri: str, group: int, keys: Sequence[str]) -> pa.Table:
    about = reader.once(_METADATA, _footer, reader, uri)
    with reader.open(uri) as handle:
        file = pq.ParquetFile(handle, metadata=about)
        try:
            # Of rows of numbers a thread of its own costs more than it saves.
            return file.read_row_group(group, columns=list(keys), use_threads=False)
        except pa.ArrowInvalid:
            kinds = [file.schema_arrow.field(key).type for key in keys]
            if not any(pa.types.is_fixed_size_list(kind) for kind in kinds):
                raise
        # A row that is missing has no length, which lists of a fixed size cannot have.
        about = reader.once(_METADATA, _loose_footer, reader, uri)
        file = pq.ParquetFile(handle, metadata=about)
        return file.read_row_group(group, columns=list(keys), use_threads=False)


def _loose_footer(reader: FileReader, uri: str) -> pq.FileMetaData:
    """As `_footer`, without what Arrow notes of its own types beside those of Parquet: lists have
    any length.
    """
    out = io.BytesIO()
    reader.once(_METADATA, _footer, reader, uri).write_metadata_file(out)
    return pq.read_metadata(io.BytesIO(out.getvalue().replace(_TYPES, _TYPES[::-1])))


@contextmanager
def open_pictures(part: FilePart, key: str, reader: FileReader) -> Iterator[Pictures]:
    """Number of rows, and a function that gives the encoded picture of one. DataError."""
    uri = part.uri
    with parquet_errors(uri):
        edges = reader.once(_FOOTERS, _row_groups, reader, uri)

    def get(i: int) -> Any:
        group = int(np.searchsorted(edges, i, side="right")) - 1
        with parquet_errors(uri):
            pictures = reader.once(_PICTURE_GROUPS, _picture_group, reader, uri, key, group)
            picture = pictures[i - edges[group]].as_py()
        # A struct of both, the bytes themselves, or the path alone.
        if isinstance(picture, str):
            return _by_path(uri, key, picture)
        if not isinstance(picture, dict):
            return picture
        return picture.get("bytes") or _by_path(uri, key, picture.get("path"))

    yield edges[-1], get


def _picture_group(reader: FileReader, uri: str, column: str, group: int) -> Any:
    return joined(_read_group(reader, uri, group, (column,))[column])


def _by_path(uri: str, key: str, path: Any) -> bytes | None:
    """A picture that a row names and does not hold: a file of the set of a data file. DataError.

    None where there is no name.
    """
    if not path:
        return None
    name = relative_name(path, f"{uri}: pictures of {key} are given by path only", DataError)
    # Of the folder of the set, mostly two above its data files.
    folders = uri.rpartition("/")[0].split("/")
    for end in (len(folders) - 2, len(folders) - 1, len(folders)):
        try:
            return storage.read_bytes("/".join([*folders[:end], name]))
        except MissingError:
            continue
    raise DataError(
        f"{uri}: pictures of {key} are given by path only, and {shown(name)} is not there; write "
        "the set with its pictures in it"
    )


def matrix(column: Any, name: str) -> np.ndarray:
    """A column of numbers, lists or fixed-size lists as float64 `[rows, width]`; missing
    numbers become NaN, and so do rows of another width than most. Lists of lists are laid out one
    behind the other. DataError where no width is that of most rows.
    """
    values = joined(column)
    rows = len(values)
    is_list = pa.types.is_nested(values.type) and hasattr(values, "value_lengths")
    if rows and is_list and _ragged(values):
        return _with_gaps(values, name)
    # [rows * width] in the end: lists one after another. `flatten` passes over lists that are
    # null, so their number is checked as well as their widths.
    while pa.types.is_nested(values.type) and hasattr(values, "value_lengths"):
        if len(values) and _ragged(values):
            raise DataError(f"column {name} has rows of different widths")
        values = values.flatten()
    if rows and len(values) % rows:
        raise DataError(f"column {name} has rows of different widths")
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False)).reshape(
        rows, -1 if rows else 0
    )


def joined(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    # Most are in one, which joining would copy.
    if column.num_chunks == 1:
        return column.chunk(0)
    values = column.combine_chunks()
    return pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values


def _with_gaps(values: Any, name: str) -> np.ndarray:
    """As `matrix`, of lists of which some are missing, empty or of another length."""
    lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
    known, counts = np.unique(lengths[lengths > 0], return_counts=True)
    if not len(known) or counts.max() <= _MOST * len(lengths):
        raise DataError(f"column {name} has rows of different widths")
    whole = lengths == known[counts.argmax()]
    found = matrix(pa.chunked_array([values.filter(pa.array(whole))]), name)
    out = np.full((len(lengths), found.shape[1]), np.nan)
    out[whole] = found
    return out


def _ragged(column: pa.Array) -> bool:
    if column.null_count > 0:
        return True
    fixed = pa.types.is_fixed_size_list(column.type)
    return not fixed and len(pc.unique(pc.list_value_length(column))) > 1
