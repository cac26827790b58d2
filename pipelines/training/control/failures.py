"""Which failures end a run at once, because a restart would come to the same.

Ray Train starts all workers again after any error of one of them. That helps when a machine,
the network or storage failed. It does not help against a loss that is not a number, a missing
file or a configuration that does not fit: those are raised as `StoppedError`, and `StopForGood`
ends the run.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import UserCallback

from gwp import storage
from gwp.errors import GwpError
from gwp.metrics.names import TRAIN_LOST
from pipelines.tracking.live import meter_of
from pipelines.training.control.stopped import MachineLeavesError, StoppedError, first

PROGRAM_ERRORS = (
    TypeError,
    AttributeError,
    NameError,
    ImportError,
    NotImplementedError,
    AssertionError,
)
"""Raised by code that is wrong, and by nothing that passes."""
# Characters of what an error says that are told.
_SAID = 200


class StopForGood(UserCallback):
    """Ends the run on the first failure that a restart cannot mend; runs in Ray Train's
    controller.

    An error of a callback is one of the controller, and those are never tried again. All
    workers end with it, also those that wait for the failed one.
    """

    def __init__(self, run_uri: str | None = None, run: str = "") -> None:
        """run_uri: where failures are noted that a restart may mend; None: nowhere; run: its name"""
        self._run_uri = run_uri
        self._run = run

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
        if self._run_uri:
            # By a thread: Ray Train looks after the other workers meanwhile.
            note = lost(worker_exceptions)
            leaves = any(first(error, MachineLeavesError) for error in errors)
            kind = "machine" if leaves else note["kind"]
            threading.Thread(target=count_lost, args=(self._run, kind), daemon=True).start()
            args = (self._run_uri, note)
            threading.Thread(target=_note, args=args, daemon=True).start()


def lost(errors: Mapping[int, BaseException]) -> dict[str, Any]:
    """What made Ray Train start the workers again, by rank: {"event", "kind", "text", "time"}.

    kind: `memory`, `killed` or `error`. Beside a rank whose process is gone, what the others
    raise is the consequence.
    """
    full = [rank for rank, error in errors.items() if first(error, OutOfMemoryError)]
    gone = [rank for rank, error in errors.items() if first(error, RayActorError)]
    if full:
        kind = "memory"
        text = f"{_named(full)} was ended by Ray, because memory ran out on its machine"
    elif gone:
        kind = "killed"
        text = (
            f"the process of {_named(gone)} is gone: killed from outside, by the kernel when memory "
            "runs out (its log says so), or with its machine"
        )
    else:
        kind = "error"
        rank, error = min(errors.items())
        said = " ".join(str(error).split())
        text = f"{_named([rank])}: {type(error).__name__}: {said[:_SAID]}"
    return {"event": "failed", "kind": kind, "text": text, "time": time.time()}


def lost_of_ray(error: BaseException) -> dict[str, Any] | None:
    """What Ray Train itself lost, as `lost` says it of workers; None when that is not why it
    ended. error: what it raised, or what came in its place
    """
    if getattr(error, "worker_failures", None):
        return None
    if first(error, OutOfMemoryError):
        text = "memory ran out on a machine, and Ray ended processes of its own there"
        return {"kind": "memory", "text": text}
    if first(error, RayActorError):
        text = (
            "a process of Ray is gone that this run needs: killed from outside, by the kernel when "
            "memory runs out (its log says so), or with its machine"
        )
        return {"kind": "killed", "text": text}
    return None


def _named(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, sorted(ranks)))


def _note(run_uri: str, note: dict[str, Any]) -> None:
    name = f"failed-{time.time_ns()}.json"
    storage.write_bytes(storage.join(run_uri, "events", name), json.dumps(note).encode())


def count_lost(run: str, kind: str) -> None:
    """Have Prometheus know that the workers of a run ended early. kind: as `lost` names it,
    or `machine`: one was taken away with notice
    """
    meter = meter_of(run)
    meter.add(TRAIN_LOST, kind=kind)
    meter.close()


def gave_up(error: BaseException, hung: str | None, starts: int) -> GwpError | None:
    """Why the workers were not started once more, in one line; None when it is a fault in the
    program, whose traceback says more.

    error: what Ray Train raised; hung: the ranks that stood still last; starts: how many there
    were
    """
    failures = getattr(error, "worker_failures", None) or {}
    if any(isinstance(e, PROGRAM_ERRORS) for e in failures.values()):
        return None
    last = lost(failures) if failures else lost_of_ray(error)
    if last is None:
        return None
    text = f"{hung}: it was ended" if hung and last["kind"] != "memory" else last["text"]
    advice = {
        "memory": "give its machine more memory, or lower engine.micro_batch, cluster.workers on a "
        "machine, or cluster.decode_tasks",
        "killed": "look at the machine's log (dmesg) for what killed it",
        "error": "--debug shows where",
    }[last["kind"]]
    times = f"the workers failed at each of {starts} starts (cluster.max_failures {starts - 1})"
    return GwpError(
        f"{times}; the last time {text}. {advice[0].upper()}{advice[1:]}; the same "
        "command goes on from the last checkpoint"
    )


class Interrupts:
    """Ctrl-C and SIGTERM that come while the block lasts: counted, and nothing is interrupted.

    A second one must find its way wherever it comes, also while the first is answered.

    count: how many came
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python lets no other thread set a handler.
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {n: signal.signal(n, self._come) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)

    def _come(self, *_: object) -> None:
        self.count += 1


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
