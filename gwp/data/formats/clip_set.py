"""A set of plain videos, whatever they lie in."""

from dataclasses import dataclass
from typing import Any

CAPTION_KEYS = ("caption", "text", "task", "prompt")
"""Of JSON beside a video, the first of which that is there is its caption."""


@dataclass(frozen=True)
class Clip:
    """One video: file, path below the folder, bytes, caption ("" when there is none), where in
    the file it starts.
    """

    uri: str
    name: str
    size: int
    caption: str
    offset: int = 0


@dataclass(frozen=True)
class ClipSet:
    """Videos in name order, and shards that break off with the reason. `format`: its name in
    `gwp.data.formats.table`. `remarks`: entries and videos with what is wrong beside them, which
    costs no video.
    """

    uri: str
    format: str
    clips: tuple[Clip, ...]
    remarks: tuple[tuple[str, str], ...]
    fingerprint: str
    broken: tuple[tuple[str, str], ...] = ()


def caption_in(about: Any) -> str:
    """The caption among what a JSON value or a row of a table says of a video; "" when there is
    none.
    """
    if not isinstance(about, dict):
        return ""
    # A list of texts would be several, and a number none.
    texts = (about.get(key) for key in CAPTION_KEYS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")
