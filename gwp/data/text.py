"""Instructions and captions as keys."""

import hashlib
import html
import re

from gwp.errors import GwpError

# Printable ASCII without an ampersand: nothing in it to mend, and most instructions are that.
_PLAIN = re.compile(r"[ -%'-~]*")
_MOST = 8
"""Passes over a text; one is enough unless it was escaped again and again."""


def normalise(text: str) -> str:
    """The text as the published encoder got it: mended by `ftfy` (curly quotes, full-width letters
    and punctuation, ligatures, decomposed accents, wrong decodings), markup entities resolved,
    white space collapsed; case is kept. What comes out stays as it is when it is put in again.

    GwpError for a text that may need mending where `ftfy` is not installed.
    """
    for _ in range(_MOST):
        clean = _once(text)
        if clean == text:
            break
        text = clean
    return text


def _once(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        # Twice: captions are often escaped twice.
        text = html.unescape(html.unescape(_mended(text)))
    return " ".join(text.split())


def _mended(text: str) -> str:
    try:
        # A third of a second, which robots that are told in plain ASCII need not wait for.
        import ftfy
    except ImportError as error:
        raise GwpError(
            f"the instruction {text[:40]!r} is not plain ASCII, and cleaning it needs the package "
            "ftfy: pip install 'gwp[model]'"
        ) from error
    return str(ftfy.fix_text(text))


def text_hash(text: str) -> str:
    """Stable key of an instruction: 32 hex digits of the sha256 of its normalised form."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:32]


def hash_as_it_stands(text: str) -> str:
    """That of a text that an earlier version cleaned, by its rule: runs and caches of before know
    their texts by it.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:32]
