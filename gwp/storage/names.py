"""Names that others wrote, checked before they become paths.

Keys of a bucket, entries of a manifest, names in an index, templates of a data set.
"""

import re
import unicodedata
from collections.abc import Iterable

from gwp.errors import GwpError

LONGEST = 1024
"""Bytes of the longest name: that of an S3 key."""
_LONGEST_PART = 255
"""Bytes between two slashes: what common file systems take."""
_DRIVE = re.compile(r"[A-Za-z]:")
_SHOWN = 80
_LISTED = 5


def relative_name(name: object, source: str, error: type[GwpError] = GwpError) -> str:
    """`name` as it is, if it names a file below a folder on every system; `error` otherwise.

    It has parts between single slashes, none of them `.` or `..`, no drive, no backslash and no
    control character, and is not overlong.
    source: what holds the name; the message begins with it.
    """
    if reason := _wrong(name):
        raise error(
            f"{source}: {shown(name)} {reason}; only plain relative names are read and written, "
            "so correct or remove it"
        )
    return str(name)


def relative_names(
    names: Iterable[object], source: str, error: type[GwpError] = GwpError
) -> list[str]:
    """`relative_name` of each, in order.

    `error` also when one of them is the folder of another, which only object stores can hold.
    """
    checked = [relative_name(name, source, error) for name in names]
    known = set(checked)
    for name in checked:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) in known:
                raise error(
                    f"{source}: {shown(folder)} is both a file and a folder; remove one of them"
                )
    return checked


def shown(name: object) -> str:
    """`name` on one line of a message, whatever is in it."""
    text = str(name)
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "..."
    return text if text.isprintable() and text.strip() == text != "" else repr(text)


def shown_all(names: Iterable[str]) -> str:
    """The first of some names in order, and how many more there are."""
    every = sorted(names)
    rest = len(every) - _LISTED
    return ", ".join(map(shown, every[:_LISTED])) + (f" and {rest} more" if rest > 0 else "")


def _wrong(name: object) -> str:
    """What is wrong with a name; nothing where it is as it should be."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}, not a name"
    # Control characters, and halves of surrogate pairs, which no file system can encode.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "holds control characters"
    # To Windows a slash.
    if "\\" in name:
        return "holds a backslash"
    parts = name.split("/")
    if not all(parts):
        return "is absolute or has an empty part"
    if ".." in parts:
        return "leads out of its folder"
    if "." in parts:
        return "has a part '.'"
    if _DRIVE.match(name):
        return "begins with a drive"
    if len(name.encode()) > LONGEST or max(len(part.encode()) for part in parts) > _LONGEST_PART:
        return "is too long"
    return ""
