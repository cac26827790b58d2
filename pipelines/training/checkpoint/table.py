"""The checkpoints of a run as a table for people: each that was ever whole, and what became of it.

<run>/checkpoints.json    a list of rows, oldest first
"""

import json
import logging
from collections.abc import Collection, Sequence
from typing import Any

from gwp import storage
from gwp.errors import MissingError
from pipelines.tracking.curves import LOSS, read_verdicts
from pipelines.training.checkpoint.checkpoints import CheckpointManifest, find_committed
from pipelines.training.checkpoint.retention import best
from pipelines.training.checkpoint.verdict import awaited

FILE = "checkpoints.json"
COLUMNS = ("step", "attempt", "bytes", "seconds", "validation", "created", "state")
"""bytes: of all files; seconds: from the moment when it was taken until it was whole; validation:
loss there; created: UTC; state: kept or gone, and why.
"""
_GONE = "gone: "

logger = logging.getLogger(__name__)


def read_table(run_uri: str) -> list[dict[str, Any]]:
    """The rows in a run folder; none before the first checkpoint."""
    try:
        rows: list[dict[str, Any]] = json.loads(storage.read_bytes(storage.join(run_uri, FILE)))
    except MissingError:
        return []
    except ValueError:
        logger.warning("%s in %s is no JSON: it is begun anew", FILE, run_uri)
        return []
    return rows


def updated(
    run_uri: str, keep: int, manifest: CheckpointManifest, seconds: float | None
) -> list[dict[str, Any]]:
    """The rows with the checkpoint that has just become whole, after others were removed for it;
    written to the run folder. keep: of the newest; seconds: that it took, None: not known
    """
    row = {
        "step": manifest.step,
        "attempt": manifest.attempt,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "seconds": None if seconds is None else round(seconds, 2),
        "validation": manifest.validation,
        "created": manifest.created,
        "state": "",
    }
    return _written(run_uri, keep, [*read_table(run_uri), row], manifest.step)


def judged(run_uri: str, keep: int) -> list[dict[str, Any]]:
    """The rows with what was said of checkpoints since they were whole; written to the run folder.
    Only when nobody takes checkpoints any more.
    """
    rows = read_table(run_uri)
    # Of a step that was taken again it is the newer one that was judged.
    last = {row["step"]: row for row in sorted(rows, key=_key)}
    for name, value, _, step in read_verdicts(run_uri):
        # Its checkpoint may be gone.
        if name == LOSS and step in last and last[step]["validation"] is None:
            last[step]["validation"] = value
    return _written(run_uri, keep, rows, max(last, default=0) + 1)


def _written(
    run_uri: str, keep: int, given: Sequence[dict[str, Any]], newest: int
) -> list[dict[str, Any]]:
    """newest: step at and behind which checkpoints that are not there were set aside"""
    rows = {_key(row): row for row in given}
    committed = find_committed(run_uri)
    states = states_of(committed, keep, awaited(run_uri))
    losses = {(m.step, m.attempt): m.validation for _, m in committed}
    for key, row in rows.items():
        if key in states:
            row |= {"state": states[key], "validation": losses[key]}
        elif not str(row["state"]).startswith(_GONE):
            # One that is set aside is behind those that are taken now.
            why = "set aside" if row["step"] >= newest else f"not one of the newest {keep}"
            row["state"] = f"{_GONE}{why}"
    told = sorted(rows.values(), key=_key)
    storage.write_bytes(storage.join(run_uri, FILE), json.dumps(told, indent=1).encode())
    return told


def states_of(
    committed: Sequence[tuple[str, CheckpointManifest]], keep: int, waits: Collection[str] = ()
) -> dict[tuple[int, int], str]:
    """(step, attempt) -> why it is kept. committed: those that are there, newest first; waits:
    names of those whose verdict is awaited
    """
    lowest = best(committed)
    states = {}
    for place, (uri, manifest) in enumerate(committed):
        reasons = []
        if uri == lowest:
            reasons.append("best by validation")
        if place < keep:
            reasons.append(f"one of the newest {keep}")
        if uri.rpartition("/")[2] in waits:
            reasons.append("its verdict is awaited")
        reasons = reasons or ["weights or a policy were made of it, or it cannot be asked"]
        states[manifest.step, manifest.attempt] = f"kept: {', '.join(reasons)}"
    return states


def as_columns(rows: Sequence[dict[str, Any]]) -> bytes:
    """As MLflow shows a table."""
    data = [[row.get(name) for name in COLUMNS] for row in rows]
    return json.dumps({"columns": list(COLUMNS), "data": data}).encode()


def _key(row: dict[str, Any]) -> tuple[int, int]:
    return int(row["step"]), int(row["attempt"])
