"""A request and its answer to come."""

import logging
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from gwp.policy.inputs import AdmittedObservation
from gwp.protocol.messages import ActionChunk

log = logging.getLogger("gwp.engine")


@dataclass
class Job:
    """One request on its way through the engine.

    `Engine.submit` makes it, the engine's thread answers it, once.

    began:   when it was submitted, seconds on the engine's clock
    timings: milliseconds per phase so far
    """

    admitted: AdmittedObservation
    future: "Future[ActionChunk]"
    began: float
    timings: dict[str, float] = field(default_factory=dict)
    _cancel_seen: bool = False

    def answer(self, answer: ActionChunk | BaseException) -> None:
        """Hand over a chunk, or the reason why there is none.

        Never raises; nothing happens when it was answered before.
        """
        try:
            if isinstance(answer, BaseException):
                self.future.set_exception(as_exception(answer))
            else:
                self.future.set_result(answer)
        except InvalidStateError:
            self._acknowledge_cancel()
        except BaseException:
            # The answer was handed over; what its receiver hung onto it failed, which is not the
            # engine's business.
            log.exception("a callback of a chunk failed")

    def _acknowledge_cancel(self) -> None:
        # `concurrent.futures.wait` waits for ever for a cancelled future that nobody has
        # acknowledged.
        if self.future.cancelled() and not self._cancel_seen:
            self._cancel_seen = True
            self.future.set_running_or_notify_cancel()


def as_exception(error: BaseException) -> Exception:
    """What a caller is to see: a `SystemExit` of the engine's thread must not end the caller's."""
    if isinstance(error, Exception):
        return error
    name = type(error).__name__
    wrapped = RuntimeError(f"the engine's thread was interrupted by {name}: {error}")
    wrapped.__cause__ = error
    return wrapped
