"""What is said of a checkpoint by who judges beside the steps: it comes when the checkpoint has been
whole for a while, so it is no part of its manifest.

    <run>/checkpoints/step_000040-a1/VERDICT.json    its loss in validation
    <run>/awaited.json                               checkpoints whose verdict is awaited

The driver of a run writes both.
"""

import json
import logging
from collections.abc import Collection

from gwp import storage
from gwp.errors import MissingError

VERDICT = "VERDICT.json"
_AWAITED = "awaited.json"

logger = logging.getLogger(__name__)


def write_verdict(uri: str, loss: float | None) -> None:
    """Say of a checkpoint what it came to; None where no sample could be read."""
    # As text, because JSON has no NaN.
    note = {"loss": None if loss is None else str(loss)}
    storage.write_bytes(storage.join(uri, VERDICT), json.dumps(note).encode())


def read_verdict(uri: str) -> float | None:
    """Its loss in validation; None where there is none."""
    try:
        loss = json.loads(storage.read_bytes(storage.join(uri, VERDICT)))["loss"]
        return None if loss is None else float(loss)
    except MissingError:
        return None
    except (ValueError, KeyError, TypeError):
        logger.warning("%s of %s is none of ours: it counts as not judged", VERDICT, uri)
        return None


def await_verdicts(run_uri: str, names: Collection[str]) -> None:
    """Have the checkpoint folders of these names stay until their verdict is there; none: forget
    what was awaited.
    """
    uri = storage.join(run_uri, _AWAITED)
    if names:
        storage.write_bytes(uri, json.dumps(sorted(names)).encode())
    elif storage.exists(uri):
        storage.remove(uri)


def awaited(run_uri: str) -> set[str]:
    """Names of the checkpoint folders that stay for a verdict."""
    try:
        names = json.loads(storage.read_bytes(storage.join(run_uri, _AWAITED)))
    except (MissingError, ValueError):
        return set()
    return set(map(str, names))
