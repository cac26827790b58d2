"""Webdataset shards: tar files whose members belong together by the name before the first dot,
here a video and its caption.
"""

import errno
import hashlib
import json
import tarfile
from dataclasses import dataclass
from typing import Any

from gwp import storage
from gwp.data.formats.clip_set import Clip, ClipSet, caption_in
from gwp.data.formats.clips import EXTENSIONS
from gwp.data.formats.format import SetSource
from gwp.data.formats.reader import FileReader, several
from gwp.errors import DataError

EXTENSION = ".tar"
title = "videos in shards"
signs = "webdataset shards (*.tar)"
endings: tuple[str, ...] = (EXTENSION,)
options: tuple[str, ...] = ()
_LOOKS = 65536
"""Shards whose index stays."""
_AHEAD = 256 << 10
"""Bytes that are fetched at a time while headers are read: captions lie beside them."""
_LARGEST = 1 << 20
"""Bytes of the largest caption file that is read."""
# What tarfile raises of headers that are none.
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, EOFError, OSError)


@dataclass(frozen=True)
class Member:
    """A video in a shard: its name there, place and bytes, caption ("" when there is none)."""

    name: str
    offset: int
    size: int
    caption: str


@dataclass(frozen=True)
class _Index:
    """Videos of a shard, why it breaks off, and names that are there more than once."""

    members: tuple[Member, ...]
    broken: str
    repeated: tuple[str, ...]


def is_at(uri: str, files: dict[str, int]) -> bool:  # noqa: ARG001
    """Whether a file is a shard."""
    return any(n.lower().endswith(EXTENSION) for n in files)


def read_clips(uri: str, files: dict[str, int], source: SetSource, reader: FileReader) -> ClipSet:
    """The videos in the shards among `files`, which lie below `uri`. DataError when there is
    none.
    """
    shards = sorted(n for n in files if n.lower().endswith(EXTENSION))

    def look_at(name: str) -> _Index:
        return reader.once(_LOOKS, _look, storage.join(uri, name), files[name])

    found = dict(zip(shards, several(uri, look_at, shards), strict=True))
    clips = tuple(
        Clip(storage.join(uri, shard), f"{shard}/{m.name}", m.size, m.caption, m.offset)
        for shard, index in found.items()
        for m in index.members
    )
    broken = tuple((shard, index.broken) for shard, index in found.items() if index.broken)
    if not clips and not broken:
        raise DataError(
            f"{source.uri}: no videos ({', '.join(EXTENSIONS)}) in shards (*{EXTENSION}) there; "
            "check the URI"
        )
    twice = "is in its shard more than once; the last one is read, as tar does"
    remarks = tuple(
        (f"{shard}/{name}", twice) for shard, index in found.items() for name in index.repeated
    )
    digest = hashlib.sha256("\n".join(f"{c.name}:{c.offset}:{c.size}" for c in clips).encode())
    return ClipSet(source.uri, "tars", clips, remarks, digest.hexdigest()[:12], broken)


def _look(uri: str, size: int) -> _Index:
    """The index of a shard. Only headers and captions are read. `size` tells a file that was
    written again.
    """
    # Videos in their order; texts by stem, since a caption may come before or after its
    # video.
    inside: dict[str, tuple[int, int]] = {}
    repeated: list[str] = []
    texts: dict[str, str] = {}
    reason = ""
    with storage.open_read(uri, _AHEAD) as handle:
        try:
            # Opening reads the first header.
            # `r:` takes no compressed archives: a place in those is no place in the file.
            with tarfile.open(fileobj=handle, mode="r:") as tar:
                for member in tar:
                    if not member.isreg():
                        continue
                    # tarfile would notice only at the next header.
                    if not 0 <= member.size <= size - member.offset_data:
                        reason = f"is cut off in {member.name}; the file is truncated"
                        break
                    if member.name.lower().endswith(EXTENSIONS):
                        repeated += [member.name] if member.name in inside else []
                        inside[member.name] = member.offset_data, member.size
                    elif (
                        member.name.lower().endswith((".json", ".txt")) and member.size <= _LARGEST
                    ):
                        # tarfile seeks to each header itself, so the handle may be moved.
                        handle.seek(member.offset_data)
                        text = _caption(member.name, handle.read(member.size))
                        # Of a .txt and a .json the later one counts, unless it says nothing.
                        texts[_stem(member.name)] = text or texts.get(_stem(member.name), "")
        except _DAMAGE as error:
            # What the disk itself refuses has a number, and is no property of the file.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            reason = (
                f"cannot be read as a tar file behind {len(inside)} videos; it is truncated or "
                "damaged, or compressed"
            )
    members = tuple(
        Member(name, offset, length, texts.get(_stem(name), ""))
        for name, (offset, length) in inside.items()
    )
    return _Index(members, reason, tuple(dict.fromkeys(repeated)))


def _stem(name: str) -> str:
    # The key of webdataset: up to the first dot of the base name; dots of folders do not
    # count.
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _caption(name: str, raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    if name.lower().endswith(".txt"):
        return text.strip()
    try:
        about: Any = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    return caption_in(about)
