"""Why a request gets no chunk: one error with a code, on every way that it can take."""

from typing import Any

from gwp.errors import GwpError

PASSING = ("busy", "unavailable", "limit")
"""Codes after which asking again a little later may help."""


class RefusedError(GwpError):
    """A request that gets no chunk.

    code:          observation, policy, protocol, access, busy, unavailable, deadline, stale, gone,
                   limit, internal
    retry_after_s: when asking again may help, seconds from now; None: nobody can say
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self), self.retry_after_s)
