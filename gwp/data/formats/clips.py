"""Plain videos in a folder or bucket, with captions from an optional `metadata.jsonl` beside
them, or in webdataset shards.
"""

import hashlib
import json
from dataclasses import dataclass

from gwp import storage
from gwp.data.formats.tars import EXTENSION as TAR
from gwp.data.formats.tars import read_shards
from gwp.errors import DataError

EXTENSIONS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
METADATA = "metadata.jsonl"
_OTHERS = (
    "no LeRobot set (meta/info.json), no RLDS set (features.json beside *.tfrecord*), no HDF5 "
    "episodes (*.hdf5, *.h5) and no webdataset "
    "shards (*.tar)"
)
_NAME_KEYS = ("file_name", "file", "path")
_CAPTION_KEYS = ("caption", "text", "task", "prompt")


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
    break off with the reason.
    """

    uri: str
    clips: tuple[Clip, ...]
    missing: tuple[str, ...]
    fingerprint: str
    broken: tuple[tuple[str, str], ...] = ()


def read_clips(uri: str, format: str = "auto") -> ClipSet:  # noqa: A002
    """The videos below `uri`, or the one that it names. DataError when there is none or
    metadata.jsonl cannot be read.

    `format`: `clips`, `tars`, or `auto`: shards where there are no videos.
    """
    if (
        uri.lower().endswith(TAR)
        and format != "clips"
        and (size := storage.size_of(uri)) is not None
    ):
        folder, _, name = uri.rpartition("/")
        return _sharded(uri, folder or ".", {name: size})
    if format == "tars":
        return _sharded(uri, uri, storage.list_files(uri))
    if (size := _file_size(uri)) is not None:
        folder, name = uri.rsplit("/", 1) if "/" in uri else (".", uri)
        sizes, missing = {name: size}, list[str]()
        captions, _ = _captions(folder, [name])
    else:
        folder, files = uri, storage.list_files(uri)
        sizes = {n: files[n] for n in sorted(files) if n.lower().endswith(EXTENSIONS)}
        if not sizes and format == "auto" and any(n.lower().endswith(TAR) for n in files):
            return _sharded(uri, uri, files)
        if not files:
            what = (
                "a file, of no kind that is read"
                if storage.size_of(uri) is not None
                else "nothing there"
            )
            raise DataError(
                f"{uri}: {what}; give the folder or s3:// prefix of a set, or a video, HDF5 or tar file"
            )
        if not sizes:
            others = "" if format == "clips" else f", {_OTHERS}"
            raise DataError(
                f"{uri}: no videos there ({', '.join(EXTENSIONS)}){others}; check the URI"
            )
        captions, missing = _captions(folder, list(sizes))
    clips = tuple(
        Clip(storage.join(folder, n), n, size, captions.get(n, "")) for n, size in sizes.items()
    )
    digest = hashlib.sha256("\n".join(f"{n}:{size}" for n, size in sizes.items()).encode())
    return ClipSet(uri, clips, tuple(missing), digest.hexdigest()[:12])


def _sharded(uri: str, folder: str, files: dict[str, int]) -> ClipSet:
    members, broken = read_shards(folder, files, EXTENSIONS, _CAPTION_KEYS)
    if not members and not broken:
        raise DataError(
            f"{uri}: no videos ({', '.join(EXTENSIONS)}) in shards (*{TAR}) there; check the URI"
        )
    clips = tuple(
        Clip(storage.join(folder, m.shard), f"{m.shard}/{m.name}", m.size, m.caption, m.offset)
        for m in members
    )
    digest = hashlib.sha256("\n".join(f"{c.name}:{c.offset}:{c.size}" for c in clips).encode())
    return ClipSet(uri, clips, (), digest.hexdigest()[:12], tuple(broken))


def _file_size(uri: str) -> int | None:
    """Bytes of the video that `uri` names, None when it names none."""
    return storage.size_of(uri) if uri.lower().endswith(EXTENSIONS) else None


def _captions(folder: str, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Video -> caption, and entries without a video. A line names its video by path below the
    folder or by file name.
    """
    place = storage.join(folder, METADATA)
    if not storage.exists(place):
        return {}, []
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
            caption = next((str(row[k]) for k in _CAPTION_KEYS if row.get(k)), "")
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place}:{number}: not a JSON object ({error}); write one object per line"
            ) from error
        # `path` may be where the video came from, so every name is tried.
        found = [
            n for g in given for n in (g if g in known else by_base.get(g.rpartition("/")[2]),) if n
        ]
        if found:
            captions[found[0]] = caption
        else:
            missing.append(given[0] if given else f"line {number}")
    return captions, missing
