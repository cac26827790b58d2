"""A table of embeddings says what its encoder says, to the last bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gwp.errors import GwpError
from gwp.model.codecs import embeddings
from gwp.model.codecs.embeddings import StoredTexts, write_embeddings
from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.codecs.text import TextTable
from gwp.model.codecs.umt5 import UMT5TextEncoder
from tests.unit.gwp.model.codecs.test_text import tiny_umt5

TEXTS = ["open the door", "open", "now open the door now open", "", " open  the door "]


def umt5(dtype: str) -> UMT5TextEncoder:
    torch.manual_seed(0)
    tiny = tiny_umt5()
    return UMT5TextEncoder(tiny.model, tiny.tokenizer, rows=4, dtype=dtype)


@pytest.mark.parametrize("kind", ["hashed", "float32", "bfloat16"])
def test_each_text_is_as_the_encoder_says_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "_PER_FILE", 2)
    encoder = HashedTextEncoder(8, 4) if kind == "hashed" else umt5(kind)
    # Two spellings are one text.
    assert write_embeddings(encoder, TEXTS, tmp_path / "table") == 4
    stored = StoredTexts(tmp_path / "table")
    assert (stored.rows, stored.dim, stored.digest()) == (4, encoder.dim, encoder.digest())
    table = TextTable(stored)
    for text in TEXTS:
        assert torch.equal(table.lookup([text]), encoder.encode([text]))
    # In any company, which a batch of the encoder is not to the last bit.
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    assert torch.equal(TextTable(StoredTexts(tmp_path / "table")).lookup(TEXTS), alone)
    files = sorted((tmp_path / "table").glob("*.safetensors"))
    assert len(files) == 2
    kept = [tensor for file in files for tensor in load_file(file).values()]
    # No padding, and half the bytes where that loses nothing.
    assert max(len(tensor) for tensor in kept) <= 4
    if kind != "hashed":
        assert {tensor.dtype for tensor in kept if len(tensor)} == {getattr(torch, kind)}


def test_a_text_that_was_not_encoded_is_named(tmp_path: Path) -> None:
    write_embeddings(HashedTextEncoder(8, 4), ["open"], tmp_path / "table")
    with pytest.raises(GwpError, match=r"no embedding of 'close'; give run.name another"):
        StoredTexts(tmp_path / "table").encode(["open", "close"])
