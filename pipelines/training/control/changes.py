"""What a run that goes on may do differently than it began, and what that means.

`prepare` asks when it meets the folder of an earlier start. Every field of the job is of one of
four kinds: it does not change what is computed; it changes it in no way that matters; it changes
the training from here on, which has to be wanted; or the run folder was made with it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from gwp.errors import GwpError
from gwp.paths import absolute_paths
from pipelines.config.load import resolved
from pipelines.jobs.train_job import TrainJob

# Where a run is, what it logs and keeps, and how it restarts do not change what it computes.
RUN_ONLY = (
    # A name for what other fields say.
    "recipe",
    "run.storage",
    "run.experiment",
    "run.keep",
    "run.log_every",
    "run.checkpoint_every",
    "run.record_samples",
    "data.max_broken",
    "validation.worker",
    "cluster",
)
# The same steps, up to the order of sums.
HARMLESS = (
    "run.steps",
    "engine.micro_batch",
    "engine.gradient_checkpointing",
    "engine.compile",
    "engine.zero_stage",
    "optimizer.max_skipped",
    "validation.looked_at",
)
# The optimiser's state has their form.
SHAPES = ("optimizer.kind", "optimizer.only", "optimizer.freeze", "optimizer.decay")
# What is read at every start, and means another training.
WANTED = ("optimizer", "objective", "engine.precision", "engine.ema_decay", "engine.overrides")


def changes_of(earlier: dict[str, Any], job: TrainJob) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> value before and now, of every field of a job that is another than in the
    record of an earlier start; without RUN_ONLY.

    `job` has absolute paths. GwpError when the record is no job of this version.
    """
    try:
        # What a newer version added has its default, as it had without a name.
        before = absolute_paths(TrainJob.model_validate(_as_it_was(earlier)))
    except ValidationError as error:
        wrong = ".".join(map(str, error.errors()[0]["loc"]))
        raise GwpError(
            f"the job that this run began with is none of this version ({wrong}); go on with the "
            "version that began it, or give run.name another name"
        ) from error
    was, now = dict(_flat(resolved(before))), dict(_flat(resolved(job)))
    names = dict.fromkeys([*was, *now])
    different = {n: (was.get(n), now.get(n)) for n in names if was.get(n) != now.get(n)}
    return {name: pair for name, pair in different.items() if not _within(name, RUN_ONLY)}


def as_begun(job: TrainJob, earlier: dict[str, Any]) -> TrainJob:
    """The job with what versions did that had no field for it, where its file says nothing of it.

    earlier: the job as it was recorded when the run began
    """
    recorded = "decay" in (earlier.get("optimizer") or {})
    if recorded or "decay" in job.optimizer.model_fields_set:
        return job
    given = _as_it_was(earlier)["optimizer"]["decay"]
    return job.model_copy(update={"optimizer": job.optimizer.model_copy(update={"decay": given})})


def require_allowed(
    uri: str, changes: Mapping[str, tuple[Any, Any]], allowed: tuple[str, ...]
) -> None:
    """GwpError that lists what changed, when something did that was not allowed or never can."""
    known = [n for n in changes if _within(n, HARMLESS + WANTED) and not _within(n, SHAPES)]
    fixed = [n for n in changes if n not in known]
    asked = [n for n in known if _within(n, WANTED) and not _within(n, allowed)]
    if fixed:
        raise GwpError(
            f"{uri} holds a run of another configuration: {_listed(fixed, changes)}. Its samples "
            "and weights were made with that; give run.name another name, or set it back"
        )
    if asked:
        options = " ".join(f"--allow-change {name}" for name in asked)
        raise GwpError(
            f"{uri} holds a run of another configuration: {_listed(asked, changes)}. To go on as it "
            f"began, set them back ({_back(asked, changes)}); if it is to go on so, say {options}; "
            "else give run.name another name"
        )


def told(changes: Mapping[str, tuple[Any, Any]], job: TrainJob) -> list[str]:
    """A line for each change that is made, with what it does."""
    lines = []
    for name, (before, now) in changes.items():
        line = f"{name}: {before} -> {now}"
        if name == "run.steps" and job.optimizer.schedule != "constant":
            # The rate at a step depends on how many there are.
            step = min(before, now) - 1
            rates = (job.optimizer.lr_at(step, total) for total in (before, now))
            old, new = (f"{rate:.3g}" for rate in rates)
            line += (
                f"; optimizer.schedule {job.optimizer.schedule} is stretched over it: at step "
                f"{step + 1} the learning rate is {new}, it was {old}"
            )
        lines.append(line)
    return lines


def _as_it_was(earlier: dict[str, Any]) -> dict[str, Any]:
    """A record with what versions did that had no field for it: weights of every shape decayed."""
    optimizer = {"decay": "all"} | (earlier.get("optimizer") or {})
    return earlier | {"optimizer": optimizer}


def _listed(names: list[str], changes: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} was {changes[name][0]} and is {changes[name][1]}" for name in names)


def _back(names: list[str], changes: Mapping[str, tuple[Any, Any]]) -> str:
    return " ".join(f"--set {name}={json.dumps(changes[name][0])}" for name in names)


def _within(name: str, fields: tuple[str, ...]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in a tree of JSON values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{i}")
    else:
        yield name, _spelled(value)


def _spelled(value: Any) -> Any:
    """Paths and addresses in one spelling."""
    if not isinstance(value, str) or "/" not in value:
        return value
    if "://" not in value:
        return os.path.normpath(value)
    scheme, _, rest = value.partition("://")
    path = os.path.normpath(rest)
    return path if scheme == "file" else f"{scheme}://{path}"
