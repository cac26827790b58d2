"""Hashes of what makes a piece of a study, so that a changed document is seen to make another one.

Where the study lies, and how a run is watched, is in none of them.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from gwp import storage
from gwp.data.source import Source
from gwp.sim.benchmarks import find
from pipelines.config.load import resolved
from pipelines.jobs.train_job import DataConfig, TrainJob
from pipelines.studies.document.sets import SetConfig
from pipelines.studies.document.study import Study
from pipelines.training.control.changes import RUN_ONLY

# Where something lies, and what follows from other pieces, which have hashes of their own.
_PLACES = ("run.name", "init", "data.cache", "codec.saved")
_OF_CACHE = {"sources", "canvas", "window", "clip", "buckets", "curate", "embodiments"}
# What the frames are that a codec sees.
_SHAPES = ("data.canvas", "data.window", "data.clip")
_DIGITS = 12
SHORT = 8
"""Digits of a hash in the name of a folder."""


def digest(*parts: Any) -> str:
    """Short sha256 of JSON values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def place_of(study: Study, common: str, name: str) -> str:
    """Folder of a set: its own, or one below `common` whose name changes with what is asked."""
    one = study.data[name]
    if one.uri is not None:
        return one.uri
    return storage.join(common, "data", f"{name}-{digest(recordings(one))[:SHORT]}")


def recordings(one: SetConfig | Source) -> dict[str, Any]:
    """What makes the recordings of a set: what is asked, and where they lie when others made them."""
    if isinstance(one, Source):
        return {"uri": one.uri} | one.rule
    asked = one.model_dump(mode="json", exclude=set() if one.uri else {"uri"})
    if one.noise is None:
        asked["noise"] = find(one.benchmark).noise
    return asked


def without(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Nested values less those at dotted names, changed in place."""
    for name in names:
        *parents, last = name.split(".")
        at: Any = values
        for key in parents:
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at.pop(last, None)
    return values


def hash_of(job: TrainJob, study: Study, root: str, parent: str | None) -> str:
    """Of a run: its job but for places, the recordings, and what it starts from."""
    values = without(resolved(job), (*RUN_ONLY, *_PLACES))
    # Wherever the study lies, it is the same one.
    text = json.dumps(values, sort_keys=True).replace(root, "")
    return digest(text, codec_hash(study), parent)


def cache_hash(data: DataConfig, study: Study, root: str) -> str:
    """Of the latents of a mixture."""
    values = data.model_dump(mode="json", include=_OF_CACHE)
    return digest(json.dumps(values, sort_keys=True).replace(root, ""), codec_hash(study))


def codec_place(study: Study, common: str) -> str:
    """Folder of the codec and the text encoder of all arms."""
    return storage.join(common, "codec", codec_hash(study))


def codec_hash(study: Study) -> str:
    """Of the codec and text encoder of a study, and of what a linear codec is fitted on."""
    codec = [one.model_dump(mode="json") for one in (study.codec, study.text)]
    sets = [recordings(study.data[name]) for name in study.fitted_on]
    given = study.set | study.stage.set
    shapes = {key: value for key, value in given.items() if key.startswith(_SHAPES)}
    return digest(codec, sets, shapes)[:SHORT]
