"""What lies below the URI of a source, without what file systems and editors leave there."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from gwp import storage
from gwp.errors import DataError
from gwp.storage.names import shown_all

NOTHING_THERE = "is a link to something that is not there; bring that, or remove the link"
MOVED = "episodes behind it have other numbers than with it, as how many it holds is not known"
"""Of what cannot be read, and would give several numbers to `episodes`."""
_STRAYS = frozenset(
    {"thumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "@eadir", "#recycle", "lost+found"}
)
"""Of Windows, macOS, Synology and Linux, lower case."""


def list_recordings(uri: str) -> dict[str, int]:
    """Every file below `uri` that may be part of a set: path relative to it -> size in bytes.
    DataError for names that are no text.
    """
    return {n: size for n, size in _listed(uri) if not is_stray(n)}


def _listed(uri: str, broken_links: bool = False) -> Iterable[tuple[str, int]]:
    found = storage.list_files(uri, broken_links=broken_links)
    # Manifests, digests and messages hold names, as UTF-8.
    if odd := [name for name in found if not is_text(name) and not is_stray(name)]:
        raise DataError(
            f"{uri}: names that are no UTF-8 ({shown_all(odd)}); give those files others, as "
            "`convmv -f latin1 -t utf8 -r --notest` does"
        )
    return found.items()


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: others come out of old disks and archives."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_broken_links(uri: str, endings: tuple[str, ...]) -> dict[str, int]:
    """As `list_recordings`, with links of these endings, or of none as folders have, that lead to
    nothing, as `storage.NOWHERE`: each is told as left out.
    """
    return {
        name: size
        for name, size in _listed(uri, broken_links=True)
        if not is_stray(name)
        and (size != storage.NOWHERE or name.lower().endswith(endings) or _may_be_folder(name))
    }


def folders_gone(files: dict[str, int]) -> list[str]:
    """Links that lead to nothing and were to a folder, by their names."""
    return [n for n, size in files.items() if size == storage.NOWHERE and _may_be_folder(n)]


def _may_be_folder(name: str) -> bool:
    return "." not in name.rpartition("/")[2]


def place_of(uri: str) -> str:
    """Where a file or a folder lies, in one spelling and behind links."""
    if not storage.is_remote(uri):
        return os.path.realpath(storage.absolute(uri))
    scheme, _, path = uri.partition("://")
    return f"{scheme}://{re.sub('/+', '/', path).strip('/')}"


def places_of(uris: Iterable[str]) -> dict[str, str]:
    """`place_of` of many files: of each folder it is asked once. Those of several names on one disk
    (hard links) have a place of their own, alike for all of the names.
    """
    folders: dict[str, str] = {}
    places: dict[str, str] = {}
    for uri in uris:
        folder, _, name = uri.rpartition("/")
        if folder not in folders:
            folders[folder] = place_of(folder or "/")
        place = storage.join(folders[folder], name)
        places[uri] = place if storage.is_remote(uri) else _on_disk(place)
    return places


def _on_disk(path: str) -> str:
    try:
        about = Path(path).lstat()
        if stat.S_ISLNK(about.st_mode):
            path = place_of(path)
            about = Path(path).stat()
    except OSError:
        # Whoever reads it says what is wrong.
        return path
    shared = about.st_nlink > 1 and stat.S_ISREG(about.st_mode)
    return f"{about.st_dev}:{about.st_ino}" if shared else path


def without_repeats(uri: str, names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Names of files below `uri`, each real file once, and the names that were left out with
    the one that stands for them.
    """
    uris = {name: storage.join(uri, name) for name in names}
    places = places_of(uris.values())
    root = place_of(uri)
    kept: dict[str, str] = {}
    # A name of its own counts before a link.
    for name in sorted(uris, key=lambda name: storage.join(root, name) != places[uris[name]]):
        kept.setdefault(places[uris[name]], name)
    again = {name: own for name in uris if (own := kept[places[uris[name]]]) != name}
    return [name for name in uris if name not in again], again


def is_stray(name: str) -> bool:
    """Whether a path below a source is of no set: hidden files and folders, as `._episode_0.hdf5`
    of macOS, `.ipynb_checkpoints` or `.cache`, and `Thumbs.db`.
    """
    return any(part.startswith(".") or part.lower() in _STRAYS for part in name.split("/"))


def is_stray_member(name: str) -> bool:
    """The same of a name in an archive, which may begin with `./`."""
    return is_stray("/".join(part for part in name.split("/") if part not in (".", "..")))
