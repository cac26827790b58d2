"""Rotations as numbers: quaternions, pairs of axes (rot6d) and whole matrices.

A pair `[..., 6]` is two axes of length 1 at a right angle, one behind the other: the first two
columns of a rotation matrix, or its first two rows. Nothing here depends on which, for the way
from one rotation to another is the same either way. A matrix `[..., 9]` is three such axes, and
nothing depends on the order there, too.
"""

import numpy as np

_EDGE = 1e-6
"""Lengths and angles below which there is nothing to divide by; also how far from length 1 and
from a right angle the axes of a sound pair may be, which float32 leaves.
"""


def one_sign(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions `[..., p, 4]`, each in the sign that is nearer to the one before."""
    dots = (quaternions[..., 1:, :] * quaternions[..., :-1, :]).sum(-1)
    flips = np.cumprod(np.where(dots < 0, -1.0, 1.0), -1)
    out = np.array(quaternions)
    out[..., 1:, :] *= flips[..., None]
    return out


def near(quaternions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Quaternions `[..., 4]` in the sign that is nearer to the reference `[..., 4]`."""
    away = (quaternions * reference).sum(-1, keepdims=True) < 0
    return np.where(away, -quaternions, quaternions)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[..., n]` of length 1; one without a length stays as it is."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(length > _EDGE, length, 1.0))


def slerp(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Quaternions `[n, 4]` on the shorter way from one rotation to another."""
    dot = (before * after).sum(-1, keepdims=True)
    after = np.where(dot < 0, -after, after)
    angle = np.arccos(np.clip(np.abs(dot), 0, 1))
    # Of equal ones the way has no length to divide by; a straight line is as good there.
    close = np.sin(angle) < _EDGE
    sine = np.where(close, 1.0, np.sin(angle))
    first = np.where(close, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(close, share, np.sin(share * angle) / sine)
    return first * before + second * after


def upright(pairs: np.ndarray) -> np.ndarray:
    """Pairs of axes `[..., 6]` with length 1 and a right angle (Gram-Schmidt: the first axis
    keeps its direction); sound ones to the last bit as they are.
    """
    first, second = pairs[..., :3], pairs[..., 3:]
    lengths = np.stack([(first**2).sum(-1), (second**2).sum(-1)], -1)
    sound = (np.abs(lengths - 1) < 2 * _EDGE).all(-1)
    sound &= np.abs((first * second).sum(-1)) < _EDGE
    a = _direction(first, np.array([1.0, 0.0, 0.0]))
    b = second - (second * a).sum(-1, keepdims=True) * a
    # Parallel axes name no rotation; any right angle is as good.
    other = np.where(np.abs(a[..., :1]) < 0.9, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    b = _direction(b, other - (other * a).sum(-1, keepdims=True) * a)
    return np.where(sound[..., None], pairs, np.concatenate([a, b], -1))


def third_axis(pairs: np.ndarray) -> np.ndarray:
    """Of pairs of axes `[..., 6]` the one at a right angle to both, `[..., 3]`, right-handed."""
    return np.cross(pairs[..., :3], pairs[..., 3:])


def proper(matrices: np.ndarray) -> np.ndarray:
    """Three axes `[..., 9]` as those of a rotation: the first two as `upright` makes them, the
    third at a right angle to both; sound ones to the last bit as they are.
    """
    pairs = upright(matrices[..., :6])
    third = third_axis(pairs)
    sound = (pairs == matrices[..., :6]).all(-1)
    sound &= (np.abs(third - matrices[..., 6:]) < 2 * _EDGE).all(-1)
    return np.where(sound[..., None], matrices, np.concatenate([pairs, third], -1))


def between_pairs(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Pairs of axes `[n, 6]` on the shorter way from one rotation to another, at a share
    `[n, 1]` of it. NaN where one of the two is no number.
    """
    bad = ~(np.isfinite(before) & np.isfinite(after)).all(-1, keepdims=True)
    identity = np.array([1.0, 0, 0, 0, 1.0, 0])
    first, second = (
        _quaternions(np.where(bad, identity, upright(rows))) for rows in (before, after)
    )
    return np.where(bad, np.nan, _pairs(unit(slerp(first, second, share))))


def _direction(vectors: np.ndarray, instead: np.ndarray) -> np.ndarray:
    """Vectors `[..., 3]` of length 1, another where one has no length."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit(np.where(length > _EDGE, vectors, instead))


def _quaternions(pairs: np.ndarray) -> np.ndarray:
    """x, y, z, w `[n, 4]` of the matrices whose first columns are sound pairs `[n, 6]`."""
    a, b = pairs[:, :3], pairs[:, 3:]
    c = np.cross(a, b)
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = a.T, b.T, c.T
    # Bar-Itzhack: the main axis of this matrix, at any angle with full precision.
    rows = [
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    return np.asarray(np.linalg.eigh(np.moveaxis(np.array(rows), -1, 0))[1][..., -1])


def _pairs(quaternions: np.ndarray) -> np.ndarray:
    """The first two columns `[n, 6]` of the matrices of x, y, z, w `[n, 4]`, length 1."""
    x, y, z, w = quaternions.T
    first = [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)]
    second = [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)]
    return np.stack([*first, *second], -1)
