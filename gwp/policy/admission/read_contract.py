"""The small files of a bundle, checked against its manifest, without its weights."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from gwp import storage
from gwp.data.robot.embodiment import Embodiment
from gwp.errors import BundleError, MissingError
from gwp.policy.bundle import MANIFEST, PARTS, FileEntry, PolicyConfig
from gwp.storage.named_files import read_manifest, read_part


@dataclass(frozen=True)
class Parts:
    """What a bundle says of itself."""

    policy_id: str
    settings: PolicyConfig
    embodiments: dict[str, Embodiment]
    stats: dict[str, Any]
    lineage: dict[str, Any]


def read_parts(uri: str) -> Parts:
    """The parts of the bundle at `uri` (path or `s3://`).

    BundleError when there is no bundle, a file is longer than any such file, or it differs from
    the manifest.
    """
    try:
        raw = read_manifest(storage.join(uri, MANIFEST), BundleError)
        files = json.loads(raw)["files"]
        texts = {}
        for name in PARTS:
            # The policy id is the manifest's hash: what it vouches for has to be what was read.
            entry = FileEntry.model_validate(files[name])
            path = storage.join(uri, name)
            texts[name] = read_part(path, entry.size, entry.sha256, BundleError)
        settings = PolicyConfig.model_validate_json(texts["policy.json"])
        embodiments = {
            n: Embodiment.model_validate(e)
            for n, e in json.loads(texts["embodiments.json"]).items()
        }
        stats, lineage = (dict(json.loads(texts[name])) for name in PARTS[2:])
    except MissingError as error:
        raise BundleError(
            f"{uri}: {error}; this is not a whole policy bundle (make one with `gwp export`)"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = type(error).__name__
        raise BundleError(
            f"{uri}: not a policy bundle of this version ({why}); export the policy again"
        ) from error
    return Parts(hashlib.sha256(raw).hexdigest(), settings, embodiments, stats, lineage)
