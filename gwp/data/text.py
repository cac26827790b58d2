"""Instructions and captions as keys."""

import hashlib
import html


def normalise(text: str) -> str:
    """Markup entities resolved (twice: captions are often escaped twice) and white space
    collapsed; case is kept.
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def text_hash(text: str) -> str:
    """Stable key of an instruction: 32 hex digits of the sha256 of its normalised form."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:32]
