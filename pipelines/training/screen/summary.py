"""What a finished stage says at its end: what it did, where all of it is, and what comes next."""

import shlex
import sys

from pipelines.console import event
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.runs import tracking_uri
from pipelines.training.checkpoint.checkpoints import find_committed, step_of
from pipelines.training.checkpoint.retention import best
from pipelines.training.screen.seen import span
from pipelines.training.train import StageResult

_NEXT = {"world": "embodied", "embodied": "policy"}
"""Stage -> the one behind it."""


def tell(job: TrainJob, result: StageResult, last: bool) -> None:
    """Say it: lines on a terminal, an event elsewhere. last: no stage of this command follows"""
    told = summary(job, result)
    if last:
        told["next"] = following(job, result)
    if not sys.stderr.isatty():
        event("summary", **told)
        return
    width = max(map(len, told))
    for name, text in told.items():
        print(f"{name:{width}}  {text}", file=sys.stderr, flush=True)


def summary(job: TrainJob, result: StageResult) -> dict[str, str]:
    """Subject -> a line."""
    committed = find_committed(result.uri)
    steps = ", ".join(str(manifest.step) for _, manifest in reversed(committed))
    place = f"{result.uri}/checkpoints: step {steps}"
    judged = {uri: m.validation for uri, m in committed}
    found = best(committed)
    if found:
        place += (
            f"; best by validation: step {step_of(found.rpartition('/')[2])} ({judged[found]:.4g})"
        )
    pace = f", {span(result.seconds)} in this command"
    return {
        "done": f"{job.stage}: {job.run.name} has taken {result.steps} steps, "
        f"{result.samples} samples{pace}",
        "checkpoints": place,
        "weights": result.final,
        "mlflow": _mlflow(result.run_id),
    }


def following(job: TrainJob, result: StageResult) -> str:
    """The command that comes behind this stage; which file that is, the user knows."""
    after = _NEXT.get(job.stage)
    if after is None:
        out = f"policies/{job.run.name}"
        return f"gwp export {shlex.quote(result.uri)} --out {shlex.quote(out)}"
    return f"gwp train {after.upper()}.yaml --set {shlex.quote(f'init={result.final}')}"


def _mlflow(run_id: str) -> str:
    if not run_id:
        return "did not answer; the same command tells it later"
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        return f"run {run_id} of {uri}"
    return f"run {run_id}; mlflow ui --backend-store-uri {shlex.quote(uri)}"
