"""Pieces of a study as trials of Ray Tune."""

import math
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback

from gwp.machine import cores
from pipelines.console import event
from pipelines.jobs.ray_start import cpus_of, ensure_ray
from pipelines.jobs.train_job import TrainJob
from pipelines.studies.cells.results import DONE, FAILED
from pipelines.studies.cells.trial import Task, broken, run_piece
from pipelines.training.control.failures import Interrupts

# Read by Tune where trials are made. They keep the folder of the command.
_TUNE = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Its other one prints tables, however quiet it is told to be.
    "RAY_AIR_NEW_OUTPUT": "0",
}
# Tune refuses trials that hold nothing.
_HELD = {"cpu": 0.01}
_WAIT_S = 0.5
GOES_ON = "what is done is kept; the same command with --resume goes on"


def start(jobs: Sequence[TrainJob]) -> int:
    """Connect to Ray, or start it on this machine; how many cells it holds at once."""
    cores_each = max(job.cluster.max_workers * job.cluster.cpus_per_worker for job in jobs)
    here = max(1, int(cores() // cores_each))
    ensure_ray(*jobs, at_once=here)
    found = ray.cluster_resources()
    rooms = [found.get("CPU", 0.0) // max(map(cpus_of, jobs))]
    if gpus := max(job.cluster.max_workers if job.cluster.gpu else 0 for job in jobs):
        rooms.append(found.get("GPU", 0.0) // gpus)
    return max(1, math.floor(min(rooms)))


class _Told(tune.Callback):
    """Says which trial begins, and what became of it when it ends."""

    def __init__(self, of: int, on_end: Callable[[str, dict[str, Any]], None]) -> None:
        self._of, self._on_end = of, on_end
        self._ended = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        event("piece", id=trial.config["piece"], state="begins")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._end(trial, trial.last_result or {})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._end(trial, {"state": FAILED, "error": "its process is gone"})

    def _end(self, trial: Any, result: dict[str, Any]) -> None:
        self._ended += 1
        name, state = trial.config["piece"], result.get("state", FAILED)
        fields = {} if state == DONE else {"why": result.get("error", "its process is gone")}
        event("piece", id=name, state=state, number=f"{self._ended} of {self._of}", **fields)
        self._on_end(name, result)


def run_trials(names: Sequence[str], task: Task, at_once: int) -> dict[str, str]:
    """Do these pieces; those that broke with the reason. KeyboardInterrupt after Ctrl-C."""
    if not names:
        return {}
    failed: dict[str, str] = {}

    def ended(name: str, result: dict[str, Any]) -> None:
        if result.get("state") != DONE:
            failed[name] = str(result.get("error") or "its process is gone")

    os.environ.update(_TUNE)
    with tempfile.TemporaryDirectory(prefix="gwp-tune-") as unused:
        # Ray Train's workers and Ray Data ask for what they take themselves.
        trainable = tune.with_resources(tune.with_parameters(run_piece, task=task), _HELD)
        tuner = tune.Tuner(
            trainable,
            param_space={"piece": tune.grid_search(list(names))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name="study",
                storage_path=unused,
                verbose=0,
                # Of its own writers the one that it reads at the end.
                callbacks=[_Told(len(names), ended), JsonLoggerCallback()],
            ),
        )
        grid = _until_over(tuner)
    for result in grid:
        name = result.config["piece"] if result.config else ""
        if result.error and name:
            failed[name] = str(result.error).strip().splitlines()[-1]
            # Its process ended before it could note that.
            broken(task.plan, task.plan.pieces[name], RuntimeError(failed[name]))
    return failed


def _until_over(tuner: tune.Tuner) -> Any:
    """Run the trials to their end. Ctrl-C and SIGTERM end at once, with KeyboardInterrupt: what is
    whole on disk stays.
    """
    found: list[Any] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def fit() -> None:
        try:
            found.append(tuner.fit())
        except BaseException as error:  # noqa: BLE001  raised again below
            failed.append(error)
        finally:
            over.set()

    with Interrupts() as interrupts:
        # Not in the main thread, where Tune takes Ctrl-C for itself.
        threading.Thread(target=fit, daemon=True, name="gwp-study").start()
        while not over.wait(_WAIT_S):
            if interrupts.count:
                raise KeyboardInterrupt(GOES_ON)
    if failed:
        raise failed[0]
    return found[0]
