"""Plain videos in a folder or bucket, with captions from an optional `metadata.jsonl` beside
them.
"""

import hashlib
import json

from gwp import storage
from gwp.data.formats.clip_set import CAPTION_KEYS, Clip, ClipSet
from gwp.data.formats.format import SetSource
from gwp.data.formats.reader import FileReader
from gwp.errors import DataError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
METADATA = "metadata.jsonl"
_NAME_KEYS = ("file_name", "file", "path")

title = "plain videos"
signs = f"videos there ({', '.join(EXTENSIONS)})"
endings: tuple[str, ...] = EXTENSIONS
options: tuple[str, ...] = ()


def is_at(uri: str, files: dict[str, int]) -> bool:  # noqa: ARG001
    """Whether a file is a video."""
    return any(n.lower().endswith(EXTENSIONS) for n in files)


def read_clips(
    uri: str,
    files: dict[str, int],
    source: SetSource,
    reader: FileReader,  # noqa: ARG001
) -> ClipSet:
    """The videos among `files`, which lie below `uri`. DataError when there is none or
    metadata.jsonl cannot be read.
    """
    sizes = {n: files[n] for n in sorted(files) if n.lower().endswith(EXTENSIONS)}
    if not sizes:
        raise DataError(f"{source.uri}: no {signs}; check the URI")
    captions, missing = _captions(uri, list(sizes))
    if uri != source.uri:
        # One video of the folder, whose metadata speak of the others too.
        missing = []
    clips = tuple(
        Clip(storage.join(uri, n), n, size, captions.get(n, "")) for n, size in sizes.items()
    )
    digest = hashlib.sha256("\n".join(f"{n}:{size}" for n, size in sizes.items()).encode())
    return ClipSet(source.uri, "clips", clips, tuple(missing), digest.hexdigest()[:12])


def _captions(folder: str, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Video -> caption, and entries without a video. A line names its video by path below the
    folder or by file name.
    """
    place = storage.join(folder, METADATA)
    if not storage.exists(place):
        return {}, []
    # Paths below the folder, and file names alone for lines that have no more.
    known = set(names)
    by_base = {n.rpartition("/")[2]: n for n in names}
    captions: dict[str, str] = {}
    missing = []
    for number, line in enumerate(
        storage.read_bytes(place).decode("utf-8", "replace").splitlines(), 1
    ):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            given = [str(row[k]) for k in _NAME_KEYS if row.get(k)]
            caption = next((str(row[k]) for k in CAPTION_KEYS if row.get(k)), "")
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place}:{number}: not a JSON object ({error}); write one object per line"
            ) from error
        # `path` may be where the video came from, so every name is tried.
        found = [
            n for g in given for n in (g if g in known else by_base.get(g.rpartition("/")[2]),) if n
        ]
        # The first of its names that is there; without any the line is told, and nothing
        # else.
        if found:
            captions[found[0]] = caption
        else:
            missing.append(given[0] if given else f"line {number}")
    return captions, missing
