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
from gwp.model.codecs.embeddings import StoredTexts, without_padding
from gwp.model.codecs.hashed import HashedConfig, HashedTextEncoder
from gwp.model.codecs.saved import describe
from gwp.model.codecs.umt5 import UMT5Config, UMT5TextEncoder
from gwp.storage.names import relative_name

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
    description = describe(folder, "text.json")
    kind = description["kind"]
    if kind == "hashed":
        return HashedTextEncoder(description["dim"], description["rows"])
    if kind == "umt5":
        return UMT5TextEncoder.load(folder, description["rows"], description["dtype"])
    raise GwpError(f"{folder}/text.json: unknown kind '{kind}'; known: hashed, umt5")


class TextTable:
    """Embeddings keyed by text hash: in memory (least recently used go first) and, when `cache`
    is given, below a folder or URI.

    Kept without the zero rows at their end, which are most of a umT5 embedding. Safe to use
    from several threads.
    """

    def __init__(
        self,
        encoder: TextEncoder | CachedTextEncoder | StoredTexts,
        capacity: int = 4096,
        cache: str | None = None,
    ) -> None:
        self._encoder = encoder
        self._capacity = capacity
        # A cached set states the digest of its encoder itself.
        folder = relative_name(encoder.digest()[:16], "digest of the text encoder") if cache else ""
        self._cache = storage.join(cache, folder) if cache else None
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        # Held while texts are encoded, so that none is encoded twice at once; those that are
        # known never wait for it.
        self._filling = threading.Lock()
        self.dim = encoder.dim
        self.rows = encoder.rows

    def lookup(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`."""
        wanted = {text_hash(t): t for t in texts}
        embeddings = self._recall(wanted)
        if len(embeddings) < len(wanted):
            with self._filling:
                # Another thread may have filled them in while this one waited.
                embeddings |= self._recall(wanted.keys() - embeddings.keys())
                missing = {key: text for key, text in wanted.items() if key not in embeddings}
                embeddings |= self._fill(missing)
        out = torch.zeros(len(texts), self.rows, self.dim)
        for row, text in zip(out, texts, strict=True):
            embedding = embeddings[text_hash(text)]
            row[: len(embedding)] = embedding
        return out

    def knows(self, text: str) -> bool:
        """Whether `lookup` would find it in memory."""
        return bool(self._recall([text_hash(text)]))

    def _recall(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Those that are in memory, which become the most recently used."""
        with self._lock:
            embeddings = {key: self._embeddings[key] for key in keys if key in self._embeddings}
            for key in embeddings:
                self._embeddings.move_to_end(key)
        return embeddings

    def _fill(self, missing: dict[str, str]) -> dict[str, Tensor]:
        """Embeddings of texts by their keys, which memory then holds too: those that are stored
        from there; the rest is encoded and stored.
        """
        new = {key: stored for key in missing if (stored := self._stored(key)) is not None}
        fresh = [key for key in missing if key not in new]
        encoded = self._encoder.encode([missing[key] for key in fresh]) if fresh else ()
        for key, rows in zip(fresh, encoded, strict=True):
            new[key] = without_padding(rows)
            if self._cache:
                storage.write_bytes(self._uri(self._cache, key), save({"text": new[key]}))
        with self._lock:
            self._embeddings |= new
            while len(self._embeddings) > self._capacity:
                self._embeddings.popitem(last=False)
        return new

    @staticmethod
    def _uri(cache: str, key: str) -> str:
        return storage.join(cache, f"{key}.safetensors")

    def _stored(self, key: str) -> Tensor | None:
        if not self._cache:
            return None
        uri = self._uri(self._cache, key)
        return load(storage.read_bytes(uri))["text"] if storage.exists(uri) else None
