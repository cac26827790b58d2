"""Text encoders and the table of embeddings by their properties; the real umT5 architecture
with tiny random weights.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from gwp import storage
from gwp.data.text import text_hash
from gwp.errors import GwpError
from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.codecs.text import (
    TextEncoderConfig,
    TextTable,
    build_text_encoder,
    load_text_encoder,
)
from gwp.model.codecs.umt5 import UMT5TextEncoder

WORDS = ["<pad>", "<unk>", "open", "the", "door", "now"]


def tiny_umt5(words=WORDS, vocab_size=6, rows=4, padding_side="right"):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", padding_side=padding_side
    )
    torch.manual_seed(0)
    model = UMT5EncoderModel(
        UMT5Config(vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return UMT5TextEncoder(model, tokenizer, rows=rows)


@pytest.fixture(scope="module")
def umt5():
    return tiny_umt5()


def test_hashed_text_tells_instructions_apart_by_words_and_places():
    encoder = HashedTextEncoder(16, 4)
    a, b, padded, empty = encoder.encode(["open the door", "close the door", "open", ""])
    assert (a - b)[0].abs().max() > 0.1
    assert torch.equal(a[1:3], b[1:3])
    assert torch.equal(padded[0], a[0])
    assert not padded[1:].any()
    assert not empty.any()
    assert (encoder.encode(["door open"])[0, 1] - a[0]).abs().max() > 0.1
    assert torch.equal(
        encoder.encode(["one two three four five six"]), encoder.encode(["one two three four"])
    )


def test_hashed_text_is_cleaned_first():
    a, b = HashedTextEncoder(16, 8).encode(["say &amp;quot;open&amp;quot;  now", 'Say "open" now'])
    assert torch.equal(a, b)


def test_hashed_text_is_the_same_on_every_machine(tmp_path):
    encoder = HashedTextEncoder(4, 2)
    known = torch.tensor(
        [[0.401904, -1.306507, 0.985605, 0.922948], [2.737634, 0.801635, -0.562908, 2.025527]]
    )
    torch.testing.assert_close(encoder.encode(["open door"])[0], known, atol=1e-5, rtol=0)
    encoder.save(tmp_path)
    again = load_text_encoder(tmp_path)
    assert torch.equal(again.encode(["open door"])[0], encoder.encode(["open door"])[0])
    assert again.digest() == encoder.digest() != HashedTextEncoder(4, 3).digest()


def test_umt5_rows_are_states_cut_and_zero_padded(umt5):
    long, short = umt5.encode(["open the door now open", " open &amp;amp; "])
    ids = umt5.tokenizer("open the door now open", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(
        long, umt5.model(input_ids=ids).last_hidden_state[0, :4], atol=1e-5, rtol=0
    )
    assert short[:2].any(dim=1).all()
    assert not short[2:].any()
    assert umt5.encode([]).shape == (0, 4, 16)


def test_umt5_keeps_the_64_rows_that_published_weights_were_trained_with(umt5):
    assert TypeAdapter(TextEncoderConfig).validate_python({"kind": "umt5", "path": "x"}).rows == 64
    encoder = UMT5TextEncoder(umt5.model, umt5.tokenizer)
    words = [WORDS[2 + i % 4] for i in range(600)]
    long, short = encoder.encode([" ".join(words), "open the door"])
    ids = encoder.tokenizer(" ".join(words[:512]), return_tensors="pt")["input_ids"]
    # The whole text, 512 tokens of it, shapes the rows that are kept.
    torch.testing.assert_close(
        long, encoder.model(input_ids=ids).last_hidden_state[0, :64], atol=1e-5, rtol=0
    )
    assert (long - encoder.encode([" ".join(words[:64])])[0]).abs().max() > 1e-4
    assert long.shape == (64, 16)
    assert short[:3].any(dim=1).all()
    assert not short[3:].any()


def test_umt5_embeds_a_text_alike_in_any_company(umt5):
    texts = [" ".join(WORDS[2 : 3 + i % 4]) for i in range(37)]
    together = umt5.encode(texts)
    for text, rows in zip(texts, together, strict=True):
        torch.testing.assert_close(umt5.encode([text])[0], rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        tiny_umt5(padding_side="left").encode(texts), together, atol=1e-5, rtol=0
    )


def test_umt5_comes_back_the_same_from_either_form_of_its_folder(umt5, tmp_path):
    umt5.save(tmp_path)
    again = load_text_encoder(tmp_path)
    assert torch.equal(again.encode(["open the door"]), umt5.encode(["open the door"]))
    assert again.digest() == umt5.digest()
    flat = tmp_path / "flat"
    umt5.model.save_pretrained(flat)
    umt5.tokenizer.save_pretrained(flat)
    assert UMT5TextEncoder.load(flat, rows=4).digest() == umt5.digest()


def test_umt5_digest_notices_weights_words_and_rows(umt5):
    other = tiny_umt5()
    assert other.digest() == umt5.digest()
    with torch.no_grad():
        other.model.encoder.final_layer_norm.weight[0] += 1e-3
    swapped = [*WORDS[:4], WORDS[5], WORDS[4]]
    assert (
        len({e.digest() for e in (umt5, other, tiny_umt5(words=swapped), tiny_umt5(rows=5))}) == 4
    )


def test_umt5_folders_that_are_not_whole_are_refused(umt5, tmp_path):
    umt5.save(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    whole = load_file(file)
    save_file(
        whole | {"decoder.final_layer_norm.weight": torch.ones(16)}, file, metadata={"format": "pt"}
    )
    assert load_text_encoder(tmp_path).digest() == umt5.digest()
    name = "encoder.final_layer_norm.weight"
    save_file({n: t for n, t in whole.items() if n != name}, file, metadata={"format": "pt"})
    with pytest.raises(GwpError, match=f"lack {name}"):
        load_text_encoder(tmp_path)
    file.unlink()
    with pytest.raises(GwpError, match="does not load"):
        load_text_encoder(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(GwpError, match=r"no tokenizer_config\.json"):
        load_text_encoder(tmp_path)
    with pytest.raises(GwpError, match=r"no config\.json"):
        UMT5TextEncoder.load(tmp_path / "nowhere")
    with pytest.raises(GwpError, match="knows 6 tokens, the umT5 encoder 5"):
        tiny_umt5(vocab_size=5)


def test_unknown_kinds_are_named(tmp_path):
    (tmp_path / "text.json").write_text('{"kind": "runes"}')
    with pytest.raises(GwpError, match="'runes'; known: hashed, umt5"):
        load_text_encoder(tmp_path)
    with pytest.raises(ValidationError):
        TypeAdapter(TextEncoderConfig).validate_python({"kind": "runes"})
    hashed = TypeAdapter(TextEncoderConfig).validate_python({"kind": "hashed", "dim": 3, "rows": 2})
    assert build_text_encoder(hashed).encode(["a"]).shape == (1, 2, 3)


class Counting(HashedTextEncoder):
    """Remembers what it was asked to encode."""

    def __init__(self, dim=8, rows=4):
        super().__init__(dim, rows)
        self.seen = []

    def encode(self, texts):
        self.seen += texts
        return super().encode(texts)


def test_a_text_is_encoded_once():
    encoder = Counting()
    table = TextTable(encoder)
    first = table.lookup(["a b", "c", "a b", ""])
    assert torch.equal(first, HashedTextEncoder(8, 4).encode(["a b", "c", "a b", ""]))
    assert torch.equal(table.lookup(["", "c", " a  b"]), first[[3, 1, 0]])
    assert sorted(encoder.seen) == ["", "a b", "c"]
    assert table.lookup([]).shape == (0, 4, 8)


def test_what_a_caller_does_to_the_answer_stays_with_the_caller():
    table = TextTable(Counting())
    table.lookup(["a b"]).zero_()
    assert table.lookup(["a b"]).any()


def test_the_least_recently_used_text_goes_first():
    encoder = Counting()
    table = TextTable(encoder, capacity=2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        table.lookup(texts)
    assert encoder.seen == ["a", "b", "c", "b"]
    assert table.lookup(["a", "b", "c"]).shape == (3, 4, 8)


def test_stored_embeddings_serve_the_next_process_of_the_same_encoder(tmp_path):
    first, texts = Counting(), ["a b", ""]
    rows = TextTable(first, cache=str(tmp_path)).lookup(texts)
    (where,) = {name.split("/")[0] for name in storage.list_files(str(tmp_path))}
    assert {f"{where}/{text_hash(text)}.safetensors" for text in texts} == set(
        storage.list_files(str(tmp_path))
    )
    second = Counting()
    assert torch.equal(TextTable(second, cache=str(tmp_path)).lookup(texts), rows)
    assert not second.seen
    wider = Counting(dim=9)
    assert TextTable(wider, cache=str(tmp_path)).lookup(texts).shape == (2, 4, 9)
    assert wider.seen == texts
    assert len(storage.list_files(str(tmp_path))) == 4


def test_threads_share_one_encoding_and_one_file(tmp_path):
    encoder, texts = Counting(), [f"text {i}" for i in range(4)]
    table = TextTable(encoder, cache=str(tmp_path))
    want = HashedTextEncoder(8, 4).encode(texts)
    start = threading.Barrier(6)

    def look():
        start.wait(timeout=30)
        return torch.cat([table.lookup([text]) for text in texts])

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(look) for _ in range(6)]:
            assert torch.equal(future.result(timeout=60), want)
    assert encoder.seen == texts
