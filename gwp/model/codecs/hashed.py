"""A text encoder without weights: every word has a fixed random direction. Enough to tell
instructions apart.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gwp.data.text import normalise

_WORD = re.compile(r"\w+|[^\w\s]")


class HashedConfig(BaseModel):
    """The weightless encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["hashed"]
    """Which text encoder this is."""
    dim: int = Field(default=64, gt=0)
    """Width of a row."""
    rows: int = Field(default=8, gt=0)
    """Rows (words) kept; longer texts are cut, shorter ones padded with zeros."""


class HashedTextEncoder:
    """The same word at the same place gives the same row on every machine."""

    kind = "hashed"

    def __init__(self, dim: int, rows: int) -> None:
        self.dim = dim
        self.rows = rows

    def encode(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`; an empty text is all zeros."""
        out = np.zeros((len(texts), self.rows, self.dim), np.float32)
        for i, text in enumerate(texts):
            for j, word in enumerate(_WORD.findall(normalise(text).lower())[: self.rows]):
                out[i, j] = self._direction(f"word {word}") + 0.25 * self._direction(f"place {j}")
        return torch.from_numpy(out)

    def _direction(self, key: str) -> np.ndarray:
        # Python's own hash of a text differs from process to process.
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        generator = np.random.Generator(np.random.PCG64(seed))
        return generator.standard_normal(self.dim).astype(np.float32)

    def digest(self) -> str:
        """sha256 over everything that changes an embedding."""
        return hashlib.sha256(f"hashed-1 {self.dim} {self.rows}".encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """text.json; there are no weights."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "text.json").write_text(
            json.dumps({"kind": self.kind, "dim": self.dim, "rows": self.rows})
        )
