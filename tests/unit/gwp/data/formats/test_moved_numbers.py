"""A file of several episodes that cannot be read moves the numbers of those behind it: it is told
wherever the set is used, or the numbers stay.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from gwp.data.formats.files.listing import MOVED
from gwp.data.formats.find import set_at
from gwp.data.formats.plain.clip_set import ClipSet
from gwp.data.source import Source
from tests.support.other_sets import write_aloha, write_libero, write_rlds, write_tars
from tests.support.sets import FPS, write_video


def libero(root: Path) -> list[Path]:
    return [write_libero(root / f"{i}.hdf5") for i in range(3)]


def aloha(root: Path) -> list[Path]:
    return sorted(write_aloha(root).glob("*.hdf5"))


def tars(root: Path) -> list[Path]:
    return sorted(write_tars(root, shards=(1, 1, 1)).glob("*.tar"))


def shards(root: Path) -> list[Path]:
    return sorted(write_rlds(root, lengths=(5, 4, 3), shards=(2, 1)).rglob("*.tfrecord*"))


def counted_no_more(root: Path) -> list[Path]:
    files = shards(root)
    for about in root.rglob("dataset_info.json"):
        about.unlink()
    return files


def clips(root: Path) -> list[Path]:
    return [write_video(root / f"{name}.mp4", range(10)) for name in "abc"]


def folders(root: Path) -> list[Path]:
    for name in ("one", "two"):
        write_video(root / name / "a.mp4", range(10))
    return [root / "one", root / "two"]


WRITERS = [libero, aloha, tars, shards, counted_no_more, clips, folders]


def numbered(root: Path) -> tuple[set[str], list[str]]:
    """Episodes with their numbers and places, and all that is told of the set."""
    videos = any(root.rglob("*.mp4")) or any(root.rglob("*.tar"))
    data = set_at(Source(uri=str(root), fps=None if videos else FPS))
    if isinstance(data, ClipSet):
        names = {f"{i} {clip.name}" for i, clip in enumerate(data.clips)}
        return names, [why for _, why in (*data.broken, *data.remarks)]
    names = {f"{e.index} {e.data_file} {e.offset} {e.prefix}" for e in data.episodes}
    return names, [*(f.what for f in data.remarks), *(e.problem for e in data.episodes)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("write", WRITERS)
def test_numbers_behind_what_is_lost_stay_or_are_told(
    tmp_path: Path, write: Callable[[Path], list[Path]], last: bool
) -> None:
    root = tmp_path / "set"
    files = write(root)
    before, _ = numbered(root)
    lost, kept = (files[-1], files[-2]) if last else (files[0], files[-1])
    lost.rename(tmp_path / lost.name)
    lost.symlink_to("/nowhere")
    after, found = numbered(root)
    moved = not {name for name in before if str(kept.relative_to(root)) in name} <= after
    assert any(MOVED in what for what in found) == moved
    assert moved == (not last and write in (libero, tars, counted_no_more, folders))
