"""TFRecord files and the `tf.train.Example` messages in them, by position, so that what is not
wanted is not read.

A record: length (8 bytes), masked CRC-32C of the length (4), payload, masked CRC-32C of the
payload (4); all little-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwp.errors import DataError, GwpError

BYTES, FLOATS, INTS = 1, 2, 3
"""Kinds of a feature: field numbers of `Feature`."""
# Wire types of protobuf. 2 is a length and as many bytes: texts, messages, packed numbers.
_VARINT, _FIXED64, _GROUP, _FIXED32 = 0, 1, 2, 5
# Two varints, of up to 10 bytes each.
_HEADER = 20
"""Bytes that hold a tag and a length."""
_KEPT = 64 << 20
"""Bytes of the largest payload that is kept in memory while its record is looked at."""


@dataclass(frozen=True)
class Field:
    """A feature: its kind and where the list of its values lies in the file."""

    kind: int
    start: int
    end: int


@dataclass(frozen=True)
class Record:
    """One record of a file.

    start, size: bytes of its payload in the file. crc: the stored checksum. whole: whether the
    payload fits it. payload: what is stored, where it is not larger than is kept in memory.
    """

    start: int
    size: int
    crc: bytes
    whole: bool
    payload: bytes | None


def masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and shifted as TFRecord files store it.

    GwpError without the package that computes it.
    """
    return _masked(_crc32c().value(data))


def _masked(crc: int) -> int:
    # TensorFlow's mask, rotated by 15 bits and shifted: a CRC of data with CRCs inside would
    # say little.
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c() -> Any:
    try:
        import google_crc32c
    except ImportError as error:
        fix = "run `pip install 'gwp[model]'`"
        raise GwpError(f"reading TFRecord files needs google-crc32c; {fix}") from error
    return google_crc32c


def records(handle: Any, size: int) -> Iterator[Record]:
    """Every record of a file of `size` bytes.

    DataError at the first whose length cannot be known, and so where the next begins.
    """
    at = number = 0
    while at < size:
        # Length and its checksum; 16 = these 12 and the 4 of the payload's checksum behind
        # it.
        head = _read(handle, at, 12) if at + 12 <= size else b""
        if len(head) < 12:
            raise DataError(f"record {number} is cut off; the file is truncated")
        length, crc = struct.unpack("<QI", head)
        if masked_crc(head[:8]) != crc:
            raise DataError(
                f"record {number} has a wrong checksum; it is no (uncompressed) TFRecord file, "
                "or damaged"
            )
        if at + 16 + length > size:
            raise DataError(f"record {number} is cut off; the file is truncated")
        yield _record(handle, at + 12, length, number)
        at, number = at + 16 + length, number + 1


def _record(handle: Any, start: int, size: int, number: int) -> Record:
    """One record, read once and in one piece: asking for its parts costs more, here and in a
    store.
    """
    kept = size <= _KEPT
    handle.seek(start)
    # In pieces, so that a giant record takes no more memory than `_KEPT`. `payload` is the
    # last of them, and handed on only where it is all.
    payload, crc = b"", 0
    for begin in range(0, size, _KEPT):
        payload = bytes(handle.read(min(_KEPT, size - begin)))
        crc = _crc32c().extend(crc, payload)
    stored = bytes(handle.read(4))
    if len(stored) < 4:
        raise DataError(f"record {number} is cut off; the file is truncated")
    whole = stored == struct.pack("<I", _masked(crc))
    return Record(start, size, stored, whole, payload if kept else None)


def _read(handle: Any, at: int, count: int) -> bytes:
    handle.seek(at)
    return bytes(handle.read(count))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Value and where it ends."""
    value = shift = 0
    while True:
        # Ten bytes of 7 bits hold any number of 64.
        if at >= len(data) or shift > 63:
            raise DataError("holds no tf.train.Example")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _fields(handle: Any, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, start and end of each field of a message."""
    at = start
    while at < end:
        # The head alone: a value is read by whoever wants it, so pictures are stepped over.
        head = _read(handle, at, min(_HEADER, end - at))
        tag, here = _varint(head, 0)
        number, wire = tag >> 3, tag & 7
        if wire == _GROUP:
            length, here = _varint(head, here)
        elif wire == _VARINT:
            length = _varint(head, here)[1] - here
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise DataError("holds no tf.train.Example")
        begin, at = at + here, at + here + length
        if at > end:
            raise DataError("holds no tf.train.Example")
        yield number, wire, begin, at


def features(handle: Any, start: int, size: int) -> dict[str, Field]:
    """Features of the Example at `start`, by name. DataError when it is none."""
    found: dict[str, Field] = {}
    # Example { Features features = 1 }, Features { map<string, Feature> feature = 1 }:
    # entries of a map are messages with key = 1 and value = 2. Feature has its list under the
    # number of its kind.
    for number, _, a, b in _fields(handle, start, start + size):
        if number != 1:
            continue
        for entry, _, c, d in _fields(handle, a, b):
            if entry != 1:
                continue
            name, value = "", (c, c)
            for part, _, e, f in _fields(handle, c, d):
                if part == 1:
                    name = _read(handle, e, f - e).decode("utf-8", "replace")
                elif part == 2:
                    value = (e, f)
            for kind, _, g, h in _fields(handle, *value):
                found[name] = Field(kind, g, h)
    return found


def values(handle: Any, field: Field) -> list[tuple[int, int]]:
    """Start and end in the file of each value of a list of bytes; nothing of them is read."""
    return [
        (a, b)
        for number, wire, a, b in _fields(handle, field.start, field.end)
        if number == 1 and wire == _GROUP
    ]


def count(handle: Any, field: Field) -> int:
    """Number of values."""
    if field.kind == BYTES:
        return len(values(handle, field))
    # Varints have no fixed length, so they are read to be counted.
    if field.kind == INTS:
        return len(numbers(handle, field))
    return sum((b - a) // 4 for _, _, a, b in _fields(handle, field.start, field.end))


def numbers(handle: Any, field: Field) -> np.ndarray:
    """Values of a list of floats or integers, packed or not: float64 `[n]`."""
    raw = _read(handle, field.start, field.end - field.start)
    if field.kind == FLOATS:
        # Unpacked, each value has a tag of one byte.
        # All at once, for there may be many: a byte of tag, 4 of value.
        if len(raw) % 5 == 0:
            cells = np.frombuffer(raw, np.uint8).reshape(-1, 5)
            if (cells[:, 0] == (1 << 3 | _FIXED32)).all():
                return np.frombuffer(cells[:, 1:].tobytes(), "<f4").astype(np.float64)
        places = [(a, b) for _, _, a, b in _fields(handle, field.start, field.end)]
        if any((b - a) % 4 for a, b in places):
            raise DataError("holds half a number")
        parts = [np.frombuffer(raw[a - field.start : b - field.start], "<f4") for a, b in places]
        return np.concatenate([*parts, np.zeros(0)]).astype(np.float64)
    if field.kind != INTS:
        raise DataError("holds bytes where numbers are expected")
    found = []
    for _, _, a, b in _fields(handle, field.start, field.end):
        at = a - field.start
        while at < b - field.start:
            value, at = _varint(raw, at)
            # Negative numbers are stored as two's complement of 64 bits.
            found.append(value - (1 << 64) if value >> 63 else value)
    return np.array(found, np.float64)
