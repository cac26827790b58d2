"""How fast a line moves."""

import time


class Pace:
    """Seconds between two who leave a line, as a running mean; 0 before any was measured."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = 0.0

    def measure(self, left: int, waiting: bool) -> None:
        """So many have left at once. waiting: whether others are still in the line"""
        now = time.monotonic()
        if waiting and self._last:
            self.seconds += 0.1 * ((now - self._last) / left - self.seconds)
        # From an empty line on nothing can be learnt.
        self._last = now if waiting else 0.0
