"""The commit protocol of training checkpoints: files first, `MANIFEST.json` last, and a folder
without it does not exist.

    <run>/checkpoints/step_000040-a1/      step 40, written by attempt 1
        <whatever the ranks wrote>
        MANIFEST.json                      created once, after every rank has uploaded

Object stores commit single objects, never folders; the create-only manifest is what makes a
folder whole. The attempt in the name keeps files that a dead attempt left behind out of every
later checkpoint. Knows storage only: neither Ray nor torch.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gwp import storage
from gwp.errors import GwpError, MissingError
from gwp.storage.local_files import is_temporary
from gwp.storage.named_files import check_files, read_manifest
from pipelines.training.checkpoint.verdict import VERDICT, read_verdict

MANIFEST = "MANIFEST.json"
ASIDE = "ASIDE.txt"
"""File in a checkpoint that is no longer gone on from, with the reason."""
_DIGEST = "digest"
_FOLDER = "checkpoints"
_NAME = re.compile(r"step_(\d+)-a(\d+)")
# Large enough that a read from an object store is mostly transfer.
_BLOCK = 8 << 20
# Enough to keep a link busy; each holds one block.
_PARALLEL = 4

logger = logging.getLogger(__name__)


class DamagedError(GwpError):
    """A checkpoint that is not what its manifest says; an earlier one may be."""


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex digest of the content."""


