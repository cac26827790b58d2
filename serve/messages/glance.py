"""What a message says of itself before it is its turn to be unpacked."""

from dataclasses import dataclass

from gwp.errors import ObservationError
from gwp.protocol.bounds import glance
from serve.messages.values import positive, request_id, text

_FIELDS = frozenset(("endpoint", "request_id", "deadline_s"))


@dataclass(frozen=True)
class Glance:
    """Fields of a request as it says them; whether they are right is told when it is unpacked.

    endpoint:   as vLLM-Omni's clients name it
    request_id: under which it may be refused
    deadline_s: after which its answer is worthless, seconds from its arrival
    """

    endpoint: str | None = None
    request_id: str | int | None = None
    deadline_s: float | None = None


def glance_at(data: bytes) -> Glance:
    """Takes some 30 microseconds, whatever the message is: the event loop can afford it."""
    found = glance(data, _FIELDS)
    try:
        return Glance(text(found, "endpoint"), request_id(found), positive(found, "deadline_s"))
    except ObservationError:
        return Glance()
