"""A training process, from its start under Ray Train to its end."""

import os
from datetime import datetime
from typing import Any

import ray.train

from pipelines.compat import import_deepspeed
from pipelines.tracking.run_log import RunLog
from pipelines.training.checkpoint.checkpoints import latest_committed
from pipelines.training.checkpoint.uploads import patiently
from pipelines.training.control.room import memory_told
from pipelines.training.control.stopped import lasting
from pipelines.training.control.watch import failures
from pipelines.training.engine.node import Node
from pipelines.training.engine.ranks import Ranks
from pipelines.training.loop import NOTES_S, Loop
from pipelines.training.measure.startup import StartUp
from pipelines.training.prepare import PreparedRun
from pipelines.training.scratch import Scratch, sweep
from pipelines.training.tracked import RunRecord


def train_loop(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker. `config`: {"prepared": PreparedRun, "record": RunRecord
    | None, "tracking_uri": str, "start": StartUp}.
    """
    prepared: PreparedRun = config["prepared"]
    start: StartUp = config["start"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    ranks = Ranks(rank, context.get_world_size())
    log = loop = None
    # Before the thread that tells MLflow imports that.
    import_deepspeed(prepared.job.cluster.gpu)
    # One rank is enough: losses are means over all of them.
    if rank == 0 and config["record"]:
        record: RunRecord = config["record"]
        # For the client that opens the run, too.
        os.environ["MLFLOW_TRACKING_URI"] = config["tracking_uri"]
        log = RunLog(record.opened, config["tracking_uri"], record.uri, record.since)
    if context.get_local_rank() == 0:
        # What killed workers of earlier starts left may fill the disk.
        sweep()
    with Scratch() as scratch:
        try:
            with lasting(), memory_told("at the start", prepared.job):
                if rank == 0:
                    start.reached(patiently(lambda: _ended(prepared.uri)))
                number, local = context.get_node_rank(), context.get_local_rank()
                node = Node(ranks, number, local, scratch.folder)
                loop = Loop(prepared, ranks, node, log, config["record"], start)
            loop.run()
        finally:
            if loop:
                loop.watch.close()
                loop.journal.close(NOTES_S)
                loop.live.close()
            if log:
                log.close()


def _ended(uri: str) -> list[float]:
    """When workers of this run ended, Unix time, as far as that is known."""
    ended = [float(event["time"]) for event in failures(uri)]
    # Before a resize, which is no failure, a checkpoint is taken.
    if latest := latest_committed(uri):
        ended.append(datetime.fromisoformat(latest[1].created).timestamp())
    return ended
