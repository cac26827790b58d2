"""What has to hold before a job is started: nodes that can do it, files that hold no secret, paths that its
machines find.
"""

from collections.abc import Iterator, Mapping, Sequence

import yaml

from clusters.jobs.probe import Found
from clusters.jobs.submit import Work
from gwp import __version__
from gwp.errors import GwpError


def require_nodes(
    found: Sequence[Found], work: Work, address: str, python: str, any_version: bool = False
) -> None:
    """GwpError when nodes lack what the work needs: our package or what that needs, a secret; or are
    of another version.

    python: ours, major and minor. any_version: other versions are taken
    """
    where = {node: f"pool {node.pool}" if node.pool else "its nodes" for node in found}
    for node in found:
        if work.code == "image" and not node.gwp:
            raise GwpError(
                f"{address}: there is no gwp on {where[node]}; put it into the image, or submit "
                "with --code project"
            )
        if node.lacks:
            raise GwpError(
                f"{address}: {where[node]} lacks {', '.join(node.lacks)}; make the image with the "
                "`cluster` extra of gwp"
            )
        if any_version:
            continue
        if work.code == "image" and node.gwp != __version__:
            raise GwpError(
                f"{address}: gwp is {node.gwp} on {where[node]} and {__version__} here: submit from "
                "the same one, or with --code project, or with --any-version"
            )
        if node.python != python:
            raise GwpError(
                f"{address}: Python is {node.python} on {where[node]} and {python} here: submit "
                f"from a Python {node.python}, or with --any-version"
            )
    unset = {name: [where[node] for node in found if name in node.unset] for name in work.secrets}
    missing = [f"{name} on {', '.join(pools)}" for name, pools in unset.items() if pools]
    if missing:
        raise GwpError(
            f"{address}: not set: {'; '.join(missing)}. Set them in the environment of the nodes "
            "(from a Secret where that is Kubernetes); a job carries names only"
        )


def require_no_values(work: Work, values: Mapping[str, str]) -> None:
    """GwpError when a document holds the value of one of the secrets. values: name -> value, of
    those that are set here
    """
    # As they are and as they are read: YAML quotes, escapes and folds.
    texts = [*work.documents, *work.options]
    texts += [text for document in work.documents for text in _texts(yaml.safe_load(document))]
    for name, value in values.items():
        # Short ones (`1`, `key`) are words, and stand in any file.
        if len(value) >= 8 and any(value in text for text in texts):
            raise GwpError(
                f"the files hold the value of {name}, which everyone who sees the cluster would "
                "read; take it out"
            )


def require_reachable(relative: Mapping[str, str], address: str, here: bool) -> None:
    """GwpError for relative paths (dotted name -> path) in a document for a cluster elsewhere.

    Its machines have no folder that such paths could start from. Absolute ones may lie on a
    file system that all machines share.
    `here`: the cluster is this machine.
    """
    if relative and not here:
        shown = ", ".join(f"{name} ({path})" for name, path in relative.items())
        raise GwpError(
            f"the cluster at {address} runs on other machines and cannot find {shown}; "
            "give s3:// URIs, or absolute paths that exist there"
        )


def _texts(value: object) -> Iterator[str]:
    """Every text in a document, names of fields too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif value is not None:
        yield str(value)
