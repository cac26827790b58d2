"""Headers of plain MP4 files, read without FFmpeg, which takes some milliseconds for each.

Plain is one track of pictures in samples that are listed one by one, all of which are shown.
Recordings of one camera differ in their tables alone: what the rest of the header means, FFmpeg
tells of one of them.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

_LARGEST = 16 << 20
"""Bytes of a header."""
_INSIDE = frozenset([b"trak", b"edts", b"mdia", b"minf", b"stbl"])
"""Boxes that hold boxes."""
_TABLES = frozenset([b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"co64", b"elst"])
_TIMES = {b"mvhd": (12, 16, 20), b"mdhd": (12, 16, 20), b"tkhd": (12, 20, 24)}
"""Of boxes with times: where that of their making ends, and where their length in time stands."""
_OTHERS = frozenset([b"stsd", b"hdlr", b"vmhd", b"dinf", b"udta", b"iods"])
_CODECS = frozenset([b"avc1", b"hvc1", b"av01"])
"""Of which the header says all that pictures have in common."""
_BEFORE = frozenset([b"free", b"skip", b"mdat", b"moov"])
"""Boxes of a file behind its first."""
_BIT_RATE = b"btrt"
_ENTRY = 86
"""Bytes of the description of pictures before the boxes in it."""
_WHOLE = (1 << 31) - 1
"""Largest part of a rate that FFmpeg keeps as it is."""


@dataclass(frozen=True)
class Header:
    """What a header says of its own file. kind: the rest of it. rate: Hz, mean; tick: s; stamps:
    int64 `[frames]`, ticks at which frames are decoded, ascending; keys: which of them are key
    frames; end: byte behind the last of all frames.
    """

    kind: bytes
    rate: Fraction
    tick: Fraction
    stamps: np.ndarray
    keys: np.ndarray
    end: int


def header_of(handle: Any) -> Header | None:
    """The header of a file; None where it is not plain, or anything about it is strange."""
    try:
        kind, movie = _outermost(handle)
        found: dict[bytes, bytes] = {}
        for name, content in _leaves(movie):
            if name in found:
                return None
            found[name] = content
        return _header(kind, found)
    except (ValueError, KeyError):
        return None


def _outermost(handle: Any) -> tuple[bytes, bytes]:
    """The content of the box that says what the file is, and of that of the header. ValueError
    where there is none.
    """
    size, at, kind = handle.seek(0, io.SEEK_END), 0, b""
    while at + 8 <= size:
        handle.seek(at)
        head = handle.read(16)
        length, name = int.from_bytes(head[:4]), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16])
        known = name in _BEFORE if kind else name == b"ftyp"
        if not known or not 8 <= length <= size - at:
            break
        if name in (b"ftyp", b"moov"):
            if length > _LARGEST:
                break
            handle.seek(at + 8)
            content = bytes(handle.read(length - 8))
            if kind:
                return kind, content
            kind = content
        at += length
    raise ValueError


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the boxes in one, but for unused room."""
    at = 0
    while at < len(content):
        length, name = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        if not 8 <= length <= len(content) - at:
            raise ValueError
        if name not in (b"free", b"skip"):
            yield name, content[at + 8 : at + length]
        at += length


