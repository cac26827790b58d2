"""How fast a line moves."""


class Pace:
    """Seconds between two who leave a line, as a running mean; 0 before any was measured."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last: float | None = None

    def measure(self, left: int, waiting: bool, now: float) -> None:
        """So many have left at once. waiting: whether others are still in the line"""
        if waiting and self._last is not None:
            # As if they had left one after the other.
            kept = 0.9**left
            self.seconds = kept * self.seconds + (1 - kept) * (now - self._last) / left
        # From an empty line on nothing can be learnt.
        self._last = now if waiting else None
