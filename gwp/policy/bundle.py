"""The policy bundle: one folder that is a policy, with one identity.

    MANIFEST.json      sha256 and size of every other file; the sha256 of this file is the policy id
    model/             config.json and safetensors in the published names
    codec/  text/      the video codec and the text encoder
    policy.json        canvas, window, solver
    embodiments.json   name -> Embodiment
    stats.json         name -> normalisation statistics with the rule they were computed under
    lineage.json       where it comes from

No pickle anywhere. Reading verifies every hash. Knows nothing of torch, so a gateway can read
it too.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.embodiment import Embodiment
from gwp.data.window import Window
from gwp.errors import BundleError, GwpError

MANIFEST = "MANIFEST.json"
FORMAT = 1


class PolicyConfig(BaseModel):
    """How observations become tokens and tokens become actions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    """Model family, `gwp0` or `gwp05`."""
    model_dim: int = Field(gt=0)
    """Width of state and action vectors inside the model; narrower robots are zero-padded."""
    canvas: Canvas
    """How camera views are composed."""
    window: Window
    """Actions per chunk and the stride of imagined frames, control steps."""
    steps: int = Field(default=10, gt=0)
    """Euler steps of the solver."""
    shift: float = Field(default=5.0, gt=0)
    """Shift of the solver's noise levels."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on the local disk."""

    folder: Path
    id: str
    settings: PolicyConfig
    embodiments: dict[str, Embodiment]
    stats: dict[str, Any]
    lineage: dict[str, Any]


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def seal(folder: str | Path) -> str:
    """Write MANIFEST.json over everything in `folder` and return the policy id."""
    folder = Path(folder)
    names = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name != MANIFEST
    )
    files = {
        name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size}
        for name in names
    }
    text = json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_bundle(uri: str | Path) -> Bundle:
    """Read and verify a bundle from a path or `s3://`; BundleError names the first file that
    does not fit.

    Remote bundles are kept under `GWP_CACHE` (default `~/.cache/gwp`) by their id, so replicas
    of one machine fetch once.
    """
    uri = str(uri)
    folder = _fetch(uri) if storage.is_remote(uri) else Path(uri.removeprefix("file://"))
    policy_id = _verify(folder, uri)
    try:
        return Bundle(
            folder=folder,
            id=policy_id,
            settings=PolicyConfig.model_validate_json((folder / "policy.json").read_text()),
            embodiments={
                n: Embodiment.model_validate(e)
                for n, e in _json(folder / "embodiments.json").items()
            },
            stats=_json(folder / "stats.json"),
            lineage=_json(folder / "lineage.json"),
        )
    except FileNotFoundError as error:
        raise BundleError(
            f"{uri}: {Path(error.filename).name} is missing; export the policy again"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"{uri}: {error.title} does not fit at {where}: {first['msg']}; export the policy again"
        ) from error


def read_id(uri: str | Path) -> str:
    """The policy id, from the manifest alone."""
    try:
        return hashlib.sha256(storage.read_bytes(storage.join(str(uri), MANIFEST))).hexdigest()
    except GwpError as error:
        if "not found" in str(error):
            raise BundleError(
                f"{uri}: no {MANIFEST}; this is not a policy bundle (make one with `gwp export`)"
            ) from error
        raise


def _json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def _verify(folder: Path, uri: str) -> str:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{uri}: no {MANIFEST}; this is not a policy bundle (make one with `gwp export`)"
        )
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        files = manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{uri}: {MANIFEST} cannot be read ({error}); export or copy the policy again"
        ) from error
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{uri}: bundle format {manifest.get('format')}, this version reads {FORMAT}; "
            "export the policy again"
        )
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise BundleError(f"{uri}: {name} is missing; copy the bundle again")
        if file.stat().st_size != expected["size"] or sha256_file(file) != expected["sha256"]:
            raise BundleError(
                f"{uri}: {name} was altered (its sha256 differs from the manifest); copy or "
                "export the bundle again"
            )
    extra = (
        {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        - set(files)
        - {MANIFEST}
    )
    if extra:
        raise BundleError(
            f"{uri}: files that the manifest does not name: {', '.join(sorted(extra))}; remove "
            "them or export again"
        )
    return hashlib.sha256(raw).hexdigest()


def _fetch(uri: str) -> Path:
    root = Path(os.environ.get("GWP_CACHE", "~/.cache/gwp")).expanduser() / "bundles"
    target = root / read_id(uri)
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=root))
    storage.download(uri, scratch)
    try:
        scratch.rename(target)
    except OSError:
        # Another process was faster; both copies are verified by their hashes when read.
        if not target.is_dir():
            raise
    return target
