"""Files that a manifest names: checked before any is touched, fetched no further than it says."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from gwp import storage
from gwp.errors import GwpError
from gwp.storage.names import relative_names, shown

MANIFEST_BYTES = 16 << 20
"""Largest manifest that is read: some hundred thousand entries."""
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


def fetch_files(uri: str, sizes: Mapping[str, int], folder: str | Path) -> None:
    """Copy files below `uri` into a local folder that has none of them.

    sizes: bytes of each, by name; never more are read.

    GwpError for a name that is not plain and relative, and for a file that ends before.
    """
    for name in relative_names(sizes, uri):
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch_file(storage.join(uri, name), sizes[name], target)


def _fetch_file(uri: str, size: int, target: Path) -> None:
    starts = list(range(0, size, _BLOCK))
    # Exclusive: what is there already, a link for instance, is not written through.
    with target.open("xb") as file:
        # Some blocks at once keep a link busy; all of them would not fit into memory.
        for first in range(0, len(starts), _AT_ONCE):
            begins = starts[first : first + _AT_ONCE]
            ends = [min(begin + _BLOCK, size) for begin in begins]
            for block in storage.read_ranges([uri] * len(begins), begins, ends):
                file.write(block)
        if file.tell() != size:
            raise GwpError(
                f"{uri}: ends after {file.tell()} of {size} bytes; it was written again meanwhile, "
                "so try once more"
            )
