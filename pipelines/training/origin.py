"""Where the weights of a run come from: another run by its name, a folder, an MLflow run by its
id, or a policy of the registry.
"""

import json
import re
from typing import Any

from gwp import storage
from gwp.errors import GwpError, MissingError
from gwp.model.weights import locate
from gwp.model.weights.names import SOURCE_CLASSES
from gwp.policy.bundle import MANIFEST
from gwp.policy.locate import SCHEME
from pipelines.jobs.resolve import FINAL_NOTE, init_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.registry import bundle_of
from pipelines.tracking.runs import place_of

_RUN_ID = re.compile(r"[0-9a-f]{32}")


def origin_of(job: TrainJob) -> str | None:
    """The folder that `init` means now: finished weights of a run, a bundle, a published
    checkpoint; None for random weights. GwpError when there are none, or of another family.
    """
    if job.init is None:
        return None
    if job.init.startswith(SCHEME):
        init = bundle_of(job.init)
        if not storage.exists(storage.join(init, MANIFEST)):
            raise GwpError(f"init: {job.init} lies at {init}, where there is no bundle any more")
    elif _RUN_ID.fullmatch(job.init) and not _is_run(job, job.init):
        place = place_of(job.init)
        init = storage.join(place, "final")
        if not storage.exists(storage.join(init, FINAL_NOTE)):
            raise GwpError(
                f"init: MLflow run {job.init} is {place}, which has no finished weights; run that "
                "stage to its end first"
            )
    else:
        found = init_uri(job)
        assert found is not None
        init = found
    _require_family(job, init)
    return init


def moves(init: str | None) -> bool:
    """Whether what `init` means may be another place tomorrow: MLflow says where."""
    return init is not None and (init.startswith(SCHEME) or bool(_RUN_ID.fullmatch(init)))


def parents_of(init: str | None) -> tuple[str, ...]:
    """The MLflow run whose weights lie at `init`, when it was one of ours."""
    if not init:
        return ()
    note = _read(storage.join(init, FINAL_NOTE))
    if note is not None:
        # MLflow may have been away until its end, and told since.
        run_id = note["run_id"] or _noted(init.removesuffix("/final"))
    else:
        run_id = next((s.get("mlflow_run_id") for s in stages_of(init)), None)
    return (run_id,) if run_id else ()


def stages_of(init: str) -> list[dict[str, Any]]:
    """The stages that a bundle at `init` says it was made by, newest first; none of anything
    else.
    """
    lineage = _read(storage.join(init, "lineage.json")) or {}
    stages: list[dict[str, Any]] = lineage.get("stages", [])
    return stages


def _noted(run: str) -> str | None:
    try:
        return storage.read_bytes(storage.join(run, "run_id")).decode()
    except MissingError:
        return None


def _read(uri: str) -> dict[str, Any] | None:
    if not storage.exists(uri):
        return None
    found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    return found


def _is_run(job: TrainJob, name: str) -> bool:
    return storage.exists(storage.join(job.run.storage, name, "job.json"))


def _require_family(job: TrainJob, init: str) -> None:
    """GwpError when weights are of another family, which the workers would find out late."""
    uri = locate(init)
    # The other forms have no such file, or another class: their tensors tell.
    config = _read(storage.join(uri, "config.json")) or {}
    family = SOURCE_CLASSES.get(str(config.get("_class_name")))
    wanted = job.model_config_.family
    if family is not None and family != wanted:
        raise GwpError(
            f"init: {uri} holds weights of the family {family}, the job's model is {wanted}; start "
            "from others, or convert them with `gwp weights convert`"
        )
