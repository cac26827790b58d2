"""The workers of a run under Ray Train, from their first start to the last step: started again
whatever of Ray fails, and asked to stop.

Ray Train starts workers again that fail. It gives up when a process of its own is gone (its
controller, those that split the data), and when it found no room for the workers a few times: then
Ray Train is started again, here.
"""

import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import ray.data
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gwp.errors import GwpError
from pipelines.compat import before_resize, count_workers_by, found_no_room
from pipelines.console import event, warn
from pipelines.jobs.cluster import POOL
from pipelines.tracking.runs import tracking_uri
from pipelines.training.checkpoint.uploads import patiently
from pipelines.training.control.failures import (
    Interrupts,
    StopForGood,
    count_lost,
    gave_up,
    lost_of_ray,
)
from pipelines.training.control.machines import room_for
from pipelines.training.control.stop import ask_to_stop, forget_asked, save_and_pause
from pipelines.training.control.stopped import first
from pipelines.training.control.watch import failures
from pipelines.training.control.watchdog import at_work, clear_earlier, watchdog
from pipelines.training.measure.startup import StartUp
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.stream import PlannedData
from pipelines.training.tracked import RunRecord
from pipelines.training.worker import train_loop

_ANSWER = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
# Seconds; an interrupt is seen between two waits.
_WAIT_S = 0.5
_ENDED = "ended at once; the same command goes on from the last checkpoint"


def run_workers(prepared: PreparedRun, record: RunRecord, start: StartUp) -> None:
    """Have workers take the steps that are left, or those until they are asked to stop. GwpError
    when one of ours was the cause of the end, or they failed too often. start: what came before
    """
    uri, cluster = prepared.uri, prepared.job.cluster
    most = cluster.max_failures
    earlier = noted = len(failures(uri))
    # Times that Ray failed, and no worker with it.
    alone = 0
    _clear(uri)
    with (
        _told_how_to_go_on(),
        _answers_within(cluster.patience_s),
        watchdog(uri, cluster.hang_s) as watch,
    ):
        while True:
            left = max(0, most - (noted - earlier) - alone) if most >= 0 else -1
            try:
                _start(prepared, record, left, start.hand_over())
            except (ray.train.TrainingFailedError, RayError) as error:
                start.again()
                # Ray wraps what a worker raised; the user's line is that of the worker.
                cause = first(error, GwpError)
                if cause:
                    raise cause from error
                # Storage may have gone with what Ray lost.
                before, noted = noted, patiently(lambda: len(failures(uri)))
                lost = lost_of_ray(error)
                if found_no_room(error):
                    warn(f"no machine has room for all {cluster.min_workers} workers: waiting")
                elif lost and left:
                    alone += noted == before
                    count_lost(prepared.job.run.name, lost["kind"])
                    warn(f"{lost['text']}; the workers start again from the last checkpoint")
                else:
                    told = gave_up(error, watch.hung(), most + 1)
                    if told is None:
                        raise
                    raise told from error
                patiently(lambda: _clear(uri))
            else:
                return


@contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    """Give an interrupt that comes between two starts the words of those that come during one."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop):
            raise
        raise KeyboardInterrupt(_ENDED) from stop


def _clear(uri: str) -> None:
    """Remove what an earlier start left that concerns the next one."""
    clear_earlier(uri)
    forget_asked(uri)


def _start(prepared: PreparedRun, record: RunRecord, max_failures: int, start: StartUp) -> None:
    """Run the workers under one controller of Ray Train. Raises what that does."""
    # Ray is given no checkpoints and has nothing to store; but it looks at its storage at each
    # start, without patience. So that is a folder here, and an empty one wherever else it looks.
    with tempfile.TemporaryDirectory(prefix="gwp-ray-") as unused:
        _until_over(_trainer(prepared, record, unused, max_failures, start), prepared.uri)


def _trainer(
    prepared: PreparedRun, record: RunRecord, folder: str, max_failures: int, start: StartUp
) -> TorchTrainer:
    """folder: for files of Ray's that nobody reads"""
    cluster = prepared.job.cluster
    pool = cluster.train_pool
    # Type checkers see the interface that Ray had before, here and below; at run time it is the
    # new one.
    scaling: dict[str, Any] = {
        "num_workers": cluster.workers,
        "elastic_resize_monitor_interval_s": cluster.resize_every_s,
    }
    if pool:
        scaling["label_selector"] = {POOL: pool}
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpu:
        resources["GPU"] = 1
    loop_config: dict[str, Any] = {
        "prepared": prepared.slim(),
        "record": record,
        "tracking_uri": tracking_uri(),
        "start": start,
    }
    callbacks: list[Any] = [StopForGood(prepared.uri, prepared.job.run.name)]
    if cluster.elastic:
        callbacks.append(before_resize(partial(save_and_pause, prepared.uri)))
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=loop_config,
        torch_config=TorchConfig(
            backend="nccl" if cluster.gpu else "gloo",
            # Of those who wait for a rank that stands still, if nobody ends it before.
            timeout_s=math.ceil(cluster.patience_s),
        ),
        scaling_config=ScalingConfig(
            use_gpu=cluster.gpu,
            resources_per_worker=resources,
            **scaling,
        ),
        run_config=RunConfig(
            # What it finds under a name that it knows it would go on with.
            name=f"ray-{int(time.time() * 1000)}",
            storage_path=folder,
            failure_config=FailureConfig(
                max_failures=max_failures,
                # Of starts without room; after them it is told, and tried again.
                controller_failure_limit=5,  # type: ignore[call-arg]
            ),
            callbacks=callbacks,
        ),
        # The name of the plan: what it is follows from the number of workers, which is known
        # when they start.
        datasets={"train": ray.data.range(1)},
        dataset_config=PlannedData(prepared),
    )
    if cluster.elastic:
        count_workers_by(trainer, room_for(cluster, prepared.job.validator))
    return trainer


def _ask_to_stop(run_uri: str, nobody: threading.Event) -> None:
    """nobody: set when there is none who could stop"""
    try:
        ask_to_stop(run_uri)
        if not at_work(run_uri):
            nobody.set()
    except (OSError, GwpError) as error:
        warn(f"the workers cannot be asked to stop ({error}); once more ends at once")


@contextmanager
def _answers_within(seconds: float) -> Iterator[None]:
    """How long a worker may not answer Ray Train, which reads it when it starts; what is in the
    environment already goes before.
    """
    if _ANSWER in os.environ:
        yield
        return
    os.environ[_ANSWER] = f"{seconds:g}"
    try:
        yield
    finally:
        os.environ.pop(_ANSWER, None)


def _until_over(trainer: TorchTrainer, run_uri: str) -> None:
    """Run the workers to their end. The first Ctrl-C or SIGTERM asks them to stop with a
    checkpoint; the second one, and the first while they wait for room, ends at once with
    KeyboardInterrupt.
    """
    failed: list[BaseException] = []
    nobody = threading.Event()
    # Not `join`: Python 3.11 takes a thread whose join is interrupted for one that has ended.
    over = threading.Event()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  raised again below
            failed.append(error)
        finally:
            over.set()

    asked = False
    with Interrupts() as interrupts:
        # Not in the main thread: there Ray Train takes Ctrl-C for itself, and drops what is done. A
        # daemon, because nobody waits for it behind the second one.
        threading.Thread(target=fit, daemon=True, name="gwp-fit").start()
        while not over.wait(_WAIT_S):
            if interrupts.count > 1 or nobody.is_set():
                raise KeyboardInterrupt(_ENDED)
            if interrupts.count and not asked:
                asked = True
                event(
                    "stopping",
                    text="a checkpoint is taken at the next step; once more ends at once",
                )
                # Not here: storage may be slow, and the second one is waited for.
                threading.Thread(target=_ask_to_stop, args=(run_uri, nobody), daemon=True).start()
    if failed and asked and first(failed[0], GwpError) is None:
        raise KeyboardInterrupt(
            "ended before its checkpoint was whole; the same command goes on from the last one"
        ) from failed[0]
    if failed:
        raise failed[0]
