"""Arrays as others write them into msgpack maps, read strictly.

What arrives may come from anyone: only plain numbers are let through, and the announced shape has
to fit the bytes that came with it.

| dialect | a map with |
|---|---|
| openpi | bytes keys `__ndarray__`, `data`, `dtype` (`"<f4"`), `shape`; `__npgeneric__` for a scalar |
| vla-eval | the same keys as text |
| msgpack-numpy | `nd`, `type`, `kind`, `shape`, `data`; `nd` is False for a scalar |
| GR00T | `__ndarray_class__` and `as_npy`, a file as `np.save` writes it |
"""

import math
import re
from functools import lru_cache
from typing import Any

import numpy as np

from gwp.errors import ProtocolError

MAX_DIMS = 8
KINDS = "biuf"
_ARRAY = frozenset(("__ndarray__", "data", "dtype", "shape"))
_SCALAR = frozenset(("__npgeneric__", "data", "dtype"))
_LEBEDOV = frozenset(("nd", "type", "kind", "shape", "data"))
_NPY = frozenset(("__ndarray_class__", "as_npy"))
_NPY_HEAD = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z?]\d{0,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), ?\}\s*"
)
"""As `np.save` writes it, and nothing else: the text is Python, which nobody here evaluates."""
_NPY_MAGIC = b"\x93NUMPY"
_LONGEST_DTYPE = 16
_OTHERS = {
    frozenset(("__numpy__", "dtype", "shape")): "json_numpy's arrays are",
    frozenset(("__ModalityConfig_class__", "as_json")): "GR00T's ModalityConfig is",
    frozenset(("complex", "data")): "msgpack-numpy's complex numbers are",
}
"""Keys of a map that is not read -> what it is."""


def decode(fields: dict[Any, Any]) -> Any:
    """The array or scalar that a map stands for; a map that stands for none as it is.

    ProtocolError for one that is half an array, or is of what no message may hold.
    """
    # Small maps with a marker; whatever else there is stays a map.
    if len(fields) > len(_LEBEDOV) + 1:
        return fields
    names = frozenset(_text(key) for key in fields)
    if "__ndarray__" in names:
        plain = _by_name(fields, names, _ARRAY, "an array needs exactly the keys")
        return _array(plain["dtype"], plain["shape"], plain["data"])
    if "__npgeneric__" in names:
        plain = _by_name(fields, names, _SCALAR, "a scalar needs exactly the keys")
        return _scalar(plain["dtype"], plain["data"])
    if "__ndarray_class__" in names:
        plain = _by_name(fields, names, _NPY, "GR00T's array needs exactly the keys")
        return _npy(plain["as_npy"])
    if "nd" in names and {"type", "data"} <= names:
        return _lebedov({_text(key): value for key, value in fields.items()})
    if names in _OTHERS:
        raise ProtocolError(
            f"{_OTHERS[frozenset(names)]} not read here; send arrays as openpi does, with "
            "__ndarray__, data, dtype, shape"
        )
    return fields


def _text(key: Any) -> Any:
    """Markers are bytes to some and text to others."""
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _by_name(
    fields: dict[Any, Any], names: frozenset[Any], wanted: frozenset[str], what: str
) -> dict[str, Any]:
    if names != wanted or len(fields) != len(wanted):
        raise ProtocolError(f"{what} {', '.join(sorted(wanted))}")
    return {_text(key): value for key, value in fields.items()}


def _dtype(text: object) -> np.dtype[Any]:
    if not isinstance(text, str):
        raise ProtocolError(f"array dtype is {type(text).__name__}, expected text such as '<f4'")
    # Long ones describe records field by field, which takes its time.
    dtype = _plain_dtype(text) if len(text) <= _LONGEST_DTYPE else None
    if dtype is None:
        raise ProtocolError(
            f"array dtype {text[:32]!r} is refused; send bool, integers or floats of up to 64 bits"
        )
    return dtype


@lru_cache(maxsize=256)
def _plain_dtype(text: str) -> np.dtype[Any] | None:
    """None for what is unknown, and for structured, object and extended-precision types: they
    mean code paths nobody tests, or memory nobody expects.
    """
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError):
        return None
    plain = dtype.kind in KINDS and dtype.itemsize <= 8 and dtype.subdtype is None
    return dtype if plain else None


def _array(dtype_text: object, shape: object, data: object) -> np.ndarray:
    dtype = _dtype(dtype_text)
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
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:
        # Sizes beside a 0 that NumPy cannot count to.
        raise ProtocolError(f"array of shape {shape} is none; send its real sizes") from error


def _scalar(dtype_text: object, number: object) -> np.generic:
    dtype = _dtype(dtype_text)
    if not isinstance(number, (bool, int, float)):
        raise ProtocolError(f"scalar data is {type(number).__name__}, expected a number")
    try:
        scalar: np.generic = dtype.type(number)
    except (OverflowError, ValueError) as error:
        raise ProtocolError(f"scalar {number} does not fit dtype {dtype.str}") from error
    return scalar


def _lebedov(fields: dict[str, Any]) -> Any:
    """msgpack-numpy: `kind` tells records (V) and pickled objects (O) apart from numbers."""
    kind = fields.get("kind", b"")
    if kind not in (b"", "", None):
        raise ProtocolError(
            "msgpack-numpy's records and pickled objects are refused; send bool, integers or floats"
        )
    if fields.keys() - _LEBEDOV:
        raise ProtocolError(f"msgpack-numpy's array has the keys {', '.join(sorted(_LEBEDOV))}")
    dtype, data = _text(fields["type"]), fields["data"]
    if fields["nd"] is True:
        return _array(dtype, fields.get("shape"), data)
    # A scalar comes as its bytes.
    found: np.ndarray = _array(dtype, [1], data)
    return found[0]


def _npy(data: object) -> np.ndarray:
    """A file of `np.save`, its header matched and not evaluated."""
    if not isinstance(data, bytes):
        raise ProtocolError(f"as_npy is {type(data).__name__}, expected the bytes of np.save")
    if not data.startswith(_NPY_MAGIC) or len(data) < 12:
        raise ProtocolError("as_npy is no file of np.save; send what it writes")
    # Version 1 has two bytes of length, later ones four.
    width = 2 if data[6] == 1 else 4
    begin = 8 + width
    end = begin + int.from_bytes(data[8:begin], "little")
    head = _NPY_HEAD.fullmatch(data[begin:end]) if end - begin <= 1024 else None
    if head is None:
        raise ProtocolError("as_npy has a header that np.save does not write for plain numbers")
    sizes = [int(size) for size in head[3].replace(b" ", b"").split(b",") if size]
    fortran = head[2] == b"True"
    array = _array(head[1].decode(), sizes[::-1] if fortran else sizes, data[end:])
    return array.T if fortran else array
