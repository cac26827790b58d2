"""Webdataset shards: tar files whose members belong together by their names, here a video and
its caption.
"""

import errno
import hashlib
import posixpath
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO

from gwp import storage
from gwp.data.formats.files.listing import (
    MOVED,
    NOTHING_THERE,
    is_stray_member,
    is_text,
    without_repeats,
)
from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.format import SetSource
from gwp.data.formats.plain.clip_set import Clip, ClipSet, agreed, caption_of, one_line
from gwp.data.formats.plain.clips import EXTENSIONS
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
_CAPTIONS = (".json", ".txt")
_TO_NONE = "it is given to none"
_TWICE = "is in its shard more than once; the last one is read, as tar does"
_ODD = "has a name that is no UTF-8; it is read as Latin-1"
_SEVERAL = "holds several archives, one behind the end of the other; all of them are read"
_NO_ARCHIVE = "which are no archive and are not read"
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
    every = sorted(n for n in files if n.lower().endswith(EXTENSION))
    # A link that leads nowhere is told by itself.
    there = [n for n in every if files[n] != storage.NOWHERE]
    _, again = without_repeats(uri, there)
    shards = [n for n in every if n not in again]

    def look_at(name: str) -> _Index:
        if files[name] == storage.NOWHERE:
            return _Index((), NOTHING_THERE, ())
        return reader.once(_LOOKS, _look, storage.join(uri, name), files[name])

    found = dict(zip(shards, several(uri, look_at, shards), strict=True))
    clips = tuple(
        Clip(storage.join(uri, shard), f"{shard}/{m.name}", m.size, m.caption, m.offset)
        for shard, index in found.items()
        for m in index.members
    )
    # Behind the last there is nothing whose number it could change.
    broken = tuple(
        (shard, f"{index.broken}; {MOVED}" if shard != shards[-1] else index.broken)
        for shard, index in found.items()
        if index.broken
    )
    if not clips and not broken:
        raise DataError(
            f"{source.uri}: no videos ({', '.join(EXTENSIONS)}) in shards (*{EXTENSION}) there; "
            "check the URI"
        )
    remarks = tuple(
        (f"{shard}/{name}".rstrip("/"), what)
        for shard, index in found.items()
        for name, what in index.remarks
    ) + tuple(
        (name, f"is {shown(own)} once more, by a link; it counts once")
        for name, own in again.items()
    )
    digest = hashlib.sha256("\n".join(f"{c.name}:{c.offset}:{c.size}" for c in clips).encode())
    return ClipSet(source.uri, "tars", clips, remarks, digest.hexdigest()[:12], broken)


