"""How often somebody may ask."""

import time
from collections.abc import Callable

_MOST = 10_000


class Rates:
    """A token bucket for each name: bursts of a second, then so many a second.

    hz: requests per second; None: as many as they like
    """

    def __init__(self, hz: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._hz = hz
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, name: str, count: int = 1) -> float:
        """0 where `count` requests of `name` may pass, which are counted then; else the seconds
        until they may.
        """
        if self._hz is None:
            return 0.0
        now, most = self._clock(), max(1.0, self._hz)
        left, when = self._buckets.get(name, (most, now))
        left = min(most, left + (now - when) * self._hz)
        # More than fits into a bucket passes when it is full, and leaves a debt.
        if left < min(count, most):
            self._buckets[name] = (left, now)
            return (min(count, most) - left) / self._hz
        self._buckets[name] = (left - count, now)
        if len(self._buckets) > _MOST:
            # The fullest have not asked for longest.
            full = sorted(self._buckets, key=lambda known: self._buckets[known][1])
            for known in full[: _MOST // 2]:
                del self._buckets[known]
        return 0.0
