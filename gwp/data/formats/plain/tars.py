"""Webdataset shards: tar files whose members belong together by the name before the first dot,
here a video and its caption.
"""

import errno
import hashlib
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from gwp import storage
from gwp.data.formats.format import SetSource
from gwp.data.formats.listing import is_stray_member
from gwp.data.formats.plain.clip_set import Clip, ClipSet, caption_of
from gwp.data.formats.plain.clips import EXTENSIONS
from gwp.data.formats.reader import FileReader, several
from gwp.errors import DataError
from gwp.storage.names import shown

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
_TWICE = "is in its shard more than once; the last one is read, as tar does"
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
    """Videos of a shard, why it breaks off, and what is told of names in it."""

    members: tuple[Member, ...]
    broken: str
    remarks: tuple[tuple[str, str], ...]


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
    remarks = tuple(
        (f"{shard}/{name}", what) for shard, index in found.items() for name, what in index.remarks
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
    remarks: dict[str, str] = {}
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
                        reason = f"is cut off in {shown(member.name)}; the file is truncated"
                        break
                    name = member.name
                    # macOS packs `._a.mp4` beside `a.mp4`.
                    if is_stray_member(name):
                        continue
                    if name.lower().endswith(EXTENSIONS):
                        if name in inside:
                            remarks[name] = _TWICE
                        inside[name] = member.offset_data, member.size
                    elif name.lower().endswith((".json", ".txt")):
                        # tarfile seeks to each header itself, so the handle may be moved.
                        handle.seek(member.offset_data)
                        text, wrong = _caption(name, handle, member.size)
                        # Of a .txt and a .json the later one counts, unless it says nothing.
                        texts[_stem(name)] = text or texts.get(_stem(name), "")
                        remarks |= {name: wrong} if wrong else {}
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
    return _Index(members, reason, tuple(remarks.items()))


def _stem(name: str) -> str:
    # The key of webdataset: up to the first dot of the base name; dots of folders do not
    # count.
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _caption(name: str, handle: BinaryIO, size: int) -> tuple[str, str]:
    """The caption of `size` bytes of a shard, and what is wrong with it."""
    if size > _LARGEST:
        return "", f"has {size} bytes, so it is no caption"
    try:
        return caption_of(name, handle.read(size)), ""
    except ValueError as error:
        return "", str(error)