@dataclass
class _Seen:
    """What the headers of a shard say, by plain name (`a.mp4` for `./a.mp4`).

    places: first byte and bytes of each file; spelt: its name there; links: where they lead;
    texts: captions; remarks: what is told of names
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    spelt: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    def videos(self) -> list[str]:
        return [name for name in self.spelt if name.lower().endswith(EXTENSIONS)]


def _look(uri: str, size: int) -> _Index:
    """The index of a shard. Only headers and captions are read. `size` tells a file that was
    written again.
    """
    seen = _Seen()
    reason = ""
    with storage.open_read(uri, _AHEAD) as handle:
        try:
            reason = _note_all(handle, size, seen)
            _follow(handle, seen)
        except _DAMAGE as error:
            # What the disk itself refuses has a number, and is no property of the file.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            reason = _no_tar(seen)
            _follow(handle, seen)
    captions = _captions(seen)
    members = tuple(
        Member(seen.spelt[name], *seen.places[name], captions.get(name, ""))
        for name in seen.videos()
    )
    return _Index(members, reason, tuple(dict.fromkeys(seen.remarks)))


def _note_all(handle: BinaryIO, size: int, seen: _Seen) -> str:
    """Keep what the headers of a shard say, of each archive in it: `cat` puts several one behind
    the other. Why it breaks off, "" where it does not.
    """
    begin: int | None = 0
    while begin is not None:
        handle.seek(begin)
        some = False
        # Opening reads the first header.
        # `r:` takes no compressed archives: a place in those is no place in the file.
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            for member in tar:
                some = True
                # tarfile would notice only at the next header.
                if member.isreg() and not 0 <= member.size <= size - member.offset_data:
                    return f"is cut off in {shown(member.name)}; the file is truncated"
                # macOS packs `._a.mp4` beside `a.mp4`.
                if not is_stray_member(member.name):
                    _note(member, handle, seen)
            end = tar.offset
        if begin and not some:
            seen.remarks.append(("", f"has {size - begin} bytes behind its end, {_NO_ARCHIVE}"))
            return ""
        if begin:
            seen.remarks.append(("", _SEVERAL))
        begin = _behind(handle, end, size)
        # No mark of an end before it.
        if begin == end and end < size:
            return _no_tar(seen)
    return ""


def _behind(handle: BinaryIO, at: int, size: int) -> int | None:
    """Where something stands behind the end of an archive, which blocks of zeros follow; None
    where nothing does.
    """
    while at < size:
        handle.seek(at)
        piece = handle.read(min(_AHEAD, size - at))
        rest = piece.lstrip(b"\0")
        if rest:
            return at + (len(piece) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(piece) or size
    return None


def _no_tar(seen: _Seen) -> str:
    return (
        f"cannot be read as a tar file behind {len(seen.videos())} videos; it is truncated "
        "or damaged, or compressed"
    )


def _note(member: tarfile.TarInfo, handle: BinaryIO, seen: _Seen) -> None:
    """Keep what a header says of a file or a link."""
    odd = not is_text(member.name)
    member.name, member.linkname = _legible(member.name), _legible(member.linkname)
    name = posixpath.normpath(member.name)
    wanted = name.lower().endswith((*EXTENSIONS, *_CAPTIONS))
    if odd and wanted:
        seen.remarks.append((member.name, _ODD))
    if member.islnk() or member.issym():
        # Hard links name a member from the root of the shard, others from their own folder.
        folder = "" if member.islnk() else posixpath.dirname(name)
        if wanted:
            seen.links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
            seen.spelt[name] = member.name
    elif member.isreg():
        if wanted and name in seen.spelt and name.lower().endswith(EXTENSIONS):
            seen.remarks.append((member.name, _TWICE))
        seen.links.pop(name, None)
        seen.places[name] = member.offset_data, member.size
        if wanted:
            seen.spelt[name] = member.name
            # tarfile seeks to each header itself, so the handle may be moved.
            _read_caption(name, handle, seen)


def _legible(name: str) -> str:
    """A name as text: tar has bytes, mostly of UTF-8."""
    return name if is_text(name) else name.encode("utf-8", "surrogateescape").decode("latin-1")


def _follow(handle: BinaryIO, seen: _Seen) -> None:
    """Put links in the place of what they lead to; those that lead nowhere are told."""
    links, seen.links = seen.links, {}
    for name in links:
        end, passed = name, {name}
        while end in links and links[end] not in passed:
            end = links[end]
            passed.add(end)
        if end in links or end not in seen.places:
            what = f"is a link to {shown(links[name])}, which is not in its shard; left out"
            seen.remarks.append((seen.spelt.pop(name), what))
            continue
        seen.places[name] = seen.places[end]
        _read_caption(name, handle, seen)


def _captions(seen: _Seen) -> dict[str, str]:
    """Video -> caption: that of its own name, else that of its key where no other has it."""
    captions: dict[str, str] = {}
    videos = seen.videos()
    left = dict.fromkeys(videos)
    texts = {name: text for name, text in seen.texts.items() if text}
    for called in (_stem, _key):
        others = Counter(map(called, videos))
        of_name: dict[str, list[tuple[str, str]]] = {}
        for name, text in texts.items():
            of_name.setdefault(called(name), []).append((seen.spelt[name], text))
        for video in list(left):
            found = of_name.get(called(video), [])
            if not found:
                continue
            del left[video]
            try:
                if others[called(video)] > 1:
                    raise ValueError(f"shares {found[0][0]} with another video: {_TO_NONE}")
                captions[video] = agreed(found)
            except ValueError as error:
                seen.remarks.append((seen.spelt[video], str(error)))
        # What is of one video by its whole name is of no other.
        own = set(map(_stem, videos))
        texts = {name: text for name, text in texts.items() if _stem(name) not in own}
    return captions


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _key(name: str) -> str:
    # That of webdataset: up to the first dot of the base name; dots of folders do not count.
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _read_caption(name: str, handle: BinaryIO, seen: _Seen) -> None:
    if not name.lower().endswith(_CAPTIONS):
        return
    offset, size = seen.places[name]
    handle.seek(offset)
    seen.texts[name], wrong = _caption(name, handle, size)
    if wrong:
        seen.remarks.append((seen.spelt[name], wrong))


def _caption(name: str, handle: BinaryIO, size: int) -> tuple[str, str]:
    """The caption of `size` bytes of a shard, and what is wrong with it."""
    if size > _LARGEST:
        return "", f"has {size} bytes, so it is no caption"
    try:
        return one_line(name, caption_of(name, handle.read(size))), ""
    except ValueError as error:
        return "", str(error)
