"""Compressed pictures as a robot sends them, decoded in the caller's thread with bounded memory."""

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gwp.errors import ObservationError
from gwp.policy.contract import MAX_SIDE
from serve.messages.picture_files import read_picture_file

if TYPE_CHECKING:
    from PIL import Image

_OPAQUE = 255
_DAMAGE = (OSError, EOFError, SyntaxError, ValueError, LookupError, struct.error)
"""What Pillow raises where a file is not what it should be."""


@dataclass
class Pixels:
    """How many pixels the pictures of one message may have, as stored.

    each: of one picture. together: of all of them; a decoded pixel takes up to 8 bytes. taken: so
    far
    """

    each: int = 4 << 20
    together: int = 32 << 20
    taken: int = 0

    def take(self, name: str, width: int, height: int) -> None:
        """Count a picture. ObservationError when it is too large, or one too many."""
        if max(width, height) > MAX_SIDE or width * height > self.each:
            raise ObservationError(
                f"images.{name}: got {width}x{height} pixels, up to {self.each / 1e6:.3g} million "
                f"are decoded, on sides of up to {MAX_SIDE}; scale it down before sending"
            )
        self.taken += width * height
        if self.taken > self.together:
            raise ObservationError(
                f"images.{name}: the pictures of this message have more than "
                f"{self.together / 1e6:.3g} million pixels together; send fewer or smaller ones"
            )


def decode_picture(name: str, data: bytes, pixels: Pixels | None = None) -> np.ndarray:
    """uint8 `[H, W, 3]`, RGB, upright as EXIF says, of a JPEG or PNG; grey and palettes become RGB.

    The size is checked before a pixel is decoded. ObservationError for what is no such picture,
    is too large, has transparent parts, inks instead of colours, or more than 8 bits a channel.
    pixels: what pictures of the same message have taken; None: this is the only one
    """
    from PIL import Image

    try:
        file = read_picture_file(data)
    except ValueError as error:
        raise ObservationError(f"images.{name}: got {len(data)} bytes {error}") from error
    (pixels or Pixels()).take(name, file.width, file.height)
    try:
        with Image.open(io.BytesIO(file.data), formats=("JPEG", "PNG")) as image:
            # Both have read the same header; the limit holds for what is decoded.
            if image.size != (file.width, file.height):
                raise ValueError("two sizes")
            rgb = _opaque(name, image)
    except ObservationError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ObservationError(
            f"images.{name}: got {len(data)} bytes of a JPEG or PNG that is damaged or cut short"
        ) from error
    return _upright(np.asarray(rgb), file.orientation)


def _opaque(name: str, image: "Image.Image") -> "Image.Image":
    """The picture as RGB, as training converts it, where no part of it can be seen through."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        # What colour a transparent pixel has, nobody sees; programs write any.
        if np.asarray(image.getchannel("A")).min() < _OPAQUE:
            raise ObservationError(
                f"images.{name}: has transparent parts, whose colours mean nothing; send RGB"
            )
    return image.convert("RGB")


def _upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """`[H, W, 3]` turned or mirrored as a number of EXIF says."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    # Behind the exchange of axes: which of them run backwards.
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)
