"""What a restart cannot mend ends a run at once and on all workers; what may pass does not."""

import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from gwp import storage
from gwp.errors import DataError, GwpError, MissingError
from pipelines.training.control.failures import (
    Interrupts,
    StopForGood,
    gave_up,
    interruptible,
    lost,
)
from pipelines.training.control.stopped import (
    MachineLeavesError,
    StoppedError,
    first,
    lasting,
)
from pipelines.training.control.watch import failures


def slow_down() -> GwpError:
    answer = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    try:
        with storage.explained("s3://b/x"):
            raise ClientError(answer, "GetObject")
    except GwpError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [GwpError("of another configuration"), DataError("too wide"), MissingError("not found")],
)
def test_what_the_user_has_to_mend_is_not_tried_again(error: GwpError) -> None:
    with pytest.raises(StoppedError, match=str(error)), lasting():
        raise error
    with pytest.raises(StoppedError, match=r"^once$"), lasting(), lasting():
        raise GwpError("once")


@pytest.mark.parametrize(
    "error",
    [
        slow_down(),
        RuntimeError("Connection closed by peer"),
        ConnectionResetError(),
        OSError("disk"),
    ],
)
def test_what_may_pass_is_worth_a_restart(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, lasting():
        raise error
    assert not isinstance(caught.value, StoppedError)
    StopForGood().after_exception(None, {0: error})


def test_what_a_decoding_process_could_not_mend_stops_the_worker_that_reads_it() -> None:
    """Ray wraps what a process of its own raised."""
    inner = StoppedError("no such column")
    wrapped = RayTaskError("map", "traceback", pickle.loads(pickle.dumps(inner)))
    with pytest.raises(StoppedError, match=r"^no such column$"), lasting():
        raise wrapped.as_instanceof_cause()


def test_one_lasting_failure_ends_the_run_whatever_the_others_say() -> None:
    callback = StopForGood()
    stopped = StoppedError("step 3: loss is nan")
    with pytest.raises(StoppedError, match="step 3"):
        callback.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: stopped})
    with pytest.raises(TypeError):
        callback.after_exception(None, {0: TypeError("no such argument")})
    # Beside a dead worker it may only be the consequence.
    callback.after_exception(None, {0: TypeError("x"), 1: RuntimeError("y")})
    told = first(ControllerError(stopped), GwpError)
    assert str(told) == "step 3: loss is nan"
    assert first(
        WorkerGroupError("x", {0: RuntimeError("y"), 1: DataError("z")}), GwpError
    ).args == ("z",)
    assert first(WorkerGroupError("x", {0: RuntimeError("y")}), GwpError) is None


def test_a_machine_that_leaves_is_no_failure_of_the_run() -> None:
    """Ray counts it among those that went with their machine, of which there may be any number."""
    from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure

    error = MachineLeavesError("it goes on from step 7")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (MachineLeavesError, "it goes on from step 7")
    assert isinstance(again, RayActorError)
    assert again.preempted
    assert _is_preemption_failure(WorkerGroupError("x", {0: again, 1: again}))
    StopForGood().after_exception(None, {0: error, 1: error})
    with pytest.raises(MachineLeavesError), lasting():
        raise error


def test_interruptions_are_counted_wherever_they_come() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert interrupts.count == 2
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def _interrupt(how: str) -> None:
    if how == "exit":
        # Ray Train's answer to Ctrl-C.
        signal.signal(signal.SIGINT, lambda *_: None)
        sys.exit(0)
    os.kill(os.getpid(), getattr(signal, how))
    signal.pause()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "exit"])
def test_an_interruption_is_one_however_it_comes(how: str) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        _interrupt(how)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


class HealthCheckError(Exception):
    """As Ray Train wraps what it finds when it looks for a worker."""

    def __init__(self, found: Exception) -> None:
        super().__init__("A worker health check failed.\nWorker info: ...")
        self.health_check_failure = found


FULL = HealthCheckError(OutOfMemoryError("Task was killed due to the node running low on memory"))
GONE = HealthCheckError(ActorDiedError())
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer\nat 0x1")


@pytest.mark.parametrize(
    ("errors", "kind", "text"),
    [
        ({0: CLOSED, 1: FULL}, "memory", "rank 1 was ended by Ray, because memory ran out on"),
        ({0: CLOSED, 1: GONE, 2: GONE}, "killed", "the process of ranks 1, 2 is gone: killed"),
        ({0: CLOSED, 1: CLOSED}, "error", "rank 0: RuntimeError: [gloo/transport/tcp/pair.cc:547]"),
    ],
)
def test_what_made_the_workers_start_again_is_noted(
    errors: dict[int, Exception], kind: str, text: str, tmp_path: Path
) -> None:
    note = lost(errors)
    assert note["kind"] == kind
    assert note["text"].startswith(text)
    assert "\n" not in note["text"]
    StopForGood(str(tmp_path)).after_exception(None, errors)
    end = time.monotonic() + 20
    while not failures(str(tmp_path)):
        assert time.monotonic() < end
        time.sleep(0.01)
    (told,) = failures(str(tmp_path))
    assert (told["kind"], told["text"]) == (kind, note["text"])


def test_workers_that_fail_every_time_end_in_one_line() -> None:
    def end(errors: dict[int, Exception], hung: str | None = None) -> str:
        return str(gave_up(WorkerGroupError("traceback", errors), hung, 4))

    memory = end({0: CLOSED, 1: FULL})
    assert memory == (
        "the workers failed at each of 4 starts (cluster.max_failures 3); the last time rank 1 was "
        "ended by Ray, because memory ran out on its machine. Give its machine more memory, or "
        "lower engine.micro_batch, cluster.workers on a machine, or cluster.decode_tasks; the same "
        "command goes on from the last checkpoint"
    )
    assert "the last time rank 1 (n, pid 7) has been in 'stepping'" in end(
        {1: GONE}, "rank 1 (n, pid 7) has been in 'stepping' since step 2 for 60 s"
    )
    assert "\n" not in end({0: CLOSED})
    # Of a fault in the program the traceback says more.
    assert gave_up(WorkerGroupError("traceback", {0: TypeError("x"), 1: CLOSED}), None, 4) is None
    assert gave_up(ControllerError(RuntimeError("x")), None, 4) is None
