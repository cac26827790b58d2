"""What a restart cannot mend ends a run at once and on all workers; what may pass does not."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from gwp import storage
from gwp.errors import DataError, GwpError, MissingError
from pipelines.training.failures import StopForGood, StoppedError, first, interruptible, lasting


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


TWO = """
import sys
from datetime import timedelta
from torch import distributed as dist
from pipelines.training.failures import StoppedError
from pipelines.training.loop import _Loop
from pipelines.training.ranks import Ranks

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
loop = _Loop.__new__(_Loop)
loop.ranks, loop.step, loop.good = Ranks(rank, 2), 12, "none yet"
loop._require_finite({"loss": 1.0, "loss_action": 2.0})
# A rank without a sample has no losses.
loop._require_finite({"loss": 1.0} if rank else {})
try:
    loop._require_finite({"loss": float("nan"), "loss_video": float("inf")} if rank else {"loss": 0.5})
except StoppedError as error:
    print(error)
"""


def test_all_workers_stop_at_the_loss_of_one(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(tmp_path / "meet")],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=200)[0] for process in both]
    assert told[0] == told[1]
    assert told[0].startswith("step 13: loss is nan on rank 1, loss_video is inf on rank 1. ")
    assert "lower optimizer.lr" in told[0]
