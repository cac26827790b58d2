"""Files that a manifest names: checked before any is touched, fetched no further than it says."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from gwp import storage
from gwp.errors import GwpError
from gwp.storage.names import relative_names, shown

MANIFEST_BYTES = 16 << 20
"""Largest manifest that is read: some hundred thousand entries."""
PART_BYTES = 64 << 20
"""Largest JSON file of what a manifest names."""
_BLOCK, _AT_ONCE = 8 << 20, 4
"""Bytes of a request, and requests on the way together."""


def read_manifest(uri: str, error: type[GwpError] = GwpError) -> bytes:
    """The manifest at `uri`; `error` when it is longer than MANIFEST_BYTES, of which no more is
    read.

    MissingError when there is none.
    """
    # One byte more than allowed tells that there are more.
    with storage.open_read(uri) as handle:
        raw = bytes(handle.read(MANIFEST_BYTES + 1))
    if len(raw) > MANIFEST_BYTES:
        raise error(
            f"{uri}: longer than {MANIFEST_BYTES >> 20} MiB, which no manifest is; check the URI"
        )
    return raw


def read_part(uri: str, size: int, sha256: str, error: type[GwpError] = GwpError) -> bytes:
    """The small file at `uri`, as its manifest says: bytes and hex digest.

    `error` when it is something else, or larger than any such file; of neither more than `size` is
    read. MissingError when there is none.
    """
    check_part(uri, size, error)
    with storage.open_read(uri) as handle:
        raw = bytes(handle.read(size + 1))
    if len(raw) != size or hashlib.sha256(raw).hexdigest() != sha256:
        raise error(
            f"{uri} was altered (its size or sha256 differs from the manifest); copy it again"
        )
    return raw


def check_part(uri: str, size: int, error: type[GwpError] = GwpError) -> None:
    """`error` when a JSON file would be larger than any such file."""
    if size > PART_BYTES:
        raise error(
            f"{uri}: has {size >> 20} MiB by its manifest, up to {PART_BYTES >> 20} are read; this "
            "is no file of ours"
        )


def check_room(uri: str, sizes: Iterable[int], folder: Path, error: type[GwpError]) -> None:
    """`error` when what a manifest names does not fit onto the disk of `folder`."""
    needed, free = sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise error(
            f"{uri}: {needed / 1e9:.3g} GB by its manifest, {folder} has room for {free / 1e9:.3g}; "
            "make room, or put GWP_CACHE onto a larger disk"
        )


def check_files(uri: str, names: Iterable[object], error: type[GwpError] = GwpError) -> None:
    """Refuse names that are not plain and relative, and local files that are links out of
    `uri`.

    Hashes cannot tell: what a link leads to may change after it was hashed, and is not the
    folder's own to copy or to remove.
    """
    checked = relative_names(names, uri, error)
    if storage.is_remote(uri):
        return
    folder = Path(uri.removeprefix("file://"))
    inside = folder.resolve()
    for name in checked:
        # Links inside the folder, and of the folder itself, lead nowhere else.
        if not (folder / name).resolve().is_relative_to(inside):
            raise error(
                f"{uri}: {shown(name)} is a link out of this folder; put the file itself there"
            )


def fetch_files(
    uri: str,
    sizes: Mapping[str, int],
    folder: str | Path,
    digests: Mapping[str, str] | None = None,
    error: type[GwpError] = GwpError,
) -> None:
    """Copy files below `uri` into a local folder that has none of them.

    sizes: bytes of each, by name; never more are read. digests: sha256 of each as hex; None: not
    compared.

    GwpError for a name that is not plain and relative, and for a file that ends before; `error`
    for one of another digest, at the first of which no more is fetched.
    """
    for name in relative_names(sizes, uri):
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        found = _fetch_file(storage.join(uri, name), sizes[name], target)
        if digests is not None and found != digests[name]:
            raise error(
                f"{uri}: {shown(name)} was altered (its sha256 differs from the manifest); copy "
                "or export the bundle again"
            )


def _fetch_file(uri: str, size: int, target: Path) -> str:
    """The sha256 of what was copied, as hex."""
    digest = hashlib.sha256()
    starts = list(range(0, size, _BLOCK))
    # Exclusive: what is there already, a link for instance, is not written through.
    with target.open("xb") as file:
        # Some blocks at once keep a link busy; all of them would not fit into memory.
        for first in range(0, len(starts), _AT_ONCE):
            begins = starts[first : first + _AT_ONCE]
            ends = [min(begin + _BLOCK, size) for begin in begins]
            for block in storage.read_ranges([uri] * len(begins), begins, ends):
                file.write(block)
                digest.update(block)
        if file.tell() != size:
            raise GwpError(
                f"{uri}: ends after {file.tell()} of {size} bytes; it was written again meanwhile, "
                "so try once more"
            )
    return digest.hexdigest()
