"""The real text encoder: umT5 through transformers, cut and padded as GigaWorld-Policy was
trained.

Padding rows stay zeros and are real keys in cross-attention: no mask exists there, and weights
depend on it.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gwp.data.text import normalise
from gwp.errors import GwpError
from gwp.model.codecs.saved import pretrained, weights_digest
from gwp.paths import Location

_MAX_TOKENS = 512
# Texts in one pass: bounds memory when a whole data set is encoded.
_TOGETHER = 16


class UMT5Config(BaseModel):
    """A umT5 encoder on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["umt5"]
    """Which text encoder this is."""
    path: Location
    """Folder with `text_encoder/` and `tokenizer/` (a diffusers pipeline folder), or both in
    one folder.
    """
    rows: int = Field(default=64, gt=0)
    """Rows kept; longer texts are cut, shorter ones padded with zeros."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the encoder; embeddings come out in fp32."""


class UMT5TextEncoder:
    """Instructions by their umT5 states. Not for several threads at once (tokenizers are not);
    `TextTable` takes care of that.
    """

    kind = "umt5"

    def __init__(self, model: Any, tokenizer: Any, rows: int = 64, dtype: str = "float32") -> None:
        if len(tokenizer) > model.config.vocab_size:
            raise GwpError(
                f"the tokenizer knows {len(tokenizer)} tokens, the umT5 encoder "
                f"{model.config.vocab_size}; take the tokenizer "
                "that belongs to the weights"
            )
        self.model = model.eval().requires_grad_(False).to(getattr(torch, dtype))
        self.tokenizer = tokenizer
        self.rows = rows
        self.dtype = dtype
        self.dim = int(model.config.d_model)

    @classmethod
    def load(cls, folder: str | Path, rows: int = 64, dtype: str = "float32") -> "UMT5TextEncoder":
        """From a local folder, see `UMT5Config.path`; GwpError when weights or tokenizer are
        not whole.
        """
        from transformers import AutoTokenizer, UMT5EncoderModel

        folder = Path(folder)
        encoder, vocabulary = (
            folder / sub if (folder / sub).is_dir() else folder
            for sub in ("text_encoder", "tokenizer")
        )
        if not (encoder / "config.json").is_file():
            raise GwpError(
                f"{encoder}: no config.json; text.path must hold a umT5 encoder and its tokenizer"
            )
        if not (vocabulary / "tokenizer_config.json").is_file():
            raise GwpError(
                f"{vocabulary}: no tokenizer_config.json; text.path must hold a umT5 encoder "
                "and its tokenizer"
            )
        tokenizer = AutoTokenizer.from_pretrained(str(vocabulary), local_files_only=True)
        # A whole umT5 also holds a decoder, which is of no use here.
        model = pretrained(
            UMT5EncoderModel.from_pretrained, encoder, all_used=False, dtype=getattr(torch, dtype)
        )
        return cls(model, tokenizer, rows, dtype)

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """fp32 `[n, rows, d_model]`; each text is encoded at its true length (512 tokens at
        most), then cut or zero-padded to `rows`.
        """
        out = torch.zeros(len(texts), self.rows, self.dim)
        for start in range(0, len(texts), _TOGETHER):
            clean = [normalise(t) for t in texts[start : start + _TOGETHER]]
            tokens = self.tokenizer(
                clean, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
            )
            ids = tokens["input_ids"].to(self.model.device)
            # Of tokenizers without an end token an empty text has none.
            if not ids.numel():
                continue
            mask = tokens["attention_mask"].to(self.model.device)
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            # States of padding are no zeros; only a text's own rows are kept.
            for i, (states, true) in enumerate(zip(hidden, mask.bool(), strict=True), start):
                kept = states[true][: self.rows].cpu()
                out[i, : len(kept)] = kept
        return out

    def save(self, folder: str | Path) -> None:
        """`text_encoder/` and `tokenizer/` in the transformers form, and text.json."""
        folder = Path(folder)
        self.model.save_pretrained(str(folder / "text_encoder"))
        self.tokenizer.save_pretrained(str(folder / "tokenizer"))
        (folder / "text.json").write_text(
            json.dumps({"kind": self.kind, "rows": self.rows, "dtype": self.dtype})
        )

    def digest(self) -> str:
        """sha256 over everything that changes an embedding: weights, arithmetic, vocabulary,
        rows.
        """
        description = {
            "kind": self.kind,
            "rows": self.rows,
            "dtype": self.dtype,
            "vocabulary": self.tokenizer.get_vocab(),
        }
        return weights_digest(description, self.model.state_dict())
