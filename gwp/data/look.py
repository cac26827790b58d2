"""How one view of a training sample is cut out and lit, drawn at random so that a small data set
is not learnt by heart. Acting sees none of it: `PLAIN`.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from gwp.data.robot.embodiment import Slot

_MIDDLE = 128.0


@dataclass(frozen=True)
class Look:
    """The same for all frames of a view.

    at:    shares of the horizontal and the vertical slack that are cut on the left and on top
    zoom:  the view is enlarged by this much before it is cut
    light: new values of all values of each colour, uint8 `[256, 3]`; None: as they are
    """

    at: tuple[float, float] = (0.5, 0.5)
    zoom: float = 1.0
    light: np.ndarray | None = field(default=None, compare=False)

    def lit(self, picture: np.ndarray) -> None:
        """Change the light of a picture uint8 `[H, W, 3]`, in place."""
        if self.light is not None:
            # Pillow wants the values of one colour after those of another; numpy takes five times as
            # long.
            table = self.light.T.flatten().tolist()
            picture[:] = np.asarray(Image.fromarray(picture).point(table))


PLAIN = Look()


def draw_looks(
    slots: tuple[Slot, ...], rng: np.random.Generator | None, zoom: float = 1.0, light: float = 0.0
) -> dict[Slot, Look]:
    """A look for each slot; `rng` None: the plain one.

    zoom:  views are enlarged by a factor between 1 and this
    light: contrast, brightness (of half the range) and the strength of each colour change by up to
        this share
    All slots draw, whether a sample has them or not, so that a view's look does not depend on the
    other cameras; and always as often, so that neither depends on the other.
    """
    if rng is None:
        return dict.fromkeys(slots, PLAIN)
    positions = rng.random((len(slots), 2))
    others = rng.random((len(slots), 6))
    return {
        slot: Look(
            (float(at[0]), float(at[1])),
            1.0 + (zoom - 1.0) * float(other[0]),
            _table(light * (2 * other[1:] - 1)) if light else None,
        )
        for slot, at, other in zip(slots, positions, others, strict=True)
    }


def _table(change: np.ndarray) -> np.ndarray:
    """`Look.light` of changes `[5]`: of contrast, brightness, and red, green and blue."""
    values = np.arange(256.0)[:, None]
    lit = (1 + change[0]) * (values - _MIDDLE) + _MIDDLE * (1 + change[1])
    table: np.ndarray = (lit * (1 + change[2:])).round().clip(0, 255).astype(np.uint8)
    return table
