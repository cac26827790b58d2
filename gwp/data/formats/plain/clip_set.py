"""A set of plain videos, whatever they lie in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gwp import storage
from gwp.data.formats.files.listing import NOTHING_THERE
from gwp.data.formats.files.texts import REPLACED, read_json
from gwp.data.pointers import ADVICE, HEAD
from gwp.errors import DataError

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

    @property
    def is_there(self) -> bool:
        """Whether it is no link that leads nowhere."""
        return self.size != storage.NOWHERE

    def check(self) -> None:
        """DataError where it is such a link."""
        if not self.is_there:
            raise DataError(NOTHING_THERE)


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


def caption_of(name: str, raw: bytes) -> str:
    """The caption in a file of its own, `.txt` or `.json`; "" where it has none. ValueError with
    what is wrong with it.
    """
    if raw.startswith(HEAD):
        raise ValueError(f"is a Git LFS pointer, so it is no caption; {ADVICE}")
    text = legible(raw.decode("utf-8-sig", "replace"))
    if name.lower().endswith(".txt"):
        return text.strip()
    try:
        about = read_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no JSON, so it is no caption") from error
    return legible(caption_in(about))


def one_line(name: str, text: str) -> str:
    """The text of a file: lines of a `.txt` are those of its editor, and no part of a caption."""
    return " ".join(text.split()) if name.lower().endswith(".txt") else text


def agreed(found: Sequence[tuple[str, str]]) -> str:
    """The caption that all of several places (place, caption) give; "" where there is none.
    ValueError where they differ.
    """
    if len({caption for _, caption in found}) > 1:
        places = ", ".join(place for place, _ in found)
        raise ValueError(f"has different captions ({places}), of which none is taken")
    return found[0][1] if found else ""


def legible(text: str) -> str:
    """The text. ValueError where bytes of it were no UTF-8."""
    # What Python puts in their place.
    if REPLACED in text:
        raise ValueError("is no text in UTF-8, so it is no caption")
    return text
