"""Errors that a restart would come to again, told apart from those that pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from ray.exceptions import RayActorError, RayTaskError

from gwp.errors import GwpError
from gwp.storage.retry import expired, passing

E = TypeVar("E", bound=BaseException)


class StoppedError(GwpError):
    """A run that would fail again in the same way; it is not restarted."""


class MachineLeavesError(RayActorError):
    """Ends the workers of a run, because a machine of theirs is about to be taken away and all
    that they did is in storage.

    Ray Train starts them again, where there is room, and does not count it among
    `cluster.max_failures`: it takes them for workers that went with their machine.
    """

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message, preempted=True)


@contextmanager
def lasting() -> Iterator[None]:
    """Raise what the user has to mend as StoppedError; what may pass (storage) stays as it is.

    For the process in which the error arises: its causes, which tell the two apart, do not
    travel.
    """
    try:
        yield
    except Exception as error:
        stopped = first(error, StoppedError)
        # What Ray brings from a decoding process was looked at there.
        own = isinstance(error, GwpError) and not isinstance(error, RayTaskError)
        if stopped is None and own and not (passing(error) or expired(error)):
            stopped = StoppedError(str(error))
        if stopped is None or stopped is error:
            raise
        # Ray Data adds lines of its own to what a decoding process raised.
        raise StoppedError(str(stopped).splitlines()[0]) from error


def first(error: BaseException, kind: type[E]) -> E | None:
    """The first error of a kind inside Ray's wrappers; None when there is none."""
    seen: list[BaseException] = [error]
    # It grows while it is walked: each error adds what it wraps.
    for e in seen:
        # Ray's copy of an error has the traceback of the other process for its text.
        if isinstance(e, kind) and not isinstance(e, RayTaskError):
            return e
        workers = getattr(e, "worker_failures", None) or {}
        controller = getattr(e, "controller_failure", None)
        # What Ray Train found when it looked for a worker.
        looked = getattr(e, "health_check_failure", None)
        for inner in (
            *workers.values(),
            controller,
            looked,
            e.__cause__,
            getattr(e, "cause", None),
        ):
            if isinstance(inner, BaseException) and inner not in seen:
                seen.append(inner)
    return None
