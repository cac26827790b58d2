"""Tensors to and from what a cached set stores, and its text embeddings in place of an encoder."""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gwp.data.cached import Cache, NumberFormat
from gwp.data.text import text_hash

_DTYPES: dict[NumberFormat, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def to_stored(tensor: Tensor, number_format: NumberFormat) -> np.ndarray | None:
    """float16, or the bits of bfloat16 as uint16; None when a number is not finite in that format."""
    cast = tensor.detach().to(_DTYPES[number_format]).cpu().contiguous()
    if not torch.isfinite(cast).all():
        return None
    return (cast.view(torch.uint16) if number_format == "bfloat16" else cast).numpy()


def from_stored(stored: Tensor) -> Tensor:
    """fp32 from float16, or from uint16 that holds the bits of bfloat16."""
    return (stored.view(torch.bfloat16) if stored.dtype == torch.uint16 else stored).float()


class CachedTextEncoder:
    """Looks texts up that were encoded when the cache was made; no weights are loaded."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._index = cache, cache.index("texts")
        self.dim, self.rows = cache.text_dim, cache.text_rows

    def encode(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`; DataError when a text is not in the cache."""
        places = self._cache.find("texts", pa.array([text_hash(t) for t in texts], pa.string()), self._index).to_pylist()
        out = torch.zeros(len(texts), self.rows, self.dim)
        for row, kept in zip(out, self._cache.read("texts", places), strict=True):
            # A copy: what was read may not be written to.
            row[: len(kept)] = from_stored(torch.from_numpy(kept.copy()))
        return out

    def digest(self) -> str:
        """That of the encoder whose embeddings these are."""
        return self._cache.key.text
