"""The real text encoder: umT5 through transformers, cut and padded as GigaWorld-Policy was trained.

Padding rows stay zeros and are real keys in cross-attention: no mask exists there, and weights depend on it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gwp.data.text import normalise
from gwp.errors import GwpError

_MAX_TOKENS = 512


class UMT5Config(BaseModel):
    """A umT5 encoder on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["umt5"]
    path: str
    """Folder with `text_encoder/` and `tokenizer/` (a diffusers pipeline folder), or both in one folder."""
    rows: int = Field(default=64, gt=0)
    """Rows kept; longer texts are cut, shorter ones padded with zeros."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the encoder; embeddings come out in fp32."""


class UMT5TextEncoder:
    kind = "umt5"

    def __init__(self, model: Any, tokenizer: Any, rows: int = 64, dtype: str = "float32") -> None:
        self.model = model.eval().requires_grad_(False).to(getattr(torch, dtype))
        self.tokenizer, self.rows, self.dtype = tokenizer, rows, dtype
        self.dim = int(model.config.d_model)

    @classmethod
    def load(cls, folder: str | Path, rows: int = 64, dtype: str = "float32") -> "UMT5TextEncoder":
        from transformers import AutoTokenizer, UMT5EncoderModel

        folder = Path(folder)
        encoder, tokenizer = (folder / sub if (folder / sub).is_dir() else folder for sub in ("text_encoder", "tokenizer"))
        if not (encoder / "config.json").is_file():
            raise GwpError(f"{encoder}: no config.json; text.path must hold a umT5 encoder and its tokenizer")
        model = UMT5EncoderModel.from_pretrained(str(encoder), local_files_only=True)
        return cls(model, AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True), rows, dtype)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, d_model]`; each text is encoded at its true length, then cut or zero-padded to `rows`."""
        out = torch.zeros(len(texts), self.rows, self.dim)
        tokens = self.tokenizer([normalise(t) for t in texts], padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(self.model.device), tokens["attention_mask"].to(self.model.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float().cpu()
        for i, length in enumerate(mask.sum(1).tolist()):
            n = min(int(length), self.rows)
            out[i, :n] = hidden[i, :n]
        return out

    def digest(self) -> str:
        state = hashlib.sha256(f"umt5 {self.rows} {self.dtype}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            state.update(name.encode() + tensor.float().cpu().numpy().tobytes())
        return state.hexdigest()

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.model.save_pretrained(str(folder / "text_encoder"))
        self.tokenizer.save_pretrained(str(folder / "tokenizer"))
        (folder / "text.json").write_text(json.dumps({"kind": self.kind, "rows": self.rows, "dtype": self.dtype}))
