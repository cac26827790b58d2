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
from gwp.data.text import text_hash
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
    try:
        found: Any = torch.load(
            io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise GwpError(
            f"{uri}: not a file of tensors ({type(error).__name__}); leave --t5-embedding out"
        ) from error
    if isinstance(found, dict) and found:
        found = next(
            (found[name] for name in ("t5_embedding", "prompt_embeds") if name in found),
            next(iter(found.values())),
        )
    if isinstance(found, Tensor) and found.ndim == 3 and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise GwpError(f"{uri}: holds no embedding [n, dim]; leave --t5-embedding out")
    return found.float()


class CachedTextEncoder:
    """Looks texts up that were encoded when the cache was made; no weights are loaded."""

    def __init__(self, cache: LatentCache) -> None:
        self._cache, self._index = cache, cache.index("texts")
        self.dim, self.rows = cache.text_dim, cache.text_rows

    def encode(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`; DataError when a text is not in the cache."""
        places = self._cache.find(
            "texts", pa.array([text_hash(t) for t in texts], pa.string()), self._index
        ).to_pylist()
        out = torch.zeros(len(texts), self.rows, self.dim)
        for row, kept in zip(out, self._cache.read("texts", places), strict=True):
            # A copy: what was read may not be written to.
            row[: len(kept)] = from_stored(torch.from_numpy(kept.copy()))
        return out

    def digest(self) -> str:
        """That of the encoder whose embeddings these are."""
        return self._cache.key.text
