"""Embeddings of all instructions of a run, encoded once and read by everyone who trains.

    <folder>/000000.safetensors    text hash -> [n, dim], without the zero rows at its end
             TABLE.json            whose they are and how wide; written last

A real text encoder has billions of weights, and a run a few instructions that are known before it
begins: so no worker loads it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gwp.data.text import hash_as_it_stands, text_hash
from gwp.errors import GwpError
from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.codecs.umt5 import UMT5TextEncoder

TABLE = "TABLE.json"
# Texts of a file: with 64 rows of 4096 numbers it has 268 MB at most.
_PER_FILE = 256


def without_padding(rows: Tensor) -> Tensor:
    """A copy of an embedding `[rows, dim]` up to its last row that is not all zeros."""
    length = max((i + 1 for i, row in enumerate(rows) if row.any()), default=0)
    # A copy: a view would keep the zero rows, and what it was cut from, in memory.
    return rows[:length].clone()


def write_embeddings(
    encoder: HashedTextEncoder | UMT5TextEncoder, texts: Iterable[str], folder: str | Path
) -> int:
    """Encode every text into the new, local `folder`; how many there are. On the GPU if this
    process has one.

    Each by itself: in company, the numbers of the company would decide the last bits.
    """
    folder = Path(folder)
    folder.mkdir()
    by_hash = {text_hash(text): text for text in texts}
    if isinstance(encoder, UMT5TextEncoder) and torch.cuda.is_available():
        encoder.model.to("cuda")
    keys = sorted(by_hash)
    for start in range(0, len(keys), _PER_FILE):
        some = keys[start : start + _PER_FILE]
        found = {key: _compact(encoder.encode([by_hash[key]])[0]) for key in some}
        save_file(found, folder / f"{start // _PER_FILE:06d}.safetensors")
    about = {"encoder": encoder.digest(), "rows": encoder.rows, "dim": encoder.dim}
    (folder / TABLE).write_text(json.dumps(about | {"texts": len(keys)}))
    return len(keys)


def _compact(embedding: Tensor) -> Tensor:
    rows = without_padding(embedding)
    half = rows.bfloat16()
    # An encoder that computes in bfloat16 says no more than that; nothing else is rounded.
    return half if torch.equal(half.float(), rows) else rows


class StoredTexts:
    """Looks texts up that `write_embeddings` encoded; no weights are loaded, and only what is
    asked for is read.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        about: dict[str, Any] = json.loads((self._folder / TABLE).read_text())
        self.rows = int(about["rows"])
        self.dim = int(about["dim"])
        self._digest = str(about["encoder"])
        self._file_of: dict[str, Any] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            file: Any = safe_open(path, "pt")
            self._file_of |= dict.fromkeys(file.keys(), file)

    def encode(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, dim]`; GwpError for a text that was not encoded."""
        out = torch.zeros(len(texts), self.rows, self.dim)
        for row, text in zip(out, texts, strict=True):
            known = (text_hash(text), hash_as_it_stands(text))
            key = next((k for k in known if k in self._file_of), "")
            if not key:
                raise GwpError(
                    f"{self._folder}: the run has no embedding of '{text}'; give run.name another "
                    "name"
                )
            stored = self._file_of[key].get_tensor(key)
            row[: len(stored)] = stored.float()
        return out

    def digest(self) -> str:
        """That of the encoder whose embeddings these are."""
        return self._digest
