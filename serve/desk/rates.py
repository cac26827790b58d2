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

    def wait_s(self, name: str) -> float:
        """0 where a request of `name` may pass, which is counted then; else the seconds until it
        may.
        """
        if self._hz is None:
            return 0.0
        left, now = self._left(name)
        if left < 1:
            return (1 - left) / self._hz
        self._buckets[name] = (left - 1, now)
        if len(self._buckets) > _MOST:
            # The fullest have not asked for longest.
            full = sorted(self._buckets, key=lambda known: self._buckets[known][1])
            for known in full[: _MOST // 2]:
                del self._buckets[known]
        return 0.0

    def owe(self, name: str, count: int) -> None:
        """So many more have passed with one of `name`: the next ones wait for it."""
        if self._hz is not None and count > 0:
            left, now = self._left(name)
            self._buckets[name] = (left - count, now)

    def _left(self, name: str) -> tuple[float, float]:
        """Requests that may pass now, and the time of that."""
        assert self._hz is not None
        now, most = self._clock(), max(1.0, self._hz)
        left, when = self._buckets.get(name, (most, now))
        return min(most, left + (now - when) * self._hz), now
