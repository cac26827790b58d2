"""Webdataset shards: tar files whose members belong together by the name before the first dot,
here a video and its caption.
"""

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gwp import storage

EXTENSION = ".tar"
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


def read_shards(
    uri: str, files: dict[str, int], videos: tuple[str, ...], captions: tuple[str, ...]
) -> tuple[list[Member], list[tuple[str, str]]]:
    """Videos of all shards in the order of names and members, and shards that break off with
    the reason.

    `videos`: endings; `captions`: keys of the JSON. Only headers and captions are read.
    """
    shards = sorted(n for n in files if n.lower().endswith(EXTENSION))
    with ThreadPoolExecutor(8 if storage.is_remote(uri) else 1) as pool:
        found = list(
            pool.map(lambda n: _look(storage.join(uri, n), files[n], videos, captions), shards)
        )
    members = [
        Member(n, *member)
        for n, (inside, _) in zip(shards, found, strict=True)
        for member in inside
    ]
    return members, [(n, reason) for n, (_, reason) in zip(shards, found, strict=True) if reason]


@lru_cache(maxsize=65536)
def _look(
    uri: str, size: int, videos: tuple[str, ...], captions: tuple[str, ...]
) -> tuple[tuple[tuple[str, int, int, str], ...], str]:
    inside: list[tuple[str, int, int]] = []
    texts: dict[str, str] = {}
    reason = ""
    with storage.open_read(uri, _AHEAD) as handle:
        try:
            # Opening reads the first header.
            with tarfile.open(fileobj=handle, mode="r:") as tar:
                for member in tar:
                    if not member.isreg():
                        continue
                    if member.offset_data + member.size > size:
                        reason = f"is cut off in {member.name}; the file is truncated"
                        break
                    if member.name.lower().endswith(videos):
                        inside.append((member.name, member.offset_data, member.size))
                    elif (
                        member.name.lower().endswith((".json", ".txt")) and member.size <= _LARGEST
                    ):
                        handle.seek(member.offset_data)
                        text = _caption(member.name, handle.read(member.size), captions)
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
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _caption(name: str, raw: bytes, keys: tuple[str, ...]) -> str:
    text = raw.decode("utf-8", "replace")
    if name.lower().endswith(".txt"):
        return text.strip()
    try:
        about: Any = json.loads(text)
    except ValueError:
        return ""
    return (
        next((str(about[k]) for k in keys if about.get(k)), "") if isinstance(about, dict) else ""
    )
