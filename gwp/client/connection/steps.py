"""What the rules of an exchange ask to be done, one thing at a time; sync and async clients do it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any


class LinkLostError(Exception):
    """The connection could not be made, broke, or said nothing for too long."""


class ReplyLateError(LinkLostError):
    """No reply came in time. The connection stands: a late one will be known by its number."""


@dataclass(frozen=True)
class Open:
    """Connect; gives nothing."""

    url: str
    headers: dict[str, str]
    timeout_s: float


@dataclass(frozen=True)
class Exchange:
    """Send `data` (None: nothing) and give the next frame, bytes or text.

    numbered: replies say which request they answer, so that the connection outlives one that is
        late
    """

    data: bytes | None
    timeout_s: float
    numbered: bool = False


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Look:
    """Give what `observe` gives."""

    observe: Callable[[], Any]


@dataclass(frozen=True)
class Drop:
    """Give the connection up, without waiting for the other side."""


Step = Open | Exchange | Pause | Look | Drop
Steps = Generator[Step, Any, Any]
