"""What is told of an HDF5 set wherever it is used: nothing of it costs an episode."""

from collections.abc import Iterator, Mapping, Sequence

from gwp.data.formats.files.listing import MOVED
from gwp.data.formats.finding import Finding
from gwp.data.formats.hdf5.demo import Demo
from gwp.data.formats.hdf5.index import RATES, FileIndex
from gwp.storage.names import shown, shown_all

_CHOOSE = "bring it, or name files as sources in place of numbers"
_SAME = 1e-3
"""Relative difference up to which two rates are one, for they are written with few digits."""


def remarks_of(
    looks: Mapping[str, FileIndex | str], empty: Sequence[tuple[int, str, Demo]], fps: float
) -> Iterator[Finding]:
    """looks: index of each file, in order, or why it has none; empty: numbers, files and
    demonstrations that hold nothing of their own; fps: at which the set is read, Hz
    """
    indices = {name: found for name, found in looks.items() if isinstance(found, FileIndex)}
    # Where each file is an episode, one that is lost takes its number.
    if any(len(index.demos) != 1 for index in indices.values()):
        *before, _ = looks
        for name in (name for name in before if name not in indices):
            yield Finding(name, f"cannot be read: {MOVED}", "ignored", _CHOOSE)
    for number, name, demo in empty:
        what = f"{name} {demo.prefix.rstrip('/')} is empty"
        advice = "remove it"
        if demo.same:
            what = f"{name}: {shown(demo.prefix)} is {shown(demo.same)} once more, by a link"
            advice = "it counts once"
        yield Finding(f"episode {number}", what, "ignored", advice)
    demos = [demo for index in indices.values() for demo in index.demos]
    noted = {rate for index in indices.values() for rate in index.noted}
    noted |= {demo.scalars[key] for demo in demos for key in RATES if demo.scalars.get(key, 0) > 0}
    if odd := sorted(rate for rate in noted if abs(rate - fps) > _SAME * fps):
        said = ", ".join(f"{rate:g}" for rate in odd)
        what = f"files note a rate of {said} Hz, and are read at {fps:g} Hz"
        yield Finding("the set", what, "ignored", "correct `fps` of the source, unless they err")
    for name, index in indices.items():
        if index.passed:
            what = f"groups that have actions and no name of an episode: {shown_all(index.passed)}"
            yield Finding(name, what, "left out", "call episodes demo_0, demo_1 and so on")
        folders = {demo.name.rpartition("/")[0] for demo in index.demos if not demo.is_empty}
        if len(folders) > 1:
            named = shown_all(folder or "/" for folder in folders)
            what = f"its episodes lie in several groups ({named}), and all of them are used"
            yield Finding(name, what, "ignored", "choose with `episodes`, if they are splits")
    for path, kinds in _unread(demos).items():
        what = f"looks like pictures of {shown_all(kinds)}, which are not read as such"
        yield Finding(shown(path), what, "ignored", "write them as uint8 [T, H, W, 3]")


def _unread(demos: Sequence[Demo]) -> dict[str, set[str]]:
    """Path of data that look like pictures -> what kinds of them, over all episodes."""
    found: dict[str, set[str]] = {}
    for demo in demos:
        for path, kind in demo.unread.items():
            found.setdefault(path, set()).add(kind)
    return found
