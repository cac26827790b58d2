"""Instructions reach an encoder as the published one got them, and are one key however written."""

import hashlib
import sys

import pytest

from gwp.data.text import normalise, text_hash
from gwp.errors import GwpError

# As written, and as the published encoder got it.
CLEANED = {
    "pick up the “red” cube": 'pick up the "red" cube',
    "don’t drop it": "don't drop it",
    "ｐｉｃｋ　ｕｐ": "pick up",
    "拿起，红色方块": "拿起,红色方块",
    "ﬁle the paper": "file the paper",
    "cafe\u0301 cup": "café cup",
    "cafÃ© cup": "café cup",
    "it&#39;s &amp;amp; on": "it's & on",
    "a\u00a0b\t c\n": "a b c",
    "don\x92t": "don't",
    "拿起红色方块": "拿起红色方块",
}


@pytest.mark.parametrize("written", CLEANED)
def test_what_the_published_encoder_got(written: str) -> None:
    pytest.importorskip("ftfy", reason="ftfy is not installed")
    assert normalise(written) == CLEANED[written]
    # It is its own form, so manifests that keep it lead to the same key.
    assert normalise(CLEANED[written]) == CLEANED[written]
    assert text_hash(written) == text_hash(CLEANED[written])


def test_plain_texts_keep_the_keys_that_they_had() -> None:
    for text in ("lift cube 3", "  Put  it\tthere, (now)! ", "", "a<b>c #1 %"):
        plain = " ".join(text.split())
        assert normalise(text) == plain
        assert text_hash(text) == hashlib.sha256(plain.encode()).hexdigest()[:32]
    assert text_hash("Lift") != text_hash("lift")


def test_entities_may_be_escaped_any_number_of_times() -> None:
    pytest.importorskip("ftfy", reason="ftfy is not installed")
    assert normalise("a &amp;amp;amp;amp;lt; b") == "a < b"


def test_without_the_library_plain_texts_go_on_and_others_say_what_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert normalise("lift  the cube") == "lift the cube"
    with pytest.raises(GwpError, match=r"ftfy: pip install 'gwp\[model\]'"):
        normalise("café")
