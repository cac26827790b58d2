"""Which checkpoints of a run stay, and the removal of the others."""

import logging
import math
from collections.abc import Callable, Collection, Sequence

from gwp import storage
from gwp.errors import GwpError
from pipelines.training.checkpoint.checkpoints import (
    MANIFEST,
    CheckpointManifest,
    find_committed,
    folders,
    place_of,
    step_of,
)
from pipelines.training.checkpoint.verdict import awaited

logger = logging.getLogger(__name__)


def prune(
    run_uri: str, keep: int, referenced: Callable[[], Collection[str]] = frozenset
) -> list[str]:
    """Remove all but the newest `keep` checkpoints, the best by validation and those whose verdict
    is awaited, and what dead attempts left at or before the newest; returns what went. referenced:
    names of folders that stay all the same; nothing is removed when it cannot tell.

    Only the writer of the run may call it. Uncommitted folders of later steps stay: they may be
    in the making. It follows a commit that went well, so storage that fails does not fail it:
    what could not be removed is logged and left to the next call.
    """
    if keep < 1:
        raise GwpError(f"run.keep is {keep}; keep at least one checkpoint")
    gone: list[str] = []
    try:
        # First: one that is awaited no more has its verdict by now, and may be the best.
        judged = awaited(run_uri)
        outdated = [u for u in _outdated(run_uri, keep) if u.rpartition("/")[2] not in judged]
        # Asked only where something would go.
        stays = referenced() if outdated else frozenset()
        for uri in outdated:
            if uri.rpartition("/")[2] in stays:
                continue
            # First, so that a removal cut short leaves no checkpoint that looks whole.
            storage.remove(storage.join(uri, MANIFEST))
            storage.remove_tree(uri)
            gone.append(uri)
    except Exception as error:  # noqa: BLE001  whatever it is, the checkpoint is written
        logger.warning("old checkpoints of %s stay for now: %s", run_uri, error)
    return gone


def remove_torn(run_uri: str) -> list[str]:
    """Remove checkpoints that were never committed, for they take room and nobody will; returns
    what went. Only for a driver whose workers are not there: they may be in the making.
    """
    gone = []
    for name, files in folders(run_uri).items():
        if MANIFEST not in files:
            uri = place_of(run_uri, name)
            storage.remove_tree(uri)
            gone.append(uri)
    return gone


def _outdated(run_uri: str, keep: int) -> list[str]:
    """Checkpoint folders beyond the newest `keep` and the best, and those that dead attempts left
    at or before the newest.
    """
    committed = find_committed(run_uri)
    if not committed:
        return []
    newest = committed[0][1].step
    kept = {uri for uri, _ in committed[:keep]} | {best(committed)}
    outdated = []
    for name in sorted(folders(run_uri)):
        uri = place_of(run_uri, name)
        if uri not in kept and step_of(name) <= newest:
            outdated.append(uri)
    return outdated


def best(committed: Sequence[tuple[str, CheckpointManifest]]) -> str | None:
    """The URI of the one of the lowest loss in validation, the newest of equals; None without
    validation. committed: newest first
    """
    losses = [(m.validation, uri) for uri, m in committed if m.validation is not None]
    # A loss that is no number is the lowest of nothing.
    finite = [(loss, uri) for loss, uri in losses if math.isfinite(loss)]
    # `min` takes the first of equals.
    return min(finite, key=lambda pair: pair[0])[1] if finite else None
