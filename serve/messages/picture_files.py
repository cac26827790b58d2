"""JPEG and PNG files as far as a picture needs them: size, orientation, and the parts that hold
the pixels.

Whoever sends a file may put anything into it. Comments, profiles, thumbnails and EXIF are left out
here, so that no library reads them: some of their forms cost it hours.
"""

import struct
from dataclasses import dataclass

_SEGMENTS = 1024
"""Markers before the pixels of a JPEG."""
_CHUNKS = 8192
"""Chunks of a PNG: 16 MiB in pieces of 2 KiB."""
_SCANS = 20
"""Passes over a JPEG; progressive files have some ten."""
_FILL = 16
"""Fill bytes before a marker."""
_TAGS = 256
"""Entries of EXIF that are looked through for the orientation."""
_ORIENTATION, _SHORT = 0x0112, 3

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
# JFIF and Adobe's, which say how colours are meant; all other application segments go.
_COLOUR_SEGMENTS = (0xE0, 0xEE)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


@dataclass(frozen=True)
class PictureFile:
    """What a picture needs of its file.

    width, height: pixels, as stored. orientation: EXIF's number, 1 to 8. data: a JPEG or PNG of
    the same pixels with nothing else in it
    """

    width: int
    height: int
    orientation: int
    data: bytes


def is_picture_file(data: bytes) -> bool:
    """Whether these bytes begin as JPEG or PNG do."""
    return data.startswith((_PNG, _JPEG))


def read_picture_file(data: bytes) -> PictureFile:
    """What a picture needs of a JPEG or PNG. ValueError says what is wrong with it."""
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(_JPEG):
            return _jpeg(data)
    except (IndexError, struct.error) as error:
        raise ValueError("that end in their header: it was cut short") from error
    raise ValueError("that are no JPEG or PNG image")


def _png(data: bytes) -> PictureFile:
    at, orientation = len(_PNG), 1
    kept = [_PNG]
    size: tuple[int, int] | None = None
    for _ in range(_CHUNKS):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ValueError("of a PNG that was cut short")
        if size is None:
            if name != b"IHDR" or length != 13:
                raise ValueError("of a PNG without a header")
            width, height, depth = struct.unpack_from(">IIB", data, at + 8)
            size = (width, height)
            if depth > 8:
                raise ValueError(
                    "of a PNG with 16 bits a channel, as depth has; send uint8 colours"
                )
        if name == b"acTL":
            raise ValueError("of an animated PNG; send one picture")
        if name == b"eXIf":
            orientation = _orientation(data[at + 8 : min(end, at + 65536)])
        if name in _PIXEL_CHUNKS:
            kept.append(data[at:end])
        at = end
        if name == b"IEND":
            return PictureFile(*size, orientation, b"".join(kept))
    raise ValueError(f"of a PNG in more than {_CHUNKS} chunks; write it in larger ones")


def _jpeg(data: bytes) -> PictureFile:
    at, orientation = 2, 1
    kept = [b"\xff\xd8"]
    size: tuple[int, int] | None = None
    for _ in range(_SEGMENTS):
        begin, fill = at, 0
        while data[at] == 0xFF and fill <= _FILL:
            at, fill = at + 1, fill + 1
        marker = data[at]
        if not 1 <= fill <= _FILL or marker < 0xC0:
            raise ValueError("of a JPEG that is damaged before its pixels")
        (length,) = struct.unpack_from(">H", data, at + 1)
        end = at + 1 + length
        if end > len(data) or length < 2:
            raise ValueError("of a JPEG that was cut short")
        if marker in _FRAMES:
            if size is not None:
                raise ValueError("of a JPEG with two frames; send one picture")
            size = _frame(data, at)
        if marker == 0xE1 and data.startswith(_EXIF, at + 3):
            orientation = _orientation(data[at + 3 + len(_EXIF) : end])
        if marker == 0xDA:
            return _with_pixels(data, begin, kept, size, orientation)
        # Tables and frames have to stay; names and comments are for others.
        if marker < 0xE0 or marker in _COLOUR_SEGMENTS:
            kept.append(data[begin:end])
        at = end
    raise ValueError(f"of a JPEG with more than {_SEGMENTS} segments before its pixels")


def _frame(data: bytes, at: int) -> tuple[int, int]:
    """Width and height in a frame header, whose marker ends at `at`."""
    depth, height, width, channels = struct.unpack_from(">BHHB", data, at + 3)
    if depth != 8:
        raise ValueError(f"of a JPEG with {depth} bits a channel; send uint8 colours")
    if channels == 4:
        raise ValueError("of a CMYK JPEG, whose colours depend on its inks; send RGB")
    return int(width), int(height)


def _with_pixels(
    data: bytes, at: int, kept: list[bytes], size: tuple[int, int] | None, orientation: int
) -> PictureFile:
    if size is None:
        raise ValueError("of a JPEG without a frame")
    # Among pixels these two bytes are a marker and nothing else.
    if data.count(b"\xff\xda", at) > _SCANS:
        raise ValueError(f"of a JPEG in more than {_SCANS} scans; write it in fewer")
    return PictureFile(*size, orientation, b"".join([*kept, data[at:]]))


def _orientation(exif: bytes) -> int:
    """The number of EXIF's orientation, 1 where it says none or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, first)
        for i in range(min(count, _TAGS)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, first + 2 + 12 * i)
            if tag == _ORIENTATION:
                return int(value) if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
