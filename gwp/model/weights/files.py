"""Checkpoint files on disk: which they are, what they hold, and one tensor at a time.

safetensors and PyTorch's own files (`.bin`, `.pt`, `.pth`), single or sharded through an index.
Nothing in a file is executed.
"""

import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gwp import storage
from gwp.errors import GwpError
from gwp.model.shards import shard_names

STEM = "diffusion_pytorch_model"
FILE = f"{STEM}.safetensors"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# Names that diffusers and transformers give; the first that is there is taken, since other
# tensors may lie beside it.
_STEMS = (STEM, "model", "pytorch_model")
_WRAPPERS = ("model", "state_dict")
_ZIP = b"PK\x03\x04"


class _OneMapped:
    """The pickled file that was read last; older ones are let go, so that of many shards one is
    mapped at a time.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._tensors: dict[str, Tensor] = {}

    def read(self, path: Path) -> dict[str, Tensor]:
        if path != self._path:
            # Let go first: else two are mapped while the next one opens.
            self._path = None
            self._tensors = {}
            self._tensors = _unpickle(path)
            self._path = path
        return self._tensors


@dataclass(frozen=True)
class TensorFile:
    """One file. `tensors`: name -> a tensor on the meta device, which has shape and dtype but
    no memory.
    """

    path: Path
    tensors: dict[str, Tensor]
    _pickles: _OneMapped | None = field(default=None, repr=False)

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU. A safetensors file is mapped only as long as its tensor lives,
        so memory stays near one tensor.
        """
        if self._pickles is not None:
            return self._pickles.read(self.path)[name]
        with safe_open(self.path, framework="pt") as handle:
            return handle.get_tensor(name)


def locate(uri: str) -> str:
    """The checkpoint at or below `uri`: `model/` of finished weights and bundles,
    `transformer/` of a diffusers pipeline.
    """
    for part in ("model", "transformer"):
        inner = storage.join(uri, part)
        if storage.exists(storage.join(inner, "config.json")):
            return inner
    return uri


def weight_files(path: str | Path) -> list[Path]:
    """The weight files of a checkpoint folder, through its index when it has one, or the one
    file that `path` is.

    GwpError when there are none, when a shard is missing, or when it is not clear which of
    several is meant.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise GwpError(
                f"{path}: not a weight file; give a checkpoint folder or a file ending in "
                f"{', '.join(SUFFIXES)}"
            )
        return [path]

    # Under a name of the libraries; safetensors before pickles, an index before what it names.
    for stem in _STEMS:
        for suffix in SUFFIXES:
            if (index := path / f"{stem}{suffix}.index.json").is_file():
                return _indexed(index)
            if (single := path / f"{stem}{suffix}").is_file():
                return [single]
            if shards := sorted(path.glob(f"{stem}-*-of-*{suffix}")):
                return _numbered(shards)

    # Under any other name, if there is no doubt.
    files = sorted(p for p in path.glob("*") if p.suffix in SUFFIXES)
    if len(files) == 1:
        return files
    if files:
        raise GwpError(
            f"{path}: several weight files and no index: {', '.join(f.name for f in files)}; "
            "name the one that is meant"
        )
    raise GwpError(
        f"{path}: no weights here; give a folder with {FILE} or its shard index (or .bin), or "
        "one such file"
    )


def _indexed(index: Path) -> list[Path]:
    names = shard_names(index)
    if missing := [n for n in names if not (index.parent / n).is_file()]:
        raise GwpError(
            f"{index.parent}: shards named in the index are missing: {', '.join(missing)}"
        )
    return [index.parent / n for n in names]


def _numbered(shards: list[Path]) -> list[Path]:
    """Shards without an index tell by their names how many they are."""
    match = re.search(r"-of-(\d+)\.", shards[0].name)
    total = int(match[1]) if match else 0
    if len(shards) != total:
        raise GwpError(
            f"{shards[0].parent}: {len(shards)} of {total} shards and no index; copy the others too"
        )
    return shards


def open_files(paths: list[Path]) -> list[TensorFile]:
    """Names, shapes and dtypes of files; GwpError when one is damaged, or holds anything but
    tensors.
    """
    pickles = _OneMapped()
    return [
        _open_safetensors(p) if p.suffix == ".safetensors" else _open_pickled(p, pickles)
        for p in paths
    ]


def _open_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as handle:
            # A mapped tensor is not read until it is looked at.
            names = list(handle.keys())
            tensors = {n: torch.empty_like(handle.get_tensor(n), device="meta") for n in names}
            return TensorFile(path, tensors)
    except (SafetensorError, OSError, ValueError) as error:
        raise GwpError(f"{path}: damaged or cut short ({_reason(error)}); copy it again") from error


def _open_pickled(path: Path, pickles: _OneMapped) -> TensorFile:
    mapped = pickles.read(path)
    tensors = {n: torch.empty_like(t, device="meta") for n, t in mapped.items()}
    return TensorFile(path, tensors, pickles)


def _unpickle(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        mapped = file.read(4) == _ZIP
    try:
        # Files older than PyTorch 1.6 are no zip archives; those cannot be mapped and are read
        # whole.
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise GwpError(
            f"{path}: damaged, or holds more than tensors, which may run code and is refused; "
            "save it as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise GwpError(f"{path}: damaged or cut short ({_reason(error)}); copy it again") from error
    # Trainers save the weights beside the optimizer's state, in one dict or in two.
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise GwpError(
            f"{path}: holds {_kind(content)}; expected a dict of tensors, bare or under "
            "'model' or 'state_dict'"
        )
    if strange := [
        k for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)
    ]:
        raise GwpError(
            f"{path}: {strange[0]!r} is {_kind(content[strange[0]])}; expected a dict of "
            "tensors, bare or under 'model' or "
            "'state_dict'"
        )
    return {n: t.detach() for n, t in content.items()}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _kind(value: Any) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"
