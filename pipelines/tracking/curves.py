"""The figures of a run: in its folder for good, and in MLflow each step once.

    <run>/figures/step_000040-a1.json    what attempt 1 measured since the checkpoint before, up
                                         to that at step 40
    <run>/figures/verdicts.json          what was said of checkpoints later, by the driver

A file is written before its checkpoint is whole. So no committed step is without its figures,
whatever becomes of MLflow or of a machine; what MLflow missed is sent from here.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gwp import storage
from gwp.errors import MissingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Point = tuple[str, float, int, int]
"""Name, value, time in ms and optimiser step, as MLflow takes them."""
STEP_TAG = "gwp.checkpoint_step"
"""Step of the newest checkpoint that MLflow was told of, behind all figures up to there."""
LOSS = "validation_loss"
"""Name of the figure that tells checkpoints apart."""
_FOLDER = "figures"
_NAME = re.compile(r"step_(\d+)-a(\d+)\.json")
_VERDICTS = "verdicts.json"
_PER_CALL = 1000
"""MLflow refuses more."""


def write_figures(run_uri: str, step: int, attempt: int, points: Sequence[Point]) -> None:
    """Keep what attempt `attempt` measured up to its checkpoint at `step`."""
    uri = storage.join(run_uri, _FOLDER, f"step_{step:06d}-a{attempt}.json")
    storage.write_bytes(uri, json.dumps(points).encode())


def read_figures(run_uri: str, after: int, until: int) -> Iterator[list[Point]]:
    """The figures of each checkpoint at a step above `after` and not above `until`, oldest
    first.
    """
    folder = storage.join(run_uri, _FOLDER)
    names = [match for match in map(_NAME.fullmatch, storage.list_files(folder)) if match]
    for match in sorted(names, key=lambda m: (int(m[1]), int(m[2]))):
        if after < int(match[1]) <= until:
            points = json.loads(storage.read_bytes(storage.join(folder, match[0])))
            yield [(str(key), float(value), int(ms), int(step)) for key, value, ms, step in points]


def read_verdicts(run_uri: str) -> list[Point]:
    """What was said of checkpoints behind the steps; nothing where nobody did."""
    try:
        points = json.loads(storage.read_bytes(storage.join(run_uri, _FOLDER, _VERDICTS)))
    except MissingError:
        return []
    return [(str(key), float(value), int(ms), int(step)) for key, value, ms, step in points]


def add_verdict(run_uri: str, points: Sequence[Point]) -> None:
    """Keep what was said of a checkpoint, in place of what was said of this step before. Only the
    driver of the run calls it.
    """
    steps = {step for _, _, _, step in points}
    kept = [point for point in read_verdicts(run_uri) if point[3] not in steps]
    uri = storage.join(run_uri, _FOLDER, _VERDICTS)
    storage.write_bytes(uri, json.dumps([*kept, *points]).encode())


class Curves:
    """The figures of one run in MLflow. Nothing can be deleted there, and steps are taken again
    after a resume; they come to the same. So what MLflow has of a step stays, and is not sent
    again. One connection: after an error of MLflow it is made anew, for what had arrived is not
    known.
    """

    def __init__(self, mlflow: "MlflowClient", run_id: str, since: int = 0) -> None:
        """since: time in ms; points that are older do not count, for the job was another then."""
        self._mlflow = mlflow
        self._run_id = run_id
        self._since = since
        self._known: dict[str, set[int]] = {}

    def send(self, points: Sequence[Point]) -> None:
        """Those of `points` that MLflow lacks; raises what MLflow does."""
        from mlflow.entities import Metric

        fresh = []
        for point in points:
            key, _, _, step = point
            known = self._steps_of(key)
            if step not in known:
                known.add(step)
                fresh.append(Metric(*point))
        for start in range(0, len(fresh), _PER_CALL):
            self._mlflow.log_batch(self._run_id, metrics=fresh[start : start + _PER_CALL])

    def fill(self, run_uri: str, until: int, after: int | None = None) -> None:
        """Send what MLflow lacks of the steps up to the checkpoint at `until`, out of the run
        folder. after: of steps above this one alone; None: above those that it is known to have.
        """
        if after is None:
            tags = self._mlflow.get_run(self._run_id).data.tags
            told = int(tags.get(STEP_TAG, -1))
            # A run that was sent back is told of again from the start.
            after = told if told <= until else -1
        for points in read_figures(run_uri, after, until):
            self.send(points)

    def _steps_of(self, key: str) -> set[int]:
        if key not in self._known:
            history = self._mlflow.get_metric_history(self._run_id, key)
            self._known[key] = {m.step for m in history if m.timestamp >= self._since}
        return self._known[key]
