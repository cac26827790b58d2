"""Where a file is that another one names."""

import os

from gwp import storage


def beside(path: str, other: str) -> str:
    """`other` as seen from the file `path`."""
    if "://" in other or other.startswith("/"):
        return other
    scheme, split, place = path.rpartition("://")
    folder, slash, _ = place.rpartition("/")
    found = folder + slash + other
    plain = os.path.normpath(found)
    if storage.is_remote(path) or os.path.realpath(plain) == os.path.realpath(found):
        return scheme + split + plain
    # The folder above a link is not the one that is written before it.
    return os.path.realpath(found)


def real(path: str) -> str:
    """One name of a file for all its spellings."""
    if storage.is_remote(path):
        return path
    return os.path.realpath(path.removeprefix("file://"))
