"""The registry: a bundle becomes a version, an alias such as `champion` moves from version to
version.

A version keeps the bundle's address and its policy id (the hash of everything in it); nothing
is copied.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwp import storage
from gwp.errors import GwpError, MissingError
from gwp.policy.locate import parse_model_uri
from pipelines.tracking.artefacts import add_version
from pipelines.tracking.runs import client, explained, short, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from gwp.policy.bundle import Bundle

POLICY_TAG = "policy_id"
RUN_TAG = "gwp.run"
"""Folder of the run that a version was made of."""
CHECKPOINT_TAG = "gwp.checkpoint"
"""Its checkpoint."""
BEST_TAG = "gwp.best_checkpoint"
"""Of a run: the one of the lowest loss in validation."""
GATE_TAG = "gwp.gate."
"""Of a version, with a name behind it: what it passed before it was registered."""

logger = logging.getLogger(__name__)


def register(
    bundle_uri: str,
    policy_id: str,
    name: str,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Record a bundle as a version of `name`; returns the version, the earlier one when this
    bundle is registered already.
    """
    uri = _lasting(bundle_uri)
    with explained():
        mlflow = client()
        _ensure_name(mlflow, name)
        # Promoting the same bundle twice is no second version; at another place it is one.
        for version in mlflow.search_model_versions(f"name = '{name}'"):
            if version.tags.get(POLICY_TAG) == policy_id and version.source == uri:
                return str(version.version)
        labels = {POLICY_TAG: policy_id, **(tags or {})}
        return str(
            mlflow.create_model_version(name, source=uri, run_id=run_id, tags=labels).version
        )


def made_of(lineage: Mapping[str, Any]) -> dict[str, str]:
    """The tags that say of which run and checkpoint a bundle was made, by its `lineage`; those
    are kept for it.
    """
    stages = lineage.get("stages") or [{}]
    tags = {RUN_TAG: stages[0].get("run"), CHECKPOINT_TAG: lineage.get("checkpoint")}
    return {key: value for key, value in tags.items() if value}


def gates_of(bundle: "Bundle") -> dict[str, str]:
    """What a bundle that could be read has passed: name -> in words."""
    robots = ", ".join(sorted(bundle.embodiments))
    return {
        "integrity": "sha256 of every file, shapes and widths",
        "contract": f"statistics and limits of {robots}",
        "lineage": "known" if bundle.lineage.get("stages") else "not known",
    }


def note_version(
    run_id: str, name: str, version: str, alias: str, policy_id: str, gates: str
) -> None:
    """Name a version on the page of the run that it was made of; a run that is not there, or an
    MLflow that does not take it, is told and stops nothing: the version is registered.
    """
    line = {
        "policy": name,
        "version": version,
        "alias": alias,
        "id": f"`{policy_id[:12]}`",
        "gates": gates.replace("|", "/"),
    }
    try:
        add_version(client(), run_id, line)
    except Exception as error:  # noqa: BLE001  whatever MLflow raises
        logger.warning("run %s does not name the version: %s", run_id, short(error))


def checkpoints_of(run_uri: str, run_id: str) -> set[str]:
    """URIs of the checkpoints of a run of which registered versions were made.

    UnansweredError when MLflow does not answer; what storage raises when a bundle cannot be read.
    """
    # A folder may have an apostrophe in its name.
    quote = '"' if "'" in run_uri else "'"
    with explained():
        mlflow = client()
        found = [
            *mlflow.search_model_versions(f"run_id = '{run_id}'"),
            # Of bundles that were made before the run had its MLflow run.
            *mlflow.search_model_versions(f"tag.`{RUN_TAG}` = {quote}{run_uri}{quote}"),
        ]
    return {uri for version in found if (uri := _checkpoint_of(version))}


def bundle_of(uri: str) -> str:
    """Where the bundle of `models:/NAME@ALIAS` or `models:/NAME/VERSION` lies; GwpError when there
    is no such version.
    """
    from mlflow.exceptions import MlflowException

    name, alias, version = parse_model_uri(uri)
    with explained():
        mlflow = client()
        try:
            if alias is not None:
                found = mlflow.get_model_version_by_alias(name, alias)
            else:
                found = mlflow.get_model_version(name, str(version))
        except MlflowException as error:
            # What it says of an alias that nothing has.
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise GwpError(f"{uri}: no version has this alias; check the name") from error
    return str(found.source).rstrip("/")


def _checkpoint_of(version: Any) -> str | None:
    """None when its bundle is gone, or does not say."""
    if CHECKPOINT_TAG in version.tags:
        return str(version.tags[CHECKPOINT_TAG])
    # Registered by an earlier version.
    try:
        lineage = json.loads(storage.read_bytes(storage.join(version.source, "lineage.json")))
    except MissingError:
        return None
    found = lineage.get("checkpoint")
    return str(found) if found else None


def promote(name: str, version: str, alias: str = "champion") -> None:
    """Point `models:/NAME@ALIAS` at a version. Who has resolved the alias before keeps what it
    has.
    """
    with explained():
        client().set_registered_model_alias(name, alias, version)


def _lasting(bundle_uri: str) -> str:
    """The address that others will use, absolute; GwpError when a server's users could not
    reach it.
    """
    if storage.is_remote(bundle_uri):
        # One spelling, since `register` compares addresses.
        return bundle_uri.rstrip("/")
    if tracking_uri().startswith(("http://", "https://")):
        raise GwpError(
            f"{bundle_uri} is a folder of this machine; users of the MLflow server "
            f"{tracking_uri()} cannot read it: "
            "export the policy to s3://BUCKET/PREFIX and promote that"
        )
    return str(Path(bundle_uri.removeprefix("file://")).resolve())


def _ensure_name(mlflow: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    # Made without asking first: another process may do the same meanwhile.
    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
