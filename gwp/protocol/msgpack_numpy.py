"""NumPy arrays in msgpack, written in the dialect of openpi and read strictly.

An array travels as a map with bytes keys `__ndarray__`, `data`, `dtype` (`"<f4"`), `shape`; a
NumPy scalar as `__npgeneric__`, `data`, `dtype`. Other dialects are read where it is safe
(`gwp.protocol.arrays`). How much a message may hold is checked first (`gwp.protocol.bounds`).
"""

from collections import Counter
from typing import Any

import msgpack
import numpy as np

from gwp.errors import ProtocolError
from gwp.protocol.arrays import KINDS, decode
from gwp.protocol.bounds import BOUNDS, Bounds, check_bounds

__all__ = ["ProtocolError", "packb", "unpackb"]

_FOREIGN = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK": "a file of torch.save or np.savez",
    b"{": "JSON",
    b"\x93NUMPY": "a file of np.save",
}
"""How bytes begin that are something else -> what."""
_KEYS = 64
"""Characters of a key that an error shows."""


def _encode(value: object) -> object:
    if isinstance(value, (np.ndarray, np.generic)) and (
        value.dtype.kind not in KINDS or value.dtype.itemsize > 8
    ):
        raise ProtocolError(
            f"cannot send dtype {value.dtype}; send bool, integers or floats of up to 64 bits"
        )
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": list(value.shape),
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise ProtocolError(
        f"cannot send a {type(value).__name__}; send arrays, numbers, text, bytes, lists and maps"
    )


def _map(pairs: list[tuple[Any, Any]]) -> Any:
    """Called for every map, innermost first; one that is no array or scalar stays a map."""
    fields = dict(pairs)
    # The last of them would count, without a word.
    if len(fields) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ProtocolError(f"the key {str(twice)[:_KEYS]!r} came twice in one map; send it once")
    return decode(fields)


def _refuse_extension(code: int, _data: bytes) -> Any:
    raise ProtocolError(f"msgpack extension type {code} is refused; send arrays in the openpi form")


def packb(message: Any) -> bytes:
    """One message as bytes. Arrays of bool, integers and floats may sit anywhere in maps and
    lists.

    Raises ProtocolError for what has no place in a message (objects, complex numbers,
    structured arrays).
    """
    try:
        return bytes(msgpack.packb(message, default=_encode, use_bin_type=True))
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(f"this message cannot be sent: {error}") from error


def unpackb(data: bytes, max_bytes: int | None = None, bounds: Bounds | None = BOUNDS) -> Any:
    """The message in `data`; arrays come back read-only, without a copy.

    bounds: what it may hold; None: it comes from a process of our own, and is not looked through

    Raises ProtocolError when the bytes are longer than `max_bytes`, are no msgpack, hold more
    than `bounds`, or an array of a refused dtype or of another size than it announces. Never
    runs code from the message.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise ProtocolError(
            f"message of {len(data)} bytes is over the limit of {max_bytes}; send smaller or "
            "JPEG images"
        )
    for begin, what in _FOREIGN.items():
        # A map of no entries is one byte and no pickle; whatever follows it is not read.
        if data.startswith(begin) and len(data) > len(begin):
            raise ProtocolError(f"this is {what}, not msgpack; send one msgpack map per frame")
    if bounds is not None:
        check_bounds(data, bounds)
    try:
        # Without a hook of ours extensions would come back as objects of msgpack's.
        return msgpack.unpackb(data, object_pairs_hook=_map, ext_hook=_refuse_extension, raw=False)
    except ProtocolError:
        raise
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(
            f"not a msgpack message ({type(error).__name__}); send one msgpack map per binary frame"
        ) from error