class CheckpointManifest(BaseModel):
    """What a committed checkpoint holds and where in the run it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: dict[str, FileEntry] = Field(min_length=1)
    """Path relative to the checkpoint -> size and hash, over all ranks."""
    step: int = Field(ge=0)
    """Optimiser steps done."""
    samples_seen: int = Field(ge=0)
    """Samples consumed over all ranks: where the plan goes on."""
    world_size: int = Field(gt=0)
    """Ranks that wrote it."""
    zero_stage: int = Field(ge=0, le=3)
    """ZeRO stage of the optimiser state."""
    attempt: int = Field(ge=1)
    """Start of the run that wrote it, from 1."""
    plan_hash: str
    """Identity of the sample order."""
    config_hash: str
    """Identity of the resolved job."""
    validation: float | None = None
    """Loss on the samples that the run is judged by; None where it is not, or later (`verdict`)."""
    versions: dict[str, str] = Field(default_factory=lambda: installed_versions())
    """Distribution -> version that wrote it."""
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """Time of the commit, UTC, ISO 8601."""


def installed_versions(
    names: Iterable[str] = ("gwp", "torch", "deepspeed", "ray"),
) -> dict[str, str]:
    """Versions of the distributions whose state a checkpoint holds; those not installed are
    left out.
    """
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def checkpoint_uri(run_uri: str, step: int, attempt: int) -> str:
    """Where attempt `attempt` writes step `step`."""
    return storage.join(run_uri, _FOLDER, f"step_{step:06d}-a{attempt}")


def next_attempt(run_uri: str) -> int:
    """A number that no folder of the run carries yet, committed or not; the first is 1."""
    # Uncommitted folders count too: their files must never lie among those of a new attempt.
    names = {name.split("/")[0] for name in storage.list_files(storage.join(run_uri, _FOLDER))}
    return 1 + max((int(match[2]) for match in map(_NAME.fullmatch, names) if match), default=0)


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def upload_files(local_dir: str | Path, uri: str) -> dict[str, FileEntry]:
    """Copy every file below `local_dir` to `uri` and return their entries; hashes are of the
    local files.

    Each rank calls it with its own folder. Ranks must not write the same path with different
    content.
    """
    folder = Path(local_dir)
    # What a killed writer left half-written belongs to no state.
    files = [path for path in folder.rglob("*") if path.is_file() and not is_temporary(path.name)]
    names = sorted(path.relative_to(folder).as_posix() for path in files)

    def send(name: str) -> FileEntry:
        storage.put_file(folder / name, storage.join(uri, name))
        # Of the file here, not of what arrived: damage on the way shows when it is fetched.
        return FileEntry(size=(folder / name).stat().st_size, sha256=sha256_file(folder / name))

    with ThreadPoolExecutor(_PARALLEL) as pool:
        return dict(zip(names, pool.map(send, names), strict=True))


def commit(uri: str, manifest: CheckpointManifest) -> None:
    """Make the checkpoint exist. Called once, by rank 0, after every rank has uploaded.

    GwpError when a file of the manifest is not there in full, or when the checkpoint is
    committed already.
    """
    # An upload that was cut short shows in the sizes; hashes would cost reading
    # everything again.
    verify(uri, manifest, deep=False)
    try:
        storage.write_bytes(
            storage.join(uri, MANIFEST),
            _sealed(manifest),
            create_only=True,
        )
    except FileExistsError as error:
        raise GwpError(
            f"{uri} is committed already; start the run again so that it takes a new attempt number"
        ) from error


def verify(uri: str, manifest: CheckpointManifest, deep: bool = True) -> None:
    """DamagedError naming the first file that is missing or altered. `deep` reads every byte;
    otherwise sizes only.
    """
    _check_sizes(uri, manifest, storage.list_files(uri))
    if not deep:
        return

    def check(name: str) -> None:
        digest = hashlib.sha256()
        with storage.open_read(storage.join(uri, name)) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        _check_hash(uri, name, manifest, digest.hexdigest())

    with ThreadPoolExecutor(_PARALLEL) as pool:
        # The list waits for all, and raises what the first of them in order of names raised.
        list(pool.map(check, sorted(manifest.files)))


def fetch(uri: str, manifest: CheckpointManifest, folder: str | Path) -> Path:
    """Copy a committed checkpoint into a local folder, checking every hash; DamagedError names
    the file that does not fit.
    """
    # What is torn is told before anything is transferred.
    _check_sizes(uri, manifest, storage.list_files(uri))

    def get(name: str) -> None:
        target = Path(folder) / name
        storage.get_file(storage.join(uri, name), target)
        _check_hash(uri, name, manifest, sha256_file(target))

    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(get, sorted(manifest.files)))
    return Path(folder)


def find_committed(run_uri: str) -> list[tuple[str, CheckpointManifest]]:
    """Complete checkpoints of a run, newest first, each with what was said of it since. What is
    torn (a file missing or short) is logged and left out.

    Storage that fails is told, not taken for damage: an older checkpoint would cost the work
    since.
    """
    committed = []
    for name, files in folders(run_uri).items():
        uri = place_of(run_uri, name)
        # Never committed, or still being written; or no longer wanted.
        if MANIFEST not in files or ASIDE in files:
            continue
        try:
            manifest = _read(uri)
            _check_sizes(uri, manifest, files)
            if VERDICT in files:
                manifest = manifest.model_copy(update={"validation": read_verdict(uri)})
        # Missing: the writer of the run pruned it since the listing.
        except (DamagedError, MissingError) as error:
            logger.warning("checkpoint left out: %s", error)
            continue
        committed.append((uri, manifest))
    return sorted(committed, key=lambda item: (item[1].step, item[1].attempt), reverse=True)


def latest_committed(run_uri: str, deep: bool = False) -> tuple[str, CheckpointManifest] | None:
    """The newest whole checkpoint of a run, or None when there is none.

    `deep` also reads every byte and falls back to the one before when a hash differs; without
    it sizes decide, and `fetch` still refuses altered bytes.
    """
    for uri, manifest in find_committed(run_uri):
        try:
            if deep:
                verify(uri, manifest)
        except (DamagedError, MissingError) as error:
            logger.warning("checkpoint left out: %s", error)
            continue
        return uri, manifest
    return None


def set_aside(uri: str, reason: str) -> None:
    """Go on from this checkpoint no more; it stays where it is, until it would be pruned."""
    storage.write_bytes(storage.join(uri, ASIDE), f"{reason}\n".encode())
    logger.warning("checkpoint set aside: %s", reason)


def go_back(run_uri: str, step: int) -> None:
    """Set aside what is newer than the checkpoint at `step`; GwpError when there is none."""
    committed = find_committed(run_uri)
    steps = sorted({manifest.step for _, manifest in committed})
    if step not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise GwpError(f"{run_uri} has no whole checkpoint at step {step}; it has: {known}")
    for uri, manifest in committed:
        if manifest.step > step:
            set_aside(uri, f"{uri}: the run was sent back to step {step}")


def load_committed(uri: str) -> CheckpointManifest:
    """The manifest of one checkpoint named by the user; GwpError when it was never committed or
    is not whole.
    """
    files = storage.list_files(uri)
    if MANIFEST not in files:
        what = "was not committed (its writer died before the end)" if files else "does not exist"
        raise GwpError(
            f"{uri} {what}: no {MANIFEST}; name another checkpoint, or the run to take its newest"
        )
    # Errors are raised and no older one is taken: the user named this one.
    manifest = _read(uri)
    _check_sizes(uri, manifest, files)
    return manifest


def place_of(run_uri: str, name: str) -> str:
    """Where a checkpoint folder of this name lies."""
    return storage.join(run_uri, _FOLDER, name)


def step_of(name: str) -> int:
    """The step in the name of a checkpoint folder."""
    match = _NAME.fullmatch(name)
    assert match
    return int(match[1])


def folders(run_uri: str) -> dict[str, dict[str, int]]:
    """Checkpoint folder -> its files and sizes, from one listing."""
    found: dict[str, dict[str, int]] = {}
    for path, size in storage.list_files(storage.join(run_uri, _FOLDER)).items():
        name, _, file = path.partition("/")
        if file and _NAME.fullmatch(name):
            found.setdefault(name, {})[file] = size
    return found


def _sealed(manifest: CheckpointManifest) -> bytes:
    """The file of a manifest: what it says, and a digest of that."""
    record = manifest.model_dump(mode="json")
    return json.dumps(record | {_DIGEST: _digest_of(record)}, indent=1).encode()


def _digest_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read(uri: str) -> CheckpointManifest:
    raw = read_manifest(storage.join(uri, MANIFEST))
    try:
        record = json.loads(raw)
    except ValueError as error:
        raise DamagedError(
            f"{uri}: {MANIFEST} cannot be read (no JSON); choose an earlier checkpoint"
        ) from error
    digest = record.pop(_DIGEST, None) if isinstance(record, dict) else None
    try:
        manifest = CheckpointManifest.model_validate(record)
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DamagedError(
            f"{uri}: {MANIFEST} cannot be read ({where}: {first['msg']}); choose an earlier checkpoint"
        ) from error
    # Earlier versions wrote none.
    if digest is not None and digest != _digest_of(record):
        raise DamagedError(
            f"{uri}: {MANIFEST} was altered (its digest differs); choose an earlier checkpoint"
        )
    return manifest


def _check_sizes(uri: str, manifest: CheckpointManifest, files: dict[str, int]) -> None:
    # Names first: one that leads elsewhere must not be looked up.
    check_files(uri, manifest.files, DamagedError)
    for name, entry in sorted(manifest.files.items()):
        if name not in files:
            raise DamagedError(f"{uri}: {name} is missing; choose an earlier checkpoint")
        if files[name] != entry.size:
            raise DamagedError(
                f"{uri}: {name} has {files[name]} bytes instead of {entry.size}; choose an "
                "earlier checkpoint"
            )


def _check_hash(uri: str, name: str, manifest: CheckpointManifest, digest: str) -> None:
    if digest != manifest.files[name].sha256:
        raise DamagedError(
            f"{uri}: {name} was altered (its sha256 differs from the manifest); choose an "
            "earlier checkpoint"
        )
