"""The robots of a job: each completed from the first data set that uses it, and what is odd about
them.
"""

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, set_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.robot.embodiment import Embodiment
from gwp.errors import GwpError
from pipelines.jobs.train_job import TrainJob


def read_embodiments(uri: str) -> dict[str, Embodiment]:
    """Name -> robot, from a run folder or a cache."""
    raw: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, "embodiments.json")))
    return {n: Embodiment.model_validate(e) for n, e in raw.items()}


def resolve_embodiments(job: TrainJob, reader: FileReader) -> dict[str, Embodiment]:
    """Complete each configured robot from the first data set that uses it. `reader`: keeps what is
    read of files, so that it is read once while a job is prepared.
    """
    chunk = job.data.window.chunk
    result = {}
    for name, config in job.data.embodiments.items():
        # The first one describes the robot; labelled others are compared with it later.
        source = next((s for s in job.data.sources if s.embodiment == name), None)
        if source is None:
            raise GwpError(
                f"data.embodiments.{name}: no source uses it; remove it or set `embodiment: "
                f"{name}` on a source"
            )
        data = robots_at(source, reader)
        if data is None:
            # For its error, where nothing is there that is known.
            set_at(source, reader)
            raise GwpError(
                f"{source.uri}: plain videos cannot describe robot {name}; remove `embodiment` "
                "from this source"
            )
        inferred = embodiment_of(
            data,
            name,
            chunk=chunk,
            # A chunk of one action has no half.
            replan=config.replan or max(1, chunk // 2),
            # Those of the source are what this robot is seen by, unless it has its own.
            cameras=config.cameras or source.cameras,
            delta_mask=config.delta_mask or None,
            id=config.id,
        )
        changes = {
            "limits": config.limits,
            "resample": config.resample,
            "fps": config.fps or inferred.fps,
            "kinds": config.kinds,
            "action_units": config.action_units,
            "state_units": config.state_units,
        }
        # Validated again: limits and rules have to fit the names that were read.
        try:
            result[name] = Embodiment.model_validate(inferred.model_dump() | changes)
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise GwpError(f"data.embodiments.{name}: {reason}") from error
        widest = max(len(inferred.state_names), len(inferred.action_names))
        if widest > job.model_config_.action_channels:
            raise GwpError(
                f"embodiment {name} has {widest} state/action dimensions, model.action_channels is "
                f"{job.model_config_.action_channels}; raise it to at least {widest}"
            )
    if not _in_frames(job):
        _check_rows_of_projections(result)
    return result


def notes(job: TrainJob, robots: dict[str, Embodiment]) -> Iterator[str]:
    """What was chosen for the robots of a job without a word of its author: their cameras, and
    rows of the model's projections that several share or nobody trained; and deltas of what is
    not the same.
    """
    for name, config in job.data.embodiments.items():
        if config.cameras is None:
            slots = ", ".join(f"{slot} = {key}" for slot, key in robots[name].cameras.items())
            yield f"cameras of {name}, for none are named: {slots}"
        robot = robots[name]
        if robot.id and job.init and job.model_config_.family == "gwp0" and not _in_frames(job):
            yield (
                f"{name} has id {robot.id}: where {job.init} comes from published GWP-0 weights, row 0 "
                "of the projections alone was trained, whatever the robot: `id: 0` starts from it, this "
                "row starts from nothing"
            )
        pairs = zip(robot.action_names, robot.state_names, robot.delta, strict=False)
        known = set(robot.state_names)
        # Another name may be the same quantity; one that stands elsewhere is not.
        odd = [f"{a} - {s}" for a, s, delta in pairs if delta and a != s and a in known]
        if odd:
            yield (
                f"delta_mask of {name} subtracts the state of the same place and not of the same "
                f"name ({', '.join(odd)}): bring `state` or `action` into one order of columns, or "
                "set it to false there"
            )
    if _in_frames(job):
        if len(robots) > 1:
            yield (
                f"latent frames have no projections of a robot's own: {', '.join(robots)} are told "
                "apart by pictures, states and instructions alone, whatever their `id`"
            )
        return
    for (name, robot), (other, same) in combinations(robots.items(), 2):
        if robot.id == same.id:
            yield (
                f"{name} and {other} have the same id {robot.id}: they share one row of the "
                "projections, as one robot would; give each an `id` of its own unless that is meant"
            )


def _in_frames(job: TrainJob) -> bool:
    return job.model_config_.actions == "latent-frame"


def _check_rows_of_projections(robots: dict[str, Embodiment]) -> None:
    """GwpError when robots of other widths share a row of the model's projections: it would be of
    neither.
    """
    for (name, robot), (other, same) in combinations(robots.items(), 2):
        widths = [(len(r.state_names), len(r.action_names)) for r in (robot, same)]
        if robot.id == same.id and widths[0] != widths[1]:
            raise GwpError(
                f"data.embodiments: {name} and {other} have the same id {robot.id} and so share "
                f"one row of the projections, but not their widths (state and action {widths[0]} "
                f"and {widths[1]}); give each an `id` of its own, and model.num_embodiments as "
                "many rows"
            )
