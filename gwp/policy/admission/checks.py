"""Pictures and vectors of an observation, checked: what came, what is expected."""

from typing import Any, NoReturn

import numpy as np

from gwp.errors import ObservationError

MIN_SIDE, MAX_SIDE = 8, 8192
"""Allowed height and width of a camera image, pixels."""


def picture(name: str, image: object) -> np.ndarray:
    """A camera image uint8 `[height, width, 3]`, contiguous; ObservationError when it is none."""
    if not isinstance(image, np.ndarray):
        _fail(
            f"images.{name}", f"a {type(image).__name__}", "a uint8 array [height, width, 3], RGB"
        )
    # Not converted here: floats may mean 0..1 or 0..255, and nobody could tell.
    if image.dtype != np.uint8:
        fix = "; multiply by 255 and convert" if image.dtype.kind == "f" else ""
        _fail(f"images.{name}", f"dtype {image.dtype}", f"uint8 values 0..255, RGB{fix}")
    # Channels first, as torch has them; where both could be meant, they come last.
    if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    # One picture per camera: no batch, no history, no alpha.
    if image.ndim != 3 or image.shape[2] != 3:
        _fail(
            f"images.{name}",
            f"shape {list(image.shape)}",
            "[height, width, 3] or [3, height, width], without a batch axis",
        )
    if not (MIN_SIDE <= image.shape[0] <= MAX_SIDE and MIN_SIDE <= image.shape[1] <= MAX_SIDE):
        _fail(
            f"images.{name}",
            f"{image.shape[1]}x{image.shape[0]} pixels",
            f"{MIN_SIDE} to {MAX_SIDE} on each side",
        )
    return np.ascontiguousarray(image)


def vector(field: str, value: Any, shape: tuple[int, ...], names: tuple[str, ...]) -> np.ndarray:
    """Numbers of a robot, float32 of `shape` (-1: any number of rows), finite; ObservationError
    when they are not.
    """
    expected = f"{['k' if n < 0 else n for n in shape]}".replace("'", "") + f" ({', '.join(names)})"
    if not isinstance(value, np.ndarray):
        _fail(field, f"a {type(value).__name__}", f"an array {expected}")
    # Booleans and complex numbers are no values of a joint, nor is text.
    if value.dtype.kind not in "fiu":
        _fail(field, f"dtype {value.dtype}", "float32 in robot units")
    if value.ndim != len(shape) or value.shape[-1] != shape[-1]:
        _fail(field, f"shape {list(value.shape)}", expected)
    # A copy: the array may be a view of the message. float64 past the range of float32 becomes
    # infinite, and is then refused with the rest.
    with np.errstate(over="ignore"):
        value = np.array(value, np.float32)
    # By dimension, over all rows: the name says where to look.
    broken = (~np.isfinite(value)).reshape(-1, shape[-1]).any(axis=0)
    if broken.any():
        _fail(
            field,
            f"NaN or infinity in {', '.join(names[i] for i in np.flatnonzero(broken))}",
            "finite robot units",
        )
    return value


def _fail(field: str, got: str, expected: str) -> NoReturn:
    raise ObservationError(f"{field}: got {got}, expected {expected}")
