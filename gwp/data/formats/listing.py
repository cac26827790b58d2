"""What lies below the URI of a source, without what file systems and editors leave there."""

from gwp import storage

_STRAYS = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})
"""Of Windows, macOS and Synology, lower case."""


def list_recordings(uri: str) -> dict[str, int]:
    """Every file below `uri` that may be part of a set: path relative to it -> size in bytes."""
    return {n: size for n, size in storage.list_files(uri).items() if not is_stray(n)}


def is_stray(name: str) -> bool:
    """Whether a path below a source is of no set: hidden files and folders, as `._episode_0.hdf5`
    of macOS, `.ipynb_checkpoints` or `.cache`, and `Thumbs.db`.
    """
    return any(part.startswith(".") or part.lower() in _STRAYS for part in name.split("/"))


def is_stray_member(name: str) -> bool:
    """The same of a name in an archive, which may begin with `./`."""
    return is_stray("/".join(part for part in name.split("/") if part not in (".", "..")))
