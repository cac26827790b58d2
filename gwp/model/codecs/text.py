"""Text encoders by kind, and the table that keeps an instruction from being encoded twice."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load, save
from torch import Tensor

from gwp import storage
from gwp.data.text import text_hash
from gwp.errors import GwpError
from gwp.model.codecs.cached import CachedTextEncoder
from gwp.model.codecs.hashed import HashedConfig, HashedTextEncoder
from gwp.model.codecs.saved import describe
from gwp.model.codecs.umt5 import UMT5Config, UMT5TextEncoder

TextEncoder = HashedTextEncoder | UMT5TextEncoder
TextEncoderConfig = Annotated[HashedConfig | UMT5Config, Field(discriminator="kind")]


def build_text_encoder(config: HashedConfig | UMT5Config) -> TextEncoder:
    """The encoder a stage file names."""
    if isinstance(config, HashedConfig):
        return HashedTextEncoder(config.dim, config.rows)
    return UMT5TextEncoder.load(config.path, config.rows, config.dtype)


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """An encoder from the local folder that `save` wrote; GwpError when there is none, or of a
    kind not known here.
    """
    about = describe(folder, "text.json")
    if about["kind"] == "hashed":
        return HashedTextEncoder(about["dim"], about["rows"])
    if about["kind"] == "umt5":
        return UMT5TextEncoder.load(folder, about["rows"], about["dtype"])
    raise GwpError(f"{folder}/text.json: unknown kind '{about['kind']}'; known: hashed, umt5")


class TextTable:
    """Embeddings keyed by text hash: in memory (least recently used go first) and, when `cache`
    is given, below a folder or URI.

    Kept without the zero rows at their end, which are most of a umT5 embedding. Safe to use
    from several threads.
    """

    def __init__(
        self,
        encoder: TextEncoder | CachedTextEncoder,
        capacity: int = 4096,
        cache: str | None = None,
    ) -> None:
        self._encoder, self._capacity = encoder, capacity
        self._cache = storage.join(cache, encoder.digest()[:16]) if cache else None
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        # Held while texts are encoded, so that none is encoded twice at once; those that are
        # known never wait for it.
        self._filling = threading.Lock()
        self.dim, self.rows = encoder.dim, encoder.rows

    def lookup(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`."""
        wanted = {text_hash(t): t for t in texts}
        found = self._recall(wanted)
        if len(found) < len(wanted):
            with self._filling:
                found |= self._recall(wanted.keys() - found.keys())
                self._fill({key: text for key, text in wanted.items() if key not in found}, found)
        out = torch.zeros(len(texts), self.rows, self.dim)
        for row, text in zip(out, texts, strict=True):
            kept = found[text_hash(text)]
            row[: len(kept)] = kept
        return out

    def knows(self, text: str) -> bool:
        """Whether `lookup` would find it in memory."""
        return bool(self._recall([text_hash(text)]))

    def _recall(self, keys: Iterable[str]) -> dict[str, Tensor]:
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        return found

    def _fill(self, missing: dict[str, str], found: dict[str, Tensor]) -> None:
        """Add to `found` and to memory what is stored; encode and store the rest."""
        new = {key: kept for key in missing if (kept := self._stored(key)) is not None}
        fresh = [key for key in missing if key not in new]
        for key, rows in zip(
            fresh,
            self._encoder.encode([missing[key] for key in fresh]) if fresh else (),
            strict=True,
        ):
            length = max((i + 1 for i, row in enumerate(rows) if row.any()), default=0)
            new[key] = rows[:length].clone()
            if self._cache:
                storage.write_bytes(
                    storage.join(self._cache, f"{key}.safetensors"), save({"text": new[key]})
                )
        found |= new
        with self._lock:
            self._kept |= new
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)

    def _stored(self, key: str) -> Tensor | None:
        place = storage.join(self._cache, f"{key}.safetensors") if self._cache else None
        return load(storage.read_bytes(place))["text"] if place and storage.exists(place) else None
