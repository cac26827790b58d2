"""Numbers of small files: read along when a file is looked at, and asked for later."""

from collections.abc import Mapping

import numpy as np

from gwp.data.formats.files.spool import Spool

_PREFIX = "numbers of "
"""Beside the files themselves, which are kept by their URIs."""


class Numbers:
    """Columns of whole files by URI, in a temporary file. A `FileReader` has one; threads may
    share it.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        # URI -> columns with their widths, and the type that holds all of them exactly.
        self._kept: dict[str, tuple[tuple[tuple[str, int], ...], type[np.floating]]] = {}

    def put(self, uri: str, columns: Mapping[str, np.ndarray]) -> None:
        """Keep all rows of these columns, float64 `[rows, width]` each, as far as there is room."""
        joined = smallest(np.concatenate([*columns.values()], 1))
        if joined.size and self._spool.put(f"{_PREFIX}{uri}", joined.tobytes()):
            widths = tuple((key, values.shape[1]) for key, values in columns.items())
            self._kept[uri] = widths, joined.dtype.type

    def get(self, uri: str, keys: tuple[str, ...]) -> dict[str, np.ndarray] | None:
        """As they were; None where one of them is not kept."""
        widths, kind = self._kept.get(uri, ((), np.float64))
        known = bool(keys) and {key for key, _ in widths} >= {*keys}
        raw = self._spool.get(f"{_PREFIX}{uri}") if known else None
        if raw is None:
            return None
        width = sum(width for _, width in widths)
        joined = np.frombuffer(raw, kind).reshape(-1, width).astype(np.float64)
        edges = np.cumsum([width for _, width in widths])[:-1]
        parts = np.split(joined, edges, 1)
        return {key: part for (key, _), part in zip(widths, parts, strict=True) if key in keys}


def smallest(values: np.ndarray) -> np.ndarray:
    """Float64 values in float32, as most recordings are, where that is exact; in the order of
    rows.
    """
    with np.errstate(over="ignore"):
        small = np.ascontiguousarray(values, np.float32)
    return small if (small == values).all() else np.ascontiguousarray(values)
