"""Text encoders by kind, and the table that keeps an instruction from being encoded twice."""

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load, save
from torch import Tensor

from gwp import storage
from gwp.data.text import text_hash
from gwp.errors import GwpError
from gwp.model.codecs.hashed import HashedConfig, HashedTextEncoder
from gwp.model.codecs.umt5 import UMT5Config, UMT5TextEncoder

TextEncoder = HashedTextEncoder | UMT5TextEncoder
TextEncoderConfig = Annotated[HashedConfig | UMT5Config, Field(discriminator="kind")]


def build_text_encoder(config: HashedConfig | UMT5Config) -> TextEncoder:
    """The encoder a stage file names."""
    if isinstance(config, HashedConfig):
        return HashedTextEncoder(config.dim, config.rows)
    return UMT5TextEncoder.load(config.path, config.rows, config.dtype)


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """An encoder from the folder that `save` wrote."""
    path = Path(folder) / "text.json"
    if not path.is_file():
        raise GwpError(f"{folder}: no text.json; this is not a saved text encoder")
    about = json.loads(path.read_text())
    if about["kind"] == "hashed":
        return HashedTextEncoder(about["dim"], about["rows"])
    if about["kind"] == "umt5":
        return UMT5TextEncoder.load(folder, about["rows"], about["dtype"])
    raise GwpError(f"{path}: unknown kind '{about['kind']}'; known: hashed, umt5")


class TextTable:
    """Embeddings keyed by text hash: in memory (least recently used go first) and, when `cache` is given, below a folder or URI.

    Safe to use from several threads.
    """

    def __init__(self, encoder: TextEncoder, capacity: int = 4096, cache: str | None = None) -> None:
        self._encoder, self._capacity = encoder, capacity
        self._cache = storage.join(cache, encoder.digest()[:16]) if cache else None
        self._rows: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.dim, self.rows = encoder.dim, encoder.rows

    def lookup(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`."""
        keys = [text_hash(t) for t in texts]
        with self._lock:
            found = {k: self._rows[k] for k in keys if k in self._rows}
        missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in found}
        found |= {k: row for k in missing if (row := self._stored(k)) is not None}
        fresh = [k for k in missing if k not in found]
        if fresh:
            for key, row in zip(fresh, self._encoder.encode([missing[k] for k in fresh]), strict=True):
                found[key] = row
                if self._cache:
                    storage.write_bytes(storage.join(self._cache, f"{key}.safetensors"), save({"text": row.contiguous()}))
        with self._lock:
            for key in keys:
                self._rows[key] = found[key]
                self._rows.move_to_end(key)
            while len(self._rows) > self._capacity:
                self._rows.popitem(last=False)
        return torch.stack([found[k] for k in keys])

    def _stored(self, key: str) -> Tensor | None:
        place = storage.join(self._cache, f"{key}.safetensors") if self._cache else None
        return load(storage.read_bytes(place))["text"] if place and storage.exists(place) else None
