"""How much one message may hold, told from its headers before anything is made of it.

A msgpack list of a million empty lists is a megabyte on the wire and a second of everybody's time
once it is unpacked. Here nothing is unpacked: one walk over the headers, which stops at the first
excess.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgpack

from gwp.errors import ProtocolError


@dataclass(frozen=True)
class Bounds:
    """What one message may hold.

    depth:      maps and lists inside each other
    items:      numbers, texts, arrays, keys, ..., all of them together
    containers: maps and lists together; an array counts as two, itself and its shape
    text:       bytes of one text
    """

    depth: int = 10
    items: int = 8192
    containers: int = 2048
    text: int = 16384


BOUNDS = Bounds()
"""64 observations of a robot with three cameras have some 4000 items in 1200 maps and lists."""

FROM_ENDPOINT = Bounds(items=1 << 18, containers=1 << 16, text=1 << 20)
"""For what a robot reads: an endpoint of many robots says more at its handshake than a robot ever
does, and many observations have as many answers.
"""

_SINGLE = 260
"""Bytes of a field that is looked at before its message is unpacked."""
_RUN = 16
"""Entries from which on a list is looked at as a whole."""
_FIX = "this is no msgpack message; send one msgpack map per binary frame"


def _fixed_sizes() -> bytes:
    """Bytes of an item by its first byte; 0 where that alone does not tell."""
    sizes = bytearray(256)
    sizes[0x00:0x80] = b"\x01" * 128
    sizes[0xE0:0x100] = b"\x01" * 32
    for first in (0xC0, 0xC2, 0xC3):
        sizes[first] = 1
    # Short texts, then numbers, then extensions of fixed size.
    for length in range(32):
        sizes[0xA0 + length] = 1 + length
    for first, size in zip(range(0xCA, 0xD4), (5, 9, 2, 3, 5, 9, 2, 3, 5, 9), strict=True):
        sizes[first] = size
    for first, size in zip(range(0xD4, 0xD9), (3, 4, 6, 10, 18), strict=True):
        sizes[first] = size
    return bytes(sizes)


_SIZES = _fixed_sizes()
# First byte -> how the length is written, and what comes before the content besides it.
_LENGTHS = {
    0xC4: (struct.Struct(">B"), 1),
    0xC5: (struct.Struct(">H"), 1),
    0xC6: (struct.Struct(">I"), 1),
    0xC7: (struct.Struct(">B"), 2),
    0xC8: (struct.Struct(">H"), 2),
    0xC9: (struct.Struct(">I"), 2),
    0xD9: (struct.Struct(">B"), 1),
    0xDA: (struct.Struct(">H"), 1),
    0xDB: (struct.Struct(">I"), 1),
}
_TEXTS = (0xD9, 0xDA, 0xDB)
# First byte -> how many entries follow is written so, and of how many items an entry is.
_COUNTS = {
    0xDC: (struct.Struct(">H"), 1),
    0xDD: (struct.Struct(">I"), 1),
    0xDE: (struct.Struct(">H"), 2),
    0xDF: (struct.Struct(">I"), 2),
}


def check_bounds(data: bytes, bounds: Bounds = BOUNDS) -> None:
    """ProtocolError when `data` is not one whole msgpack item, or holds more than `bounds`.

    At most `bounds.items` headers are looked at, whatever is in them.
    """
    try:
        end, _ = _walk(data, bounds)
    except (IndexError, struct.error) as error:
        raise ProtocolError(f"the message ends before its content does: {_FIX}") from error
    if end > len(data):
        raise ProtocolError(f"the message ends before its content does: {_FIX}")
    if end < len(data):
        raise ProtocolError(f"{len(data) - end} bytes follow the message: {_FIX}")


def glance(data: bytes, names: Collection[str], items: int = 512) -> dict[str, Any]:
    """Texts and numbers that stand under `names` in a message that is a map, as far as so many
    items tell; nothing of anything else. For who has to know what a message is before it is its
    turn to be unpacked: it is bounded, and says nothing of whether the message is a good one.
    """
    found: dict[str, Any] = {}
    bounds = Bounds(items=items)
    try:
        at, entries, each = _counted(data, 0, data[0])
        used = entries * each
        for _ in range(entries if each == 2 else 0):
            value_at, used = _walk(data, bounds, at, used)
            key = _single(data[at:value_at])
            at, used = _walk(data, bounds, value_at, used)
            if isinstance(key, str) and key in names:
                found[key] = _single(data[value_at:at])
    except (ProtocolError, IndexError, struct.error, ValueError):
        # Whoever unpacks it will say what is wrong.
        pass
    return {key: value for key, value in found.items() if value is not None}


def _single(data: bytes) -> str | float | None:
    """A short text or a number; None for whatever else it is."""
    if not data or len(data) > _SINGLE:
        return None
    value = msgpack.unpackb(data)
    return value if isinstance(value, (str, int, float)) else None


def _walk(data: bytes, bounds: Bounds, at: int = 0, items: int = 1) -> tuple[int, int]:
    """Where the item at `at` ends, and `items` with those inside it. IndexError or struct.error
    past the end.
    """
    left, containers = 1, 0
    # Items that are left of the maps and lists around the current one.
    around: list[int] = []
    while True:
        while not left:
            if not around:
                return at, items
            left = around.pop()
        left -= 1
        first = data[at]
        if size := _SIZES[first]:
            at += size
            continue
        if first in _LENGTHS:
            at = _past_bytes(data, at, first, bounds)
            continue
        at, entries, each = _counted(data, at, first)
        inside = entries * each
        items += inside
        containers += 1
        if items > bounds.items or containers > bounds.containers or len(around) >= bounds.depth:
            raise ProtocolError(_excess(items, containers, len(around) + 1, bounds))
        run = _run(data, at, inside) if inside >= _RUN and each == 1 else 0
        if run:
            at += run
        else:
            around.append(left)
            left = inside


def _past_bytes(data: bytes, at: int, first: int, bounds: Bounds) -> int:
    """Where a text, bytes or an extension ends."""
    form, before = _LENGTHS[first]
    (length,) = form.unpack_from(data, at + 1)
    if first in _TEXTS and length > bounds.text:
        raise ProtocolError(
            f"the message holds a text of {length} bytes, up to {bounds.text} are read; send "
            "pictures and other data as bytes or arrays"
        )
    return at + before + form.size + int(length)


def _counted(data: bytes, at: int, first: int) -> tuple[int, int, int]:
    """Where the entries of a map or list begin, how many there are, and items per entry."""
    if first in _COUNTS:
        form, each = _COUNTS[first]
        (entries,) = form.unpack_from(data, at + 1)
        return at + 1 + form.size, int(entries), each
    if 0x80 <= first < 0xA0:
        return at + 1, first & 0x0F, 2 if first < 0x90 else 1
    raise ProtocolError(f"byte {first:#x} begins nothing in msgpack: {_FIX}")


def _run(data: bytes, at: int, count: int) -> int:
    """Bytes of `count` numbers that are all written alike, as in a list of floats; 0: look at
    each.
    """
    first = data[at]
    if first < 0x80:
        return count if data[at : at + count].isascii() and at + count <= len(data) else 0
    # Floats and integers of one width: every so many bytes the same first byte.
    if not 0xCA <= first <= 0xD3:
        return 0
    size = _SIZES[first]
    alike = data[at : at + count * size : size] == bytes([first]) * count
    return count * size if alike else 0


def _excess(items: int, containers: int, depth: int, bounds: Bounds) -> str:
    if items > bounds.items:
        return (
            f"the message holds {items} items or more, up to {bounds.items} are read; send numbers "
            "as arrays, not as lists"
        )
    if containers > bounds.containers:
        return (
            f"the message holds more than {bounds.containers} maps and lists; send fewer "
            "observations together"
        )
    return f"the message is nested {depth} deep, up to {bounds.depth} are read; send it flatter"
