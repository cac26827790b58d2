"""Plain videos in a folder or bucket, with captions from an optional `metadata.jsonl` beside them."""

import hashlib
import json
from dataclasses import dataclass

from gwp import storage
from gwp.errors import DataError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
METADATA = "metadata.jsonl"
_NAME_KEYS = ("file_name", "file", "path")
_CAPTION_KEYS = ("caption", "text", "task", "prompt")


@dataclass(frozen=True)
class Clip:
    """One video file: place, path below the folder, bytes, caption ("" when there is none)."""

    uri: str
    name: str
    size: int
    caption: str


@dataclass(frozen=True)
class ClipSet:
    """Videos in name order, and entries of metadata.jsonl whose file is not there."""

    uri: str
    clips: tuple[Clip, ...]
    missing: tuple[str, ...]
    fingerprint: str


def read_clips(uri: str) -> ClipSet:
    """The videos below `uri`, or the one that it names. DataError when there is none or metadata.jsonl cannot be read."""
    if (size := _file_size(uri)) is not None:
        folder, name = uri.rsplit("/", 1) if "/" in uri else (".", uri)
        sizes, missing = {name: size}, list[str]()
        captions, _ = _captions(folder, [name])
    else:
        folder, files = uri, storage.list_files(uri)
        sizes = {n: files[n] for n in sorted(files) if n.lower().endswith(EXTENSIONS)}
        if not sizes:
            raise DataError(f"{uri}: no videos there ({', '.join(EXTENSIONS)}) and no LeRobot set (meta/info.json); check the URI")
        captions, missing = _captions(folder, list(sizes))
    clips = tuple(Clip(storage.join(folder, n), n, size, captions.get(n, "")) for n, size in sizes.items())
    digest = hashlib.sha256("\n".join(f"{n}:{size}" for n, size in sizes.items()).encode())
    return ClipSet(uri, clips, tuple(missing), digest.hexdigest()[:12])


def _file_size(uri: str) -> int | None:
    """Bytes of the video that `uri` names, None when it names none."""
    if not uri.lower().endswith(EXTENSIONS):
        return None
    return storage.size_of(uri)


def _captions(folder: str, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Video -> caption, and entries without a video. A line names its video by path below the folder or by file name."""
    place = storage.join(folder, METADATA)
    if not storage.exists(place):
        return {}, []
    known = set(names)
    by_base = {n.rpartition("/")[2]: n for n in names}
    captions: dict[str, str] = {}
    missing = []
    for number, line in enumerate(storage.read_bytes(place).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            given = [str(row[k]) for k in _NAME_KEYS if row.get(k)]
            caption = next((str(row[k]) for k in _CAPTION_KEYS if row.get(k)), "")
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{place}:{number}: not a JSON object ({error}); write one object per line") from error
        # `path` may be where the video came from, so every name is tried.
        found = [n for g in given for n in (g if g in known else by_base.get(g.rpartition("/")[2]),) if n]
        if found:
            captions[found[0]] = caption
        else:
            missing.append(given[0] if given else f"line {number}")
    return captions, missing
