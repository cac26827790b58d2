"""Pictures in a message: what is decoded is what training would see, and nothing costs more than
its pixels.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from gwp.data.formats.pictures import as_rgb
from gwp.errors import ObservationError
from serve.messages.picture_files import read_picture_file
from serve.messages.pictures import Pixels, decode_picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
ORIENTATION = 0x0112


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(number: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    # A tag before it, as cameras write.
    exif[0x010F] = "maker"
    return saved(Image.fromarray(RGB), kind, exif=exif.tobytes())


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("number", range(1, 9))
def test_pictures_are_upright_as_exif_says(number: int, kind: str) -> None:
    data = with_orientation(number, kind)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(decode_picture("top", data), wanted)
    assert np.array_equal(wanted, as_rgb(data, "top"))
    assert (wanted.shape == RGB.shape) == (number < 5)


PALETTE = Image.fromarray(RGB).quantize(16)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(Image.fromarray(RGB[..., 0])), id="grey PNG"),
        pytest.param(saved(Image.fromarray(RGB[..., 0]), "JPEG"), id="grey JPEG"),
        pytest.param(saved(Image.fromarray(RGB[..., 0] > 99)), id="black and white"),
        pytest.param(saved(PALETTE), id="palette"),
        pytest.param(saved(PALETTE, bits=4), id="palette of four bits"),
        pytest.param(saved(Image.fromarray(RGB).convert("RGBA")), id="opaque alpha"),
        pytest.param(saved(Image.fromarray(RGB).convert("LA")), id="grey with opaque alpha"),
        pytest.param(saved(Image.fromarray(RGB), "JPEG", progressive=True), id="progressive"),
        pytest.param(saved(Image.fromarray(RGB), "JPEG", subsampling=0), id="4:4:4"),
        pytest.param(
            saved(Image.fromarray(RGB), "JPEG", icc_profile=b"x" * 200_000, comment=b"hello"),
            id="profile in several segments",
        ),
        pytest.param(saved(Image.fromarray(RGB), dpi=(72, 72), icc_profile=b"x" * 99), id="dpi"),
    ],
)
def test_other_forms_become_the_colours_that_training_sees(data: bytes) -> None:
    got = decode_picture("top", data)
    assert got.dtype == np.uint8
    assert got.shape == RGB.shape
    assert got.flags.c_contiguous
    assert np.array_equal(got, as_rgb(data, "top"))


def seen_through() -> bytes:
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    alpha[3, 3] = 254
    return saved(Image.fromarray(np.dstack([RGB, alpha])))


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


PNG = saved(Image.fromarray(RGB))
JPEG = saved(Image.fromarray(RGB), "JPEG")
DEEP = saved(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)))
SCAN = JPEG.index(b"\xff\xda")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "got 0 bytes that are no JPEG or PNG"),
        (b"GIF89a", "got 6 bytes that are no JPEG or PNG"),
        (saved(Image.fromarray(RGB), "BMP"), "no JPEG or PNG"),
        (PNG[:100], "cut short"),
        (PNG[:-30], "cut short"),
        (PNG[:20], "cut short"),
        (JPEG[:200], "cut short"),
        (JPEG[:-300], "damaged or cut short"),
        (PNG[:60] + b"\x55" * 30 + PNG[90:], "damaged or cut short"),
        (b"\xff\xd8\xff\0" * 10, "damaged before its pixels"),
        (b"\xff\xd8" + b"\xff" * 1000, "damaged before its pixels"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 2000, "more than 1024 segments"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 2 + JPEG[SCAN:], "without a frame"),
        (JPEG + JPEG[SCAN:] * 21, "more than 20 scans"),
        (PNG[:33] + chunk(b"tEXt", b"") * 9000 + PNG[33:], "more than 8192 chunks"),
        (PNG[:33] + chunk(b"acTL", b"\0" * 8) + PNG[33:], "animated"),
        (PNG[:8] + PNG[33:], "without a header"),
        (DEEP, "16 bits a channel, as depth has"),
        (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "CMYK"),
        (seen_through(), "transparent parts"),
        (saved(PALETTE, transparency=3), "transparent parts"),
        (saved(Image.new("1", (9000, 10))), "9000x10 pixels"),
        (saved(Image.new("1", (3000, 2000))), "3000x2000 pixels, up to 4.19 million"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(data: bytes, words: str) -> None:
    with pytest.raises(ObservationError, match=words) as caught:
        decode_picture("top", data)
    assert str(caught.value).startswith("images.top: ")
    assert "\n" not in str(caught.value)


def test_the_limit_is_a_parameter_and_counts_all_pictures_of_a_message() -> None:
    large = saved(Image.new("1", (3000, 2000)))
    assert decode_picture("top", large, Pixels(each=6_000_000)).shape == (2000, 3000, 3)
    pixels = Pixels(together=3 * 600)
    for _ in range(3):
        decode_picture("top", PNG, pixels)
    with pytest.raises(ObservationError, match="together"):
        decode_picture("top", PNG, pixels)


def hostile_exif() -> bytes:
    """EXIF whose every entry asks for megabytes."""
    entries = struct.pack("<HHII", 0x9999, 1, 15 << 20, 8) * 65000
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 65000) + entries


def test_what_is_no_pixel_is_left_out() -> None:
    """Libraries read EXIF when they open a file: here sixty thousand entries of 15 MB each."""
    exif = hostile_exif()
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part
        for part in (exif[i : i + 60000] for i in range(6, len(exif), 60000))
    )
    filled = JPEG[:2] + segments + JPEG[2:]
    file = read_picture_file(filled)
    assert len(file.data) <= len(JPEG)
    assert np.array_equal(decode_picture("top", filled), as_rgb(JPEG, "top"))
    filled = PNG[:33] + chunk(b"eXIf", exif[6:]) + chunk(b"zTXt", b"a" * 99) + PNG[33:]
    assert read_picture_file(filled).data == PNG
    assert np.array_equal(decode_picture("top", filled), RGB)


def test_random_damage_is_a_picture_or_one_line() -> None:
    rng = np.random.default_rng(1)
    for data in (PNG, JPEG, with_orientation(6, "JPEG"), saved(PALETTE)):
        for _ in range(300):
            damaged = bytearray(data)
            for at in rng.integers(len(damaged), size=rng.integers(1, 5)):
                damaged[at] = rng.integers(256)
            try:
                got = decode_picture("top", bytes(damaged[: rng.integers(1, len(damaged) + 1)]))
            except ObservationError:
                continue
            assert got.shape[2] == 3
