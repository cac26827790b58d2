"""What has several names counts once, whatever kind of link they are, and that is told."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from gwp.data.formats.find import robots_at, set_at
from gwp.data.formats.plain.clip_set import ClipSet
from gwp.data.plan.build import build_manifest
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.datasets.inspect import describe, exit_code
from tests.support.other_sets import write_aloha, write_libero, write_rlds, write_tars
from tests.support.sets import FPS, write_video


def soft(new: Path, own: Path) -> None:
    new.symlink_to(own)


def clips(root: Path) -> tuple[Path, Path]:
    return write_video(root / "a.mp4", range(10)), root / "b.mp4"


def tars(root: Path) -> tuple[Path, Path]:
    return write_tars(root, shards=(1, 1)) / "000000.tar", root / "again.tar"


def hdf5(root: Path) -> tuple[Path, Path]:
    return write_aloha(root) / "episode_0.hdf5", root / "episode_2.hdf5"


@pytest.mark.parametrize("link", [soft, lambda new, own: os.link(own, new)], ids=["soft", "hard"])
@pytest.mark.parametrize("write", [clips, tars, hdf5])
def test_a_file_of_two_names_counts_once(
    tmp_path: Path,
    write: Callable[[Path], tuple[Path, Path]],
    link: Callable[[Path, Path], None],
) -> None:
    own, new = write(tmp_path / "set")
    source = Source(uri=str(tmp_path / "set"), fps=FPS if write is hdf5 else None)
    before = entries(source)
    link(new, own)
    assert entries(source) == before
    (told,) = (f for f in describe(source)["findings"] if "once more" in f["what"])
    assert (told["item"], told["what"].split(" once")[0]) == (new.name, f"is {own.name}")
    assert exit_code(describe(source)) == 0


def entries(source: Source) -> list[str]:
    data = set_at(source)
    if isinstance(data, ClipSet):
        return [clip.name for clip in data.clips]
    return [f"{e.index} {e.data_file} {e.prefix}" for e in data.episodes]


def test_a_file_that_two_sources_name_by_hard_links_is_refused(tmp_path: Path) -> None:
    own = write_video(tmp_path / "one/a.mp4", range(10))
    (tmp_path / "two").mkdir()
    os.link(own, tmp_path / "two/b.mp4")
    sources = [Source(uri=str(tmp_path / name)) for name in ("one", "two")]
    with pytest.raises(DataError, match="named twice"):
        build_manifest(
            sources,
            embodiments=dict[str, Embodiment](),
            window=Window(chunk=4, stride=1),
            clip=ClipWindow(frames=5, fps=5),
        )


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("link", [soft, lambda new, own: os.link(own, new)], ids=["soft", "hard"])
def test_a_shard_that_is_another_once_more_keeps_its_numbers(
    tmp_path: Path, link: Callable[[Path, Path], None], counted: bool
) -> None:
    root = write_rlds(tmp_path / "set", lengths=(5, 4, 3), shards=(1, 1, 1))
    if not counted:
        (root / "dataset_info.json").unlink()
    source = Source(uri=str(root), fps=FPS)
    first, second, _ = sorted(root.glob("*.tfrecord*"))
    before = entries(source)
    second.unlink()
    link(second, first)
    assert entries(source) == [before[0], before[2]]
    told = [f for f in describe(source)["findings"] if "once more" in f["what"]]
    assert [f["item"] for f in told] == [second.name]


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_demonstration_of_two_names_counts_once_and_keeps_its_number(
    tmp_path: Path, kind: str
) -> None:
    file = write_libero(tmp_path / "a.hdf5", lengths=(6, 5, 4))
    source = Source(uri=str(file))
    before = entries(source)
    with h5py.File(file, "a") as demos:
        del demos["data/demo_1"]
        other = demos["data/demo_0"]
        demos["data/demo_1"] = h5py.SoftLink("/data/demo_0") if kind == "soft" else other
    assert entries(source) == [before[0], before[2]]
    data = robots_at(source)
    assert data is not None
    told = [(f.item, f.what) for f in data.remarks]
    what = "a.hdf5: data/demo_1/ is data/demo_0/ once more, by a link"
    assert told == [("episode 1", what)]
