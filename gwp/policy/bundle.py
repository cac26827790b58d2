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
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from gwp import storage
from gwp.cache_folder import cache_folder
from gwp.data.canvas import Canvas
from gwp.data.robot.embodiment import Embodiment
from gwp.data.window import Window
from gwp.errors import BundleError, MissingError
from gwp.model.config import ActionForm, Visibility
from gwp.storage.local_files import is_temporary
from gwp.storage.named_files import (
    check_files,
    check_part,
    check_room,
    fetch_files,
    read_manifest,
)
from gwp.storage.names import shown, shown_all

MANIFEST = "MANIFEST.json"
PARTS = ("policy.json", "embodiments.json", "stats.json", "lineage.json")
"""What a bundle says of itself, besides its weights."""
FORMAT = 1
_NO_BUNDLE = f"no {MANIFEST}; this is not a policy bundle (make one with `gwp export`)"


class FileEntry(BaseModel):
    """One file of a bundle, as its manifest has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex digest of the content."""


_ENTRIES = TypeAdapter(dict[str, FileEntry])


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
    trained_delay: int | None = Field(default=None, ge=0)
    """Longest delay of real-time chunking that training showed the model, control steps; 0: none;
    None: not known, as in bundles of before.
    """
    masking: Literal["valid", "published"] = "valid"
    """Whether training supervised the channels that a robot does not have (`published`): then
    they are integrated as the others. `valid`: they are held at their noise, as training showed them.
    """
    visibility: Visibility = "action-centred"
    """Which groups of tokens see which, as the model's own configuration says."""
    actions: ActionForm = "tokens"
    """What states and actions are to the transformer, as the model's own configuration says."""

    # Bundles of before are hashed without it.
    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if self.trained_delay is None:
            fields.pop("trained_delay", None)
        if self.masking == "valid":
            fields.pop("masking", None)
        if self.visibility == "action-centred":
            fields.pop("visibility", None)
        if self.actions == "tokens":
            fields.pop("actions", None)
        return fields


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
    """Write MANIFEST.json over everything in `folder` and return the policy id.

    BundleError for names and links that `read_bundle` would refuse.
    """
    folder = Path(folder)
    names = sorted(name for name in _names(folder) if name != MANIFEST)
    check_files(str(folder), names, BundleError)
    files = {
        name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size}
        for name in names
    }
    # Sorted: the same files give the same policy id.
    text = json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_bundle(uri: str | Path) -> Bundle:
    """Read and verify a bundle from a path or `s3://`; BundleError names the first file that
    does not fit.

    Remote bundles are kept in the cache folder (`gwp.cache_folder`) by their id, so that
    replicas of one machine fetch once.
    """
    uri = str(uri)
    remote = storage.is_remote(uri)
    folder = _fetch(uri) if remote else Path(uri.removeprefix("file://"))
    policy_id = _verify(folder, f"{uri} (kept in {folder})" if remote else uri)
    # It was kept under the id of the manifest at `uri`.
    if remote and policy_id != folder.name:
        raise BundleError(f"{uri}: {folder} holds another policy, {policy_id}; remove that folder")
    try:
        return Bundle(
            folder=folder,
            id=policy_id,
            settings=PolicyConfig.model_validate_json((folder / "policy.json").read_text()),
            embodiments={
                n: Embodiment.model_validate(e)
                for n, e in _mapping(folder / "embodiments.json", uri).items()
            },
            stats=_mapping(folder / "stats.json", uri),
            lineage=_mapping(folder / "lineage.json", uri),
        )
    except FileNotFoundError as error:
        raise BundleError(
            f"{uri}: {Path(error.filename).name} is missing; export the policy again"
        ) from error
    except ValidationError as error:
        # One mistake is enough: a bundle is exported again, not corrected by hand.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"{uri}: {error.title} does not fit at {where}: {first['msg']}; export the policy again"
        ) from error


def read_id(uri: str | Path) -> str:
    """The policy id, from the manifest alone."""
    return hashlib.sha256(_manifest(str(uri))).hexdigest()


def _manifest(uri: str) -> bytes:
    try:
        return read_manifest(storage.join(uri, MANIFEST), BundleError)
    except MissingError as error:
        raise BundleError(f"{uri}: {_NO_BUNDLE}") from error


def _names(folder: Path) -> set[str]:
    """Files below a folder, but for what killed writers left."""
    files = (path for path in folder.rglob("*") if path.is_file() and not is_temporary(path.name))
    return {path.relative_to(folder).as_posix() for path in files}


