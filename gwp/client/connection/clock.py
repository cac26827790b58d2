"""The endpoint's clock as this machine knows it."""

import math
import time
from collections.abc import Callable, Sequence

ASK_AGAIN_S = 300.0
"""Clocks of good machines part by some 50 microseconds a second: 15 ms in this time."""


class EndpointClock:
    """Translates moments of this machine into times of the endpoint.

    Moments are those of the monotonic clock: the clock that people see may be set while a robot
    runs. Until the endpoint told its time, both are taken for one.

    uncertainty_s: by how much a translated time may be wrong, seconds
    """

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._wall = wall
        self._ahead: float | None = None
        self._learnt = -math.inf
        self.uncertainty_s = math.inf

    def learn(self, answers: Sequence[tuple[float, float, float]]) -> None:
        """Answers, each with the moments when it was asked for and came, and the time it told.
        That with the shortest way counts; all that was known before is replaced.
        """
        sent, received, theirs = min(answers, key=lambda answer: answer[1] - answer[0])
        self.uncertainty_s = (received - sent) / 2
        self._ahead = theirs - (sent + received) / 2
        self._learnt = received

    @property
    def old(self) -> bool:
        """Whether it should be asked again."""
        return self._now() - self._learnt > ASK_AGAIN_S

    @property
    def offset_s(self) -> float:
        """By how much the endpoint's clock is ahead of the wall clock here, seconds."""
        return self.at(self._now()) - self._wall()

    def at(self, moment: float) -> float:
        """Time of the endpoint at a moment of ours, seconds since the epoch."""
        if self._ahead is None:
            return self._wall() + moment - self._now()
        return self._ahead + moment

    def moment(self, wall: float) -> float:
        """Moment of a time of the wall clock here."""
        return self._now() - (self._wall() - wall)
