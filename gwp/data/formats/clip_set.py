"""A set of plain videos, whatever they lie in."""

from dataclasses import dataclass

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
    """Videos in name order, entries of metadata.jsonl whose file is not there, and shards that
    break off with the reason. `format`: its name in `gwp.data.formats.table`.
    """

    uri: str
    format: str
    clips: tuple[Clip, ...]
    missing: tuple[str, ...]
    fingerprint: str
    broken: tuple[tuple[str, str], ...] = ()
