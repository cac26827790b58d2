"""Parts of the demo that are told when they begin, and timed."""

import time

from pipelines.console import event


class Phase:
    """Context manager of one part of the demo: tells that it begins, and notes in `seconds` how
    long it took, also when it fails.
    """

    def __init__(self, name: str, seconds: dict[str, float]) -> None:
        self.name = name
        self.seconds = seconds

    def __enter__(self) -> None:
        event(self.name)
        self.begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = round(time.monotonic() - self.begin, 1)
