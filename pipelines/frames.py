"""How near imagined frames come to the real ones: sums that ranks add up, and a small picture."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

_MOVED = 12
"""Difference to the first frame from which on a pixel counts as moving, of 255."""
_WINDOW = 7
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_GAP = 2
_COLUMNS = 5
_WIDEST = 160


def error_sums(real: np.ndarray, guess: np.ndarray) -> list[float]:
    """Squared errors and their number, on the whole and where something moves, and structural
    similarity and its number, of the frames behind the first.

    real, guess: uint8 `[n, T, H, W, 3]`; the first of `real` is what was seen
    """
    difference = (guess[:, 1:].astype(np.float64) - real[:, 1:]) ** 2
    far = np.abs(real[:, 1:].astype(np.int16) - real[:, :1]).max(-1) >= _MOVED
    similar = ssim(real[:, 1:], guess[:, 1:])
    return [
        float(difference.sum()),
        float(difference.size),
        float(difference[far].sum()),
        3.0 * float(far.sum()),
        float(similar.sum()),
        float(similar.size),
    ]


def told(sums: Sequence[float]) -> dict[str, float]:
    """`psnr` and `psnr_moving` (dB) and `ssim` of such sums; what nothing is known of is left
    out.
    """
    found = {}
    for name, error, count in (("psnr", sums[0], sums[1]), ("psnr_moving", sums[2], sums[3])):
        if count:
            # Equal to the last digit: as good as 8 bits can say.
            found[name] = 10 * float(np.log10(255**2 / max(error / count, 1e-2)))
    if sums[5]:
        found["ssim"] = sums[4] / sums[5]
    return found


def ssim(real: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Structural similarity of grey frames, float64 `[n, T]`, in windows of 7 x 7 pixels (Wang et
    al., 2004); frames uint8 `[n, T, H, W, 3]`. Of frames smaller than a window: none, `[0]`.
    """
    if min(real.shape[2:4]) < _WINDOW:
        return np.zeros(0)
    a, b = (
        torch.from_numpy(some.mean(-1).reshape(-1, 1, *some.shape[2:4])) for some in (real, guess)
    )

    def mean(x: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(x, _WINDOW, 1)

    of_a, of_b = mean(a), mean(b)
    # Of samples, as is usual.
    scale = _WINDOW**2 / (_WINDOW**2 - 1)
    var_a = scale * (mean(a * a) - of_a**2)
    var_b = scale * (mean(b * b) - of_b**2)
    both = scale * (mean(a * b) - of_a * of_b)
    value = (2 * of_a * of_b + _C1) * (2 * both + _C2)
    value = value / ((of_a**2 + of_b**2 + _C1) * (var_a + var_b + _C2))
    found: np.ndarray = value.mean((1, 2, 3)).numpy().reshape(real.shape[:2])
    return found


def strip(real: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """One picture uint8 `[h, w, 3]` of some samples: of each the real frames in a row, and below
    them the imagined ones, some of them where there are many.

    real, guess: uint8 `[n, T, H, W, 3]`
    """
    n, T, H, W, _ = real.shape
    shown = np.unique(np.linspace(0, T - 1, min(T, _COLUMNS)).round().astype(int))
    fewer = max(1, -(-W // _WIDEST))
    rows = []
    for i in range(n):
        for frames in (real[i], guess[i]):
            cells = []
            for t in shown:
                cells += [frames[t, ::fewer, ::fewer], _gap(-(-H // fewer), _GAP)]
            rows += [np.concatenate(cells[:-1], 1), _gap(_GAP, 0)]
        rows[-1] = _gap(3 * _GAP, 0)
    width = rows[0].shape[1]
    return np.concatenate([row if row.shape[1] else _gap(len(row), width) for row in rows[:-1]])


def _gap(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)