def _mapping(path: Path, uri: str) -> dict[str, Any]:
    """A JSON object of the bundle at `uri`."""
    try:
        loaded = json.loads(path.read_text())
    except (ValueError, RecursionError):
        loaded = None
    if not isinstance(loaded, dict):
        raise BundleError(f"{uri}: {path.name} is not a JSON object; export the policy again")
    return loaded


def _entries(raw: bytes, uri: str) -> dict[str, FileEntry]:
    """What the manifest `raw` of the bundle at `uri` names.

    BundleError when it is none, or of another version.
    """
    try:
        manifest = json.loads(raw)
        if (version := manifest.get("format")) != FORMAT:
            raise BundleError(
                f"{uri}: bundle format {shown(version)}, this version reads {FORMAT}; "
                "export the policy again"
            )
        return _ENTRIES.validate_python(manifest["files"])
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{' '.join(map(shown, first['loc']))}: {first['msg']}"
        raise BundleError(
            f"{uri}: {MANIFEST} cannot be read ({reason}); export or copy the policy again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # JSON of any form, also nested so deep that parsing gives up.
        raise BundleError(
            f"{uri}: {MANIFEST} cannot be read ({error}); export or copy the policy again"
        ) from error


def _check_sizes(entries: dict[str, FileEntry], files: dict[str, int], uri: str) -> None:
    """BundleError when the files there (name -> bytes) are not those that the manifest names."""
    for name, entry in entries.items():
        if name not in files:
            raise BundleError(f"{uri}: {shown(name)} is missing; copy the bundle again")
        if name in PARTS:
            check_part(f"{uri}: {name}", entry.size, BundleError)
        if files[name] != entry.size:
            raise BundleError(
                f"{uri}: {shown(name)} was altered (it has {files[name]} bytes instead "
                f"of {entry.size}); copy or export the bundle again"
            )
    if extra := files.keys() - entries.keys() - {MANIFEST}:
        raise BundleError(
            f"{uri}: files that the manifest does not name: {shown_all(extra)}; "
            "remove them or export again"
        )


def _verify(folder: Path, uri: str) -> str:
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{uri}: {_NO_BUNDLE}")
    # Read once: what is checked is what the id is the hash of.
    raw = read_manifest(str(folder / MANIFEST), BundleError)
    entries = _entries(raw, uri)
    check_files(str(folder), [*entries, MANIFEST], BundleError)
    # Links to folders that nothing names would be no files, and yet somewhere else.
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if (path.is_file() or path.is_symlink()) and not is_temporary(path.name):
            name = path.relative_to(folder).as_posix()
            sizes[name] = path.stat().st_size if path.is_file() else -1
    # Sizes before hashes: what was cut short is told without reading the rest.
    _check_sizes(entries, sizes, uri)
    for name, entry in entries.items():
        if sha256_file(folder / name) != entry.sha256:
            raise BundleError(
                f"{uri}: {name} was altered (its sha256 differs from the manifest); copy or "
                "export the bundle again"
            )
    return hashlib.sha256(raw).hexdigest()


def _fetch(uri: str) -> Path:
    """The bundle at `uri` on the local disk: the files that its manifest names, and no others."""
    raw = _manifest(uri)
    root = cache_folder("bundles")
    target = root / hashlib.sha256(raw).hexdigest()
    # Not verified here: `read_bundle` does it at every start, whatever became of it since.
    if target.is_dir():
        return target
    # Names and sizes first: a bundle that cannot be whole costs no transfer.
    entries = _entries(raw, uri)
    check_files(uri, entries, BundleError)
    _check_sizes(entries, storage.list_files(uri), uri)
    sizes = {name: entry.size for name, entry in entries.items()}
    check_room(uri, sizes.values(), root, BundleError)
    # Beside its place, for a rename within one file system is all or nothing.
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        folder = Path(scratch) / "bundle"
        # Whatever the umask is: the files in it are read again and again.
        folder.mkdir(mode=0o700)
        # Hashed on the way: what is not what the manifest names is never kept.
        digests = {name: entry.sha256 for name, entry in entries.items()}
        fetch_files(uri, sizes, folder, digests, BundleError)
        (folder / MANIFEST).write_bytes(raw)
        try:
            folder.rename(target)
        except OSError:
            # Another process was faster; both copies are verified by their hashes when read.
            if not target.is_dir():
                raise
    return target
