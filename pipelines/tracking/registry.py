"""The registry: a bundle becomes a version, an alias such as `champion` moves from version to
version.

A version keeps the bundle's address and its policy id (the hash of everything in it); nothing
is copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gwp import storage
from gwp.errors import GwpError
from gwp.policy.locate import parse_model_uri
from pipelines.tracking.runs import client, explained, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

POLICY_TAG = "policy_id"


@dataclass(frozen=True)
class RegisteredPolicy:
    """One version in the registry, which does not move."""

    name: str
    version: str
    uri: str
    """Bundle."""
    tags: dict[str, str]
    """With `policy_id`."""


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
        for version in mlflow.search_model_versions(f"name = '{name}'"):
            if version.tags.get(POLICY_TAG) == policy_id and version.source == uri:
                return str(version.version)
        labels = {POLICY_TAG: policy_id, **(tags or {})}
        return str(
            mlflow.create_model_version(name, source=uri, run_id=run_id, tags=labels).version
        )


def promote(name: str, version: str, alias: str = "champion") -> None:
    """Point `models:/NAME@ALIAS` at a version. Who has resolved the alias before keeps what it
    has.
    """
    with explained():
        client().set_registered_model_alias(name, alias, version)


def resolve_model_uri(uri: str) -> RegisteredPolicy:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` under any tracking URI;
    `gwp.policy.locate` does it without MLflow.
    """
    name, alias, version = parse_model_uri(uri)
    with explained():
        mlflow = client()
        found = (
            mlflow.get_model_version_by_alias(name, alias)
            if alias
            else mlflow.get_model_version(name, str(version))
        )
    return RegisteredPolicy(name, str(found.version), str(found.source), dict(found.tags))


def _lasting(bundle_uri: str) -> str:
    """The address that others will use, absolute; GwpError when a server's users could not
    reach it.
    """
    if storage.is_remote(bundle_uri):
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

    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
