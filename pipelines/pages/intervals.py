"""How sure a rate is."""

import math

_Z95 = 1.959964


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate (Wilson 1927).

    Sound for few episodes and for 0 %, as the normal interval is not.
    """
    # No episode says nothing: any rate is possible.
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    z2 = _Z95**2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    spread = math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    half = _Z95 * spread / (1 + z2 / episodes)
    return max(0.0, centre - half), min(1.0, centre + half)
