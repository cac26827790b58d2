"""Plain videos in a folder or bucket, with captions from files beside them."""

import hashlib

from gwp import storage
from gwp.data.formats.files.listing import list_recordings, without_repeats
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import SetSource
from gwp.data.formats.plain.captions import (
    METAS,
    TABLES,
    VIDEOS,
    Remark,
    captions_of,
    names_beside,
)
from gwp.data.formats.plain.clip_set import Clip, ClipSet
from gwp.errors import DataError
from gwp.storage.names import shown

EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")

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
    """The videos among `files`, which lie below `uri`. DataError when there is none or a table
    of captions cannot be read.
    """
    sizes = {n: files[n] for n in _videos(files)}
    if not sizes:
        raise DataError(f"{source.uri}: no {signs}; check the URI")
    if uri == source.uri:
        captions, remarks = _captions_above(uri, files)
    else:
        (video,) = sizes
        captions, remarks = _captions_of_one(uri, video, files)
    # A link that leads nowhere keeps its number: `episodes` means the same videos without it.
    there = [n for n, size in sizes.items() if size != storage.NOWHERE]
    _, again = without_repeats(uri, there)
    for name, own in again.items():
        remarks.append((name, f"is {shown(own)} once more, by a link; it counts once"))
        # Whoever linked it may have written of the link alone.
        captions[own] = captions.get(own) or captions.get(name, "")
    sizes = {n: size for n, size in sizes.items() if n not in again}
    clips = tuple(
        Clip(storage.join(uri, n), n, size, captions.get(n, "")) for n, size in sizes.items()
    )
    names = "\n".join(f"{c.name}:{c.size}" for c in clips if c.is_there)
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    return ClipSet(source.uri, "clips", clips, tuple(remarks), digest)


def _captions_of_one(
    uri: str, video: str, files: dict[str, int]
) -> tuple[dict[str, str], list[Remark]]:
    """As `captions_of` gives them, of one video of a folder."""
    # A table speaks of the others too: only among all of them can it be told which one is meant.
    if any(storage.exists(storage.join(uri, table)) for table in TABLES):
        files = list_recordings(uri)
    else:
        near = {name: storage.size_of(storage.join(uri, name)) for name in names_beside(video)}
        files = files | {name: size for name, size in near.items() if size is not None}
    captions, remarks = _captions_above(uri, files)
    return captions, [(item, what) for item, what in remarks if item == video]


def _captions_above(uri: str, files: dict[str, int]) -> tuple[dict[str, str], list[Remark]]:
    """As `captions_of` gives them; of a folder `videos` the table or the folder `metas` beside it
    speaks, too.
    """
    parent, _, name = storage.absolute(uri).rstrip("/").rpartition("/")
    # A bucket has nothing above it.
    if name != VIDEOS or parent.endswith(":/"):
        return captions_of(uri, files, _videos(files))
    below = f"{name}/"
    inside = {below + n: size for n, size in files.items()}
    if any(storage.exists(storage.join(parent, table)) for table in TABLES):
        # It speaks of all videos there.
        inside = list_recordings(parent) | inside
    else:
        metas = list_recordings(storage.join(parent, METAS))
        inside |= {f"{METAS}/{n}": size for n, size in metas.items()}
    captions, remarks = captions_of(parent, inside, _videos(inside))
    return (
        {n.removeprefix(below): text for n, text in captions.items() if n.startswith(below)},
        [
            (item.removeprefix(below), what)
            for item, what in remarks
            if item.startswith(below) or item not in inside
        ],
    )


def _videos(files: dict[str, int]) -> list[str]:
    return sorted(n for n in files if n.lower().endswith(EXTENSIONS))