def _leaves(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    for name, inside in _boxes(content):
        if name in _INSIDE:
            yield from _leaves(inside)
        elif name in _TABLES or name in _TIMES or name in _OTHERS:
            yield name, inside
        else:
            raise ValueError


def _header(kind: bytes, found: dict[bytes, bytes]) -> Header:
    """ValueError, KeyError where a table is missing or disagrees with the others."""
    ticks = int.from_bytes(found[b"mdhd"][12:16])
    counts, steps = _numbers(found[b"stts"], 2).T
    sizes, stamps = _sizes(found[b"stsz"]), np.cumsum(np.repeat(steps, counts))
    total = int(stamps[-1])
    rate = Fraction(ticks * len(stamps), total) if total else Fraction(0)
    sound = len(stamps) == len(sizes) and (steps > 0).all() and (sizes > 0).all()
    if not sound or max(rate.numerator, rate.denominator, total) > _WHOLE:
        raise ValueError
    stamps -= np.repeat(steps, counts)
    if b"elst" in found and not _shows_all(found, stamps, ticks):
        raise ValueError
    keys = np.ones(len(stamps), bool)
    if b"stss" in found:
        places = _numbers(found[b"stss"], 1)[:, 0] - 1
        if not len(places) or (np.diff(places, prepend=-1) < 1).any():
            raise ValueError
        if places[-1] >= len(keys):
            raise ValueError
        keys[:] = False
        keys[places] = True
    kind += b"".join(name + _lasting(name, content) for name, content in found.items())
    return Header(kind, rate, Fraction(1, ticks), stamps, keys, _end(found, sizes))


def _lasting(name: bytes, content: bytes) -> bytes:
    """What recordings of one camera have in common of a box."""
    if name in _TABLES:
        return b""
    if name in _TIMES:
        begin, length, behind = _TIMES[name]
        # Others have longer numbers.
        if content[0] or len(content) < behind:
            raise ValueError
        return content[:4] + content[begin:length] + content[behind:]
    if name != b"stsd":
        return content
    alone = content[4:8] == b"\0\0\0\1" and int.from_bytes(content[8:12]) == len(content) - 8
    if not alone or content[12:16] not in _CODECS:
        raise ValueError
    boxes = _boxes(content[8 + _ENTRY :])
    return content[12 : 8 + _ENTRY] + b"".join(n + c for n, c in boxes if n != _BIT_RATE)


def _numbers(content: bytes, width: int) -> np.ndarray:
    """The rows of a table: int64 `[rows, width]`."""
    count = int.from_bytes(content[4:8])
    if content[0] or len(content) != 8 + 4 * width * count or not count:
        raise ValueError
    return np.frombuffer(content, ">u4", offset=8).astype(np.int64).reshape(count, width)


def _sizes(content: bytes) -> np.ndarray:
    """Bytes of each frame."""
    same, count = int.from_bytes(content[4:8]), int.from_bytes(content[8:12])
    if content[0] or same or len(content) != 12 + 4 * count or not count:
        raise ValueError
    return np.frombuffer(content, ">u4", offset=12).astype(np.int64)


def _end(found: dict[bytes, bytes], sizes: np.ndarray) -> int:
    """Byte behind the last frame."""
    if b"stco" in found:
        begins = _numbers(found[b"stco"], 1)[:, 0]
    else:
        high, low = _numbers(found[b"co64"], 2).T
        begins = (high << 32) + low
    first, each, described = _numbers(found[b"stsc"], 3).T
    if first[0] != 1 or (np.diff(first) < 1).any() or (described != 1).any():
        raise ValueError
    # Frames of each chunk.
    repeats = np.diff(first, append=len(begins) + 1)
    if (repeats < 1).any():
        raise ValueError
    frames = np.repeat(each, repeats)
    edges = np.cumsum(np.concatenate([[0], frames]))
    if edges[-1] != len(sizes) or (frames < 1).any():
        raise ValueError
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])[edges]
    return int((begins + np.diff(bytes_before)).max())


def _shows_all(found: dict[bytes, bytes], stamps: np.ndarray, ticks: int) -> bool:
    """Whether the only edit begins with the first frame that is shown and ends behind the last."""
    edit = _numbers(found[b"elst"], 3)
    length, begin, speed = edit[0].tolist()
    shown = stamps
    if b"ctts" in found:
        counts, later = _numbers(found[b"ctts"], 2).T
        if counts.sum() != len(stamps) or (later > _WHOLE).any():
            return False
        shown = stamps + np.repeat(later, counts)
    end = begin + length * ticks // int.from_bytes(found[b"mvhd"][12:16])
    plain = len(edit) == 1 and speed == 1 << 16 and begin == shown.min()
    return plain and int(shown.max()) < end
