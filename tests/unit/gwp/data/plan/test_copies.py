"""Copies of a set elsewhere, and what is only like one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp import storage
from gwp.data.plan.build import build_manifest
from gwp.data.plan.copies import Copies, Piece
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.other_sets import write_aloha, write_rlds, write_tars
from tests.support.sets import FPS, write_v21, write_v30, write_video

SETS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "lerobot v2.1": (lambda root: write_v21(root, lengths=(9, 7)), {}),
    "lerobot v3.0": (lambda root: write_v30(root, lengths=(9, 7)), {}),
    "hdf5": (lambda root: write_aloha(root, lengths=(9, 7)), {"fps": FPS}),
    "rlds": (lambda root: write_rlds(root, lengths=(9, 7)), {"fps": FPS}),
    "clips": (lambda root: write_video(root / "a.mp4", range(12)), {}),
    "tars": (lambda root: write_tars(root, (9,), (1,)), {}),
}


def told(*sources: Source) -> list[str]:
    said: list[str] = []
    rules = {"window": Window(chunk=4, stride=1), "clip": ClipWindow(frames=5, fps=5)}
    manifest = build_manifest(sources, embodiments={}, tell=said.append, **rules)
    assert set(np.unique(manifest.column("source"))) == set(range(len(sources)))
    return said


@pytest.mark.parametrize("name", SETS)
def test_a_copy_in_another_folder_is_told_and_used(tmp_path: Path, name: str) -> None:
    write, fields = SETS[name]
    write(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two/deeper")
    one, two = (Source(uri=str(tmp_path / p), **fields) for p in ("one", "two/deeper"))
    (text,) = told(one, two)
    assert text.startswith(f"{two.uri}: holds copies of what {one.uri} holds (")
    # Another use of it is other samples.
    assert not told(one, two.model_copy(update={"task": "look"}))


def test_a_copy_in_a_bucket_is_told(bucket: str, tmp_path: Path) -> None:
    write_aloha(tmp_path / "one", lengths=(9,))
    storage.upload(tmp_path / "one", f"{bucket}/two")
    (text,) = told(Source(uri=str(tmp_path / "one"), fps=FPS), Source(uri=f"{bucket}/two", fps=FPS))
    assert "episode 0 is episode 0 there" in text


def test_one_copied_episode_is_named_and_equal_lengths_are_no_copies(tmp_path: Path) -> None:
    write_aloha(tmp_path / "one", lengths=(9, 9, 9))
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one/episode_1.hdf5", tmp_path / "two/episode_0.hdf5")
    (text,) = told(*(Source(uri=str(tmp_path / p), fps=FPS) for p in ("one", "two")))
    assert "(episode 0 is episode 1 there)" in text
    shutil.copy(tmp_path / "one/episode_2.hdf5", tmp_path / "three.hdf5")
    first = Source(uri=str(tmp_path / "one"), fps=FPS, episodes="0:2")
    assert not told(first, Source(uri=str(tmp_path / "three.hdf5"), fps=FPS))
    assert not told(first, first.model_copy(update={"episodes": "2"}))


def test_contents_are_read_of_equal_sizes_alone_and_of_no_end_of_them() -> None:
    read: list[str] = []

    def piece(name: str, size: int) -> Piece:
        def content() -> bytes:
            read.append(name)
            if name.startswith("broken"):
                raise DataError("broken")
            return name.encode()

        return Piece(name, (size,), content)

    copies = Copies()
    one, two = Source(uri="one"), Source(uri="two")
    assert not list(copies.note(one, [piece(f"a{i}", i % 2) for i in range(1000)]))
    assert not read
    assert not list(copies.note(two, [piece("b", 5)]))
    assert not read
    assert not list(copies.note(Source(uri="three"), [piece(f"c{i}", 1) for i in range(1000)]))
    assert len(read) < 200
    broken = [piece("broken", 7)]
    assert not list(copies.note(one, broken))
    assert not list(copies.note(two, broken))
