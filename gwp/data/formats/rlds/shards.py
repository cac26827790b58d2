"""Which files of an RLDS set hold which of its episodes, by their names and dataset_info.json."""

import re
from dataclasses import dataclass
from typing import Any

from gwp.data.formats.format import no_split
from gwp.errors import DataError
from gwp.storage.names import shown

FEATURES = "features.json"
# `name-split.tfrecord-00000-of-00005`; a split in one file may lack the numbers.
_SHARD = re.compile(r"(?:.+-)?([^-/]+)\.tfrecord(?:-(\d+)-of-(\d+))?")
_MOST = 100_000
"""Files of a split, at most: the names have five digits."""
_LARGEST = 10**9
"""Episodes of a file, at most."""


@dataclass(frozen=True)
class Shards:
    """Files of a split in order, those that should be there included, and the episodes that
    each should have (none: that is not known). remarks: what the metadata say otherwise.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


def length_of(stated: Any) -> int:
    """Episodes of a file, as the metadata write it. ValueError when it is no such number."""
    length = int(stated)
    if not 0 <= length <= _LARGEST:
        raise ValueError(stated)
    return length


def folder_of(uri: str, files: dict[str, int]) -> str | None:
    """Folder of the version below `uri` ("" for itself), None when there is no RLDS set.
    DataError when there are several.
    """
    found = sorted(
        n[: -len(FEATURES)].rstrip("/")
        for n in files
        if n == FEATURES or n.endswith("/" + FEATURES)
    )
    # A description without records is none; where the folder itself has both, those below it
    # do not matter.
    found = [f for f in found if any(".tfrecord" in n for n in files_below(files, f))]
    if len(found) > 1 and "" not in found:
        raise DataError(f"{uri}: RLDS sets in {', '.join(found)}; name one of these folders")
    return found[0] if found else None


def files_below(files: dict[str, int], folder: str) -> dict[str, int]:
    """Those in a folder ("": all), named from there."""
    # With its slash: `0.1.0_backup` is another folder than `0.1.0`.
    prefix = f"{folder}/" if folder else ""
    return {n[len(prefix) :]: size for n, size in files.items() if n.startswith(prefix)}


def shards_of(uri: str, split: str | None, files: dict[str, int], stated: dict[str, Any]) -> Shards:
    """The shards of a split; None: of the only one. DataError.

    stated: split -> number of episodes in each of its shards, as the metadata have it
    """
    splits: dict[str, dict[int, str]] = {}
    totals: dict[str, set[int]] = {}
    for name in sorted(files):
        if found := _SHARD.fullmatch(name):
            total = int(found[3] or 0)
            if total > _MOST:
                raise DataError(f"{uri}: {name} is of more than {_MOST} files; remove it")
            shards = splits.setdefault(found[1], {})
            shards[int(found[2] or 0)] = name
            totals.setdefault(found[1], set()).add(total)
            # Shards that are not there get the names they would have: their loss is told, and
            # episodes behind them keep their numbers.
            for i in range(total):
                shards.setdefault(i, re.sub(r"\d+(-of-\d+)$", rf"{i:05d}\1", name))
    if not splits:
        have = f"; its metadata name the splits {', '.join(stated)}" if stated else ""
        raise DataError(f"{uri}: no *.tfrecord* files of a split there{have}")
    no_split(uri, split, splits)
    if split is None and len(splits) > 1:
        have = ", ".join(splits)
        raise DataError(f"{uri}: the set has splits {have}; name one of them in `split`")
    name = split or next(iter(splits))
    if len(totals[name]) > 1:
        counts = ", ".join(map(str, sorted(totals[name])))
        raise DataError(
            f"{uri}: split {name} was written more than once, into {counts} files; keep one of them"
        )
    shards = splits[name]
    names = tuple(shards[i] for i in sorted(shards))
    lengths = tuple(stated.get(name, ()))
    remarks = [
        f"split {shown(other)} has no file" for other in stated.keys() - splits.keys() if splits
    ]
    if lengths and len(lengths) != len(names):
        # Those of another number of files say nothing about these.
        remarks.append(
            f"split {shown(name)} is said to lie in {len(lengths)} files, their names say "
            f"{len(names)}: whether episodes are missing cannot be told"
        )
        lengths = ()
    return Shards(names, lengths, tuple(sorted(remarks)))
