"""Tensors to and from what a cached set stores, and its text embeddings in place of an encoder."""

import io
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gwp import storage
from gwp.data.latent_cache import LatentCache, NumberFormat
from gwp.data.text import hash_as_it_stands, text_hash
from gwp.errors import GwpError

_DTYPES: dict[NumberFormat, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def to_stored(tensor: Tensor, number_format: NumberFormat) -> np.ndarray | None:
    """float16, or the bits of bfloat16 as uint16; None when a number is not finite in that
    format.
    """
    cast = tensor.detach().to(_DTYPES[number_format]).cpu().contiguous()
    if not torch.isfinite(cast).all():
        return None
    return (cast.view(torch.uint16) if number_format == "bfloat16" else cast).numpy()


def from_stored(stored: Tensor) -> Tensor:
    """fp32 from float16, or from uint16 that holds the bits of bfloat16."""
    return (stored.view(torch.bfloat16) if stored.dtype == torch.uint16 else stored).float()


def read_t5_embedding(uri: str) -> Tensor:
    """fp32 `[n, dim]` from the released `t5_embedding/episode_XXXXXX.pt`: a tensor, or a dict
    that holds one. Nothing in it is executed.
    """
    file = io.BytesIO(storage.read_bytes(uri))
    try:
        embedding: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise GwpError(
            f"{uri}: not a file of tensors ({type(error).__name__}); leave --t5-embedding out"
        ) from error
    if isinstance(embedding, dict) and embedding:
        # Under one of the usual keys, else whatever comes first.
        embedding = next(
            (embedding[name] for name in ("t5_embedding", "prompt_embeds") if name in embedding),
            next(iter(embedding.values())),
        )
    # Some were saved with their batch axis of one.
    if isinstance(embedding, Tensor) and embedding.ndim == 3 and len(embedding) == 1:
        embedding = embedding[0]
    if not isinstance(embedding, Tensor) or embedding.ndim != 2:
        raise GwpError(f"{uri}: holds no embedding [n, dim]; leave --t5-embedding out")
    return embedding.float()


class CachedTextEncoder:
    """Looks texts up that were encoded when the cache was made; no weights are loaded."""

    def __init__(self, cache: LatentCache) -> None:
        self._cache = cache
        self._index = cache.index("texts")
        self._names = frozenset(self._index["name"].to_pylist())
        self.dim = cache.text_dim
        self.rows = cache.text_rows

    def encode(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`; DataError when a text is not in the cache."""
        hashes = [self._hash(text) for text in texts]
        entries = self._cache.find("texts", pa.array(hashes, pa.string()), self._index).to_pylist()
        out = torch.zeros(len(texts), self.rows, self.dim)
        for row, stored in zip(out, self._cache.read("texts", entries), strict=True):
            # A copy: what was read may not be written to.
            row[: len(stored)] = from_stored(torch.from_numpy(stored.copy()))
        return out

    def _hash(self, text: str) -> str:
        # In a cache that an earlier version made, some lie under another.
        now, before = text_hash(text), hash_as_it_stands(text)
        return before if before in self._names and now not in self._names else now

    def digest(self) -> str:
        """That of the encoder whose embeddings these are."""
        return self._cache.key.text
