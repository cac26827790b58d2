"""What a restart cannot mend ends a run at once and on all workers; what may pass does not."""

import os
import pickle
import signal
import sys

import pytest
from botocore.exceptions import ClientError
from ray.exceptions import RayActorError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from gwp import storage
from gwp.errors import DataError, GwpError, MissingError
from pipelines.training.control.failures import StopForGood, interruptible
from pipelines.training.control.stopped import (
    MachineLeavesError,
    StoppedError,
    first,
    lasting,
)


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
