"""Webdataset shards: tar files whose members belong together by the name before the first dot,
here a video and its caption.
"""

import hashlib
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gwp import storage
from gwp.data.formats.clip_set import CAPTION_KEYS, Clip, ClipSet
from gwp.data.formats.clips import EXTENSIONS
from gwp.data.formats.format import SetSource
from gwp.data.formats.reader import FileReader
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


@dataclass(frozen=True)
class Member:
    """A video in a shard: shard below the folder, name in it, place and bytes, caption ("" when
    there is none).
    """

    shard: str
    name: str
    offset: int
    size: int
    caption: str


def is_at(uri: str, files: dict[str, int]) -> bool:  # noqa: ARG001
    """Whether a file is a shard."""
    return any(n.lower().endswith(EXTENSION) for n in files)


def read_clips(uri: str, files: dict[str, int], source: SetSource, reader: FileReader) -> ClipSet:
    """The videos in the shards among `files`, which lie below `uri`. DataError when there is
    none.
    """
    members, broken = _read_shards(uri, files, reader)
    if not members and not broken:
        raise DataError(
            f"{source.uri}: no videos ({', '.join(EXTENSIONS)}) in shards (*{EXTENSION}) there; "
            "check the URI"
        )
    clips = tuple(
        Clip(storage.join(uri, m.shard), f"{m.shard}/{m.name}", m.size, m.caption, m.offset)
        for m in members
    )
    digest = hashlib.sha256("\n".join(f"{c.name}:{c.offset}:{c.size}" for c in clips).encode())
    return ClipSet(source.uri, "tars", clips, (), digest.hexdigest()[:12], tuple(broken))


def _read_shards(
    uri: str, files: dict[str, int], reader: FileReader
) -> tuple[list[Member], list[tuple[str, str]]]:
    """Videos of all shards in the order of names and members, and shards that break off with
    the reason. Only headers and captions are read.
    """
    shards = sorted(n for n in files if n.lower().endswith(EXTENSION))

    def look_at(name: str) -> _Index:
        return reader.once(_LOOKS, _look, storage.join(uri, name), files[name])

    # `map` keeps the order of the names, whoever is ready first.
    with ThreadPoolExecutor(8 if storage.is_remote(uri) else 1) as pool:
        found = list(pool.map(look_at, shards))
    members = [
        Member(n, *member)
        for n, (inside, _) in zip(shards, found, strict=True)
        for member in inside
    ]
    return members, [(n, reason) for n, (_, reason) in zip(shards, found, strict=True) if reason]


_Index = tuple[tuple[tuple[str, int, int, str], ...], str]
"""Name, offset, bytes and caption of each video in a shard, and why it breaks off."""


def _look(uri: str, size: int) -> _Index:
    """The index of a shard. `size` tells a file that was written again."""
    # Videos in their order; texts by stem, since a caption may come before or after its
    # video.
    inside: list[tuple[str, int, int]] = []
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
                    if member.offset_data + member.size > size:
                        reason = f"is cut off in {member.name}; the file is truncated"
                        break
                    if member.name.lower().endswith(EXTENSIONS):
                        inside.append((member.name, member.offset_data, member.size))
                    elif (
                        member.name.lower().endswith((".json", ".txt")) and member.size <= _LARGEST
                    ):
                        # tarfile seeks to each header itself, so the handle may be moved.
                        handle.seek(member.offset_data)
                        text = _caption(member.name, handle.read(member.size))
                        # Of a .txt and a .json the later one counts, unless it says nothing.
                        texts[_stem(member.name)] = text or texts.get(_stem(member.name), "")
        except tarfile.TarError as error:
            reason = (
                f"cannot be read as a tar file behind {len(inside)} videos ({error}); it "
                "is truncated or damaged"
            )
    return tuple(
        (name, offset, length, texts.get(_stem(name), "")) for name, offset, length in inside
    ), reason


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
    except ValueError:
        return ""
    if not isinstance(about, dict):
        return ""
    return next((str(about[k]) for k in CAPTION_KEYS if about.get(k)), "")
