"""From the name of a policy to the address of its bundle: `models:/gwp@champion` ->
`s3://bucket/bundles/...`.

Speaks MLflow's REST interface with the standard library, so robots' gateways and laptops need
no MLflow installed. An alias is resolved once, here; what comes back is a version that does not
move.
"""

import base64
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from gwp.errors import GwpError

SCHEME = "models:/"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_TIMEOUT_S = 20.0


def parse_model_uri(uri: str) -> tuple[str, str | None, str | None]:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` -> (name, alias, version), one of the last
    two None; GwpError otherwise.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise GwpError(
            f"'{uri}' is not the name of a registered policy; write models:/NAME@ALIAS "
            "(models:/gwp@champion) "
            "or models:/NAME/VERSION (models:/gwp/3)"
        )
    # A slash or an @ in a name is written in percent form.
    return urllib.parse.unquote(match["name"]), match["alias"], match["version"]


def locate(uri: str) -> tuple[str, dict[str, str]]:
    """The bundle behind `uri` and what the registry says of it: `name`, `version`, `alias`,
    `policy_id`, `run_id` where known.

    A path or any other URI is its own bundle and comes back as it is, with nothing known.
    """
    if not uri.startswith(SCHEME):
        return uri, {}
    name, alias, version = parse_model_uri(uri)
    # Only the REST interface is spoken: a store of sqlite or files takes MLflow itself.
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not tracking.startswith(("http://", "https://")):
        raise GwpError(
            f"{uri}: finding a registered policy needs an MLflow server and "
            f"MLFLOW_TRACKING_URI is '{tracking}'; "
            "start one (`mlflow server`, `gwp mini start`) and set it to http://HOST:PORT, or "
            "give the bundle's own URI"
        )
    if alias is not None:
        model_version = _get(tracking, "registered-models/alias", uri, name=name, alias=alias)
    else:
        model_version = _get(tracking, "model-versions/get", uri, name=name, version=str(version))
    # `gwp promote` tags versions with the policy id, which `Policy.load` compares.
    tags = {tag["key"]: tag.get("value", "") for tag in model_version.get("tags", [])}
    fields = {
        "name": name,
        "version": str(model_version["version"]),
        "alias": alias or "",
        "policy_id": tags.get("policy_id", ""),
        "run_id": model_version.get("run_id", ""),
    }
    return model_version["source"], {key: value for key, value in fields.items() if value}


def _get(tracking: str, path: str, uri: str, **query: str) -> dict[str, Any]:
    """A model version as the server at `tracking` describes it."""
    url = f"{tracking.rstrip('/')}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(url, headers=_credentials())  # noqa: S310  the scheme was checked by the caller
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            reply = json.load(response)
        model_version: dict[str, Any] = reply["model_version"]
        if not {"version", "source"} <= model_version.keys():
            raise KeyError("version, source")
        return model_version
    except urllib.error.HTTPError as error:
        # Before URLError, of which it is a kind.
        raise GwpError(_explained(uri, tracking, error)) from error
    except (OSError, http.client.HTTPException) as error:
        # URLError and time-outs are kinds of OSError.
        reason = getattr(error, "reason", error)
        raise GwpError(
            f"{uri}: the MLflow server at {tracking} does not answer ({reason}); check "
            "MLFLOW_TRACKING_URI"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # No JSON, or another's: a web page may answer at that address, with 200.
        raise GwpError(
            f"{uri}: {tracking} answers, but not as an MLflow server; check MLFLOW_TRACKING_URI"
        ) from error


def _explained(uri: str, tracking: str, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return (
            f"{uri}: {tracking} refuses access ({error.code}); set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN"
        )
    try:
        body = json.loads(error.read())
    except (ValueError, OSError, http.client.HTTPException):
        body = None
    if not isinstance(body, dict):
        # Of a proxy, not of MLflow.
        body = {}
    # MLflow calls an unknown name missing, an unknown alias an invalid parameter.
    if body.get("error_code") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return (
            f"{uri}: the registry at {tracking} has no such policy "
            f"({body.get('message', '')}); register one with `gwp promote`"
        )
    return (
        f"{uri}: {tracking} answers {error.code} {body.get('message', error.reason)}; check "
        "MLFLOW_TRACKING_URI"
    )


def _credentials() -> dict[str, str]:
    # A user goes before a token, as in MLflow's own client.
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user is not None:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {"Authorization": f"Bearer {token}"} if token else {}
