"""NumPy arrays in msgpack, in the dialect of openpi, decoded strictly.

An array travels as a map with bytes keys `__ndarray__`, `data`, `dtype` (`"<f4"`), `shape`; a
NumPy scalar as `__npgeneric__`, `data`, `dtype`. What arrives may come from anyone: only plain
numbers are let through, and the announced shape has to fit the bytes that came with it.
"""

import math
from typing import Any

import msgpack
import numpy as np

from gwp.errors import GwpError

MAX_DIMS = 8
_KINDS = "biuf"
_ARRAY = frozenset((b"__ndarray__", b"data", b"dtype", b"shape"))
_SCALAR = frozenset((b"__npgeneric__", b"data", b"dtype"))


class ProtocolError(GwpError):
    """A message that is not what the protocol promises: broken msgpack, a refused dtype, a
    shape that does not fit.
    """


def _dtype(text: object) -> np.dtype[Any]:
    if not isinstance(text, str):
        raise ProtocolError(f"array dtype is {type(text).__name__}, expected text such as '<f4'")
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ProtocolError(
            f"array dtype {text[:32]!r} is unknown; send bool, integers or floats"
        ) from error
    # Structured, object and extended-precision types mean code paths nobody tests, or memory
    # nobody expects.
    if dtype.kind not in _KINDS or dtype.itemsize > 8 or dtype.subdtype is not None:
        raise ProtocolError(
            f"array dtype {text[:32]!r} is refused; send bool, integers or floats of up to 64 bits"
        )
    return dtype


def _encode(value: object) -> object:
    if isinstance(value, (np.ndarray, np.generic)) and (
        value.dtype.kind not in _KINDS or value.dtype.itemsize > 8
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


def _decode(fields: dict[Any, Any]) -> Any:
    """Called for every map, innermost first; one that is no array or scalar stays a map."""
    if b"__ndarray__" in fields:
        return _decode_array(fields)
    if b"__npgeneric__" in fields:
        return _decode_scalar(fields)
    return fields


def _decode_array(fields: dict[Any, Any]) -> np.ndarray:
    if fields.keys() != _ARRAY:
        raise ProtocolError(
            "an array needs exactly the keys __ndarray__, data, dtype, shape (as bytes)"
        )
    dtype = _dtype(fields[b"dtype"])
    shape, data = fields[b"shape"], fields[b"data"]
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMS
        # Exactly int: to Python True is a number too.
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ProtocolError(f"array shape must be a list of up to {MAX_DIMS} sizes")
    if not isinstance(data, bytes):
        raise ProtocolError(f"array data is {type(data).__name__}, expected bytes")
    # `math.prod` has no largest number: a shape that overflows fits no bytes either.
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ProtocolError(
            f"array of shape {shape} and dtype {dtype.str} needs "
            f"{math.prod(shape) * dtype.itemsize} bytes, {len(data)} came"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _decode_scalar(fields: dict[Any, Any]) -> np.generic:
    if fields.keys() != _SCALAR:
        raise ProtocolError("a scalar needs exactly the keys __npgeneric__, data, dtype (as bytes)")
    dtype = _dtype(fields[b"dtype"])
    number = fields[b"data"]
    if not isinstance(number, (bool, int, float)):
        raise ProtocolError(f"scalar data is {type(number).__name__}, expected a number")
    try:
        scalar: np.generic = dtype.type(number)
    except (OverflowError, ValueError) as error:
        raise ProtocolError(f"scalar {number} does not fit dtype {dtype.str}") from error
    return scalar


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


def unpackb(data: bytes, max_bytes: int | None = None) -> Any:
    """The message in `data`; arrays come back read-only, without a copy.

    Raises ProtocolError when the bytes are longer than `max_bytes`, are no msgpack, or hold an
    array of a refused dtype or of another size than it announces. Never runs code from the
    message.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise ProtocolError(
            f"message of {len(data)} bytes is over the limit of {max_bytes}; send smaller or "
            "JPEG images"
        )
    try:
        # Without a hook of ours extensions would come back as objects of msgpack's.
        return msgpack.unpackb(data, object_hook=_decode, ext_hook=_refuse_extension, raw=False)
    except ProtocolError:
        raise
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(
            f"not a msgpack message ({type(error).__name__}); send one msgpack map per binary frame"
        ) from error
