"""Checkpoints that stay however old they are: those that something refers to."""

import json
from collections.abc import Collection

from gwp import storage
from gwp.errors import MissingError
from pipelines.jobs.resolve import FINAL_NOTE
from pipelines.tracking.registry import checkpoints_of
from pipelines.tracking.runs import UnansweredError


def referenced(run_uri: str, run_id: str | None) -> Collection[str]:
    """Folder names of the checkpoints of a run of which finished weights or a registered policy
    were made.

    UnansweredError when the registry cannot be asked, also because the run has no MLflow run yet.
    """
    if run_id is None:
        raise UnansweredError(f"{run_uri} has no MLflow run yet")
    uris = checkpoints_of(run_uri, run_id)
    try:
        note = json.loads(storage.read_bytes(storage.join(run_uri, "final", FINAL_NOTE)))
        uris.add(note["checkpoint"])
    except MissingError:
        # Not finished, or about to be written again.
        pass
    return {uri.rstrip("/").rpartition("/")[2] for uri in uris}
