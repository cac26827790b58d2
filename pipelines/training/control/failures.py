"""Which failures end a run at once, because a restart would come to the same.

Ray Train starts all workers again after any error of one of them. That helps when a machine,
the network or storage failed. It does not help against a loss that is not a number, a missing
file or a configuration that does not fit: those are raised as `StoppedError`, and `StopForGood`
ends the run.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import UserCallback

from pipelines.training.control.stopped import StoppedError, first

PROGRAM_ERRORS = (
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    NotImplementedError,
    AssertionError,
)
"""Raised by code that is wrong, and by nothing that passes."""


class StopForGood(UserCallback):
    """Ends the run on the first failure that a restart cannot mend; runs in Ray Train's
    controller.

    An error of a callback is one of the controller, and those are never tried again. All
    workers end with it, also those that wait for the failed one.
    """

    def after_exception(
        self,
        run_context: Any,  # noqa: ARG002
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Raise the first error that lasts."""
        errors = list(worker_exceptions.values())
        for error in errors:
            stopped = first(error, StoppedError)
            if stopped is not None:
                raise stopped
        # Beside a worker that died, such an error may only be the consequence.
        if all(isinstance(error, PROGRAM_ERRORS) for error in errors):
            raise errors[0]


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block with KeyboardInterrupt, whatever Ray makes of them.

    Ray Train takes Ctrl-C for itself, ends the run and then the process, as if all were well.
    """
    # Python lets no other thread set a handler.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    # How Ray Train ends the process after Ctrl-C.
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
