"""What the page of a run in MLflow has besides figures: tables, pictures, and the text at its top."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

NOTE_TAG = "mlflow.note.content"
"""What MLflow shows at the top of a run's page, Markdown."""
_TABLES_TAG = "mlflow.loggedArtifacts"
_BY_US = "*Written by gwp; what you write in its place stays.*"
_VERSIONS = "### Policies"


def log_file(mlflow: "MlflowClient", run_id: str, name: str, data: bytes) -> None:
    """A file below the run's artefacts; one of the same name is replaced."""
    folder, _, base = name.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / base
        path.write_bytes(data)
        mlflow.log_artifact(run_id, str(path), folder or None)


def log_table(mlflow: "MlflowClient", run_id: str, name: str, data: bytes) -> None:
    """A file of {"columns", "data"} that MLflow shows as a table."""
    log_file(mlflow, run_id, name, data)
    entry = json.dumps([{"path": name, "type": "table"}])
    mlflow.set_tag(run_id, _TABLES_TAG, entry)


def log_picture(
    mlflow: "MlflowClient", run_id: str, name: str, step: int, picture: "np.ndarray"
) -> None:
    """A picture uint8 `[h, w, 3]` of a step, which MLflow shows beside the curves."""
    mlflow.log_image(run_id, picture, key=name, step=step, synchronous=True)


def set_note(mlflow: "MlflowClient", run_id: str, text: str) -> None:
    """The text at the top of the page, unless somebody wrote one of their own. The policies that
    an earlier one names stay.
    """
    known = str(mlflow.get_run(run_id).data.tags.get(NOTE_TAG, ""))
    if known and _BY_US not in known:
        return
    _, found, versions = known.partition(_VERSIONS)
    mlflow.set_tag(
        run_id, NOTE_TAG, f"{text}\n\n{_BY_US}" + (f"\n\n{found}{versions}" if found else "")
    )


def add_version(mlflow: "MlflowClient", run_id: str, line: Mapping[str, str]) -> None:
    """Name a policy that was registered of the run at the top of its page, with what it passed."""
    known = str(mlflow.get_run(run_id).data.tags.get(NOTE_TAG, ""))
    if known and _BY_US not in known:
        return
    head, _, versions = (known or _BY_US).partition(_VERSIONS)
    row = f"| {' | '.join(line.values())} |"
    # The same version may be promoted again.
    rows = [old for old in versions.splitlines() if old.startswith("| ")][1:]
    begin = f"| {line['policy']} | {line['version']} |"
    rows = [old for old in rows if not old.startswith(begin)] + [row]
    mlflow.set_tag(
        run_id, NOTE_TAG, f"{head.rstrip()}\n\n{_VERSIONS}\n\n{markdown(list(line), rows)}"
    )


def markdown(names: Sequence[str], rows: Sequence[str]) -> str:
    """A table of Markdown. rows: written already"""
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows])


def row_of(values: Sequence[Any]) -> str:
    """A row of such a table."""
    told = ["" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
    return f"| {' | '.join(text.replace('|', '/') for text in told)} |"
