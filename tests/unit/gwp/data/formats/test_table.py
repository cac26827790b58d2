"""The table of formats: which one lies at a source, and that nothing else needs to know them."""

import argparse
import ast
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at
from gwp.data.formats.format import RobotFormat
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.formats.table import AUTO, ROBOTS, VIDEOS, format_names, formats
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.datasets.inspect import describe, exit_code
from pipelines.verbs import data as data_verb
from tests.support import npz_format
from tests.support.other_sets import picture, write_aloha, write_rlds, write_stills, write_tars
from tests.support.paths import ROOT
from tests.support.sets import FPS, TOP, episode_values, frame_number, number, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)


def write_npz(root: Path, lengths: tuple[int, ...] = (12, 9)) -> Path:
    root.mkdir()
    for episode, n in enumerate(lengths):
        state, action = episode_values(episode, n)
        top = np.stack([picture(TOP, episode, k) for k in range(n)])
        np.savez(root / f"{episode}.npz", state=state, action=action, top=top)
    return root


@pytest.fixture
def npz(monkeypatch: pytest.MonkeyPatch) -> RobotFormat:
    """A format more: one file, and this line of the table."""
    monkeypatch.setitem(ROBOTS, "npz", npz_format)
    return npz_format


@pytest.mark.usefixtures("npz")
def test_a_new_format_goes_all_the_way_to_samples(tmp_path: Path) -> None:
    source = Source(uri=str(write_npz(tmp_path / "set")), embodiment="arm")
    reader = FileReader()
    data = robots_at(source, reader)
    assert data is not None
    arm = embodiment_of(data, "arm", 4, 2)
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    stats = {"arm": compute_stats([source], arm, WINDOW)}
    canvas = Canvas(layout="single", width=32, height=32)
    spec = SampleSpec(canvas, WINDOW, CLIP, {"arm": arm}, stats, 6, False, 0)
    samples, failures = decode_samples(manifest.rows(range(len(manifest))), spec, reader)
    assert not failures
    assert len(samples) == 21
    normalizer = Normalizer(stats["arm"], arm)
    for sample in samples:
        episode, k = (int(part) for part in sample["sample_id"].split("/")[1:])
        length = (12, 9)[episode]
        seen = [min(k + i, length - 1) for i in range(5)]
        shown = [frame_number(frame) for frame in sample["frames"]]
        assert shown == [number(TOP, episode, row) for row in seen]
        state, action = episode_values(episode, length)
        expected = normalizer.actions(action[seen[:4]], state[k])
        np.testing.assert_allclose(sample["actions"][:, :2], expected, atol=1e-6)


@pytest.mark.usefixtures("npz")
def test_a_new_format_is_inspected_and_can_be_named(tmp_path: Path) -> None:
    root = write_npz(tmp_path / "set")
    for uri in (root, root / "0.npz"):
        facts = describe(Source(uri=str(uri)))
        assert (facts["format"], exit_code(facts)) == ("NumPy", 0)
        assert facts["cameras"][0]["width"] == 64
    assert parsed("--format", "npz").format == "npz"


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    data_verb.add(parser.add_subparsers())
    return parser.parse_args(["data", "inspect", "somewhere", *words])


def test_sources_and_commands_take_the_names_of_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert get_args(Source.model_fields["format"].annotation) == format_names()
    assert format_names() == (AUTO, *ROBOTS, *VIDEOS)
    for name in format_names():
        assert parsed("--format", name).format == name
    with pytest.raises(SystemExit):
        parsed("--help")
    assert ", ".join(format_names()) in " ".join(capsys.readouterr().out.split())


def test_every_format_says_what_it_is() -> None:
    for form in formats().values():
        assert form.title
        assert form.signs
        assert all(ending == ending.lower() for ending in form.endings)


def test_names_of_formats_are_compared_nowhere() -> None:
    """What depends on the format is asked of it."""
    names = {*ROBOTS, *VIDEOS}
    compared = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for top in ("gwp", "pipelines", "serve", "clusters")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Compare, ast.MatchValue))
        and any(isinstance(n, ast.Constant) and n.value in names for n in ast.walk(node))
    ]
    assert not compared


def found(uri: Path, **fields: Any) -> str | None:
    data = robots_at(Source(uri=str(uri), **fields))
    return data and data.format


def test_what_is_there_is_found(tmp_path: Path) -> None:
    write_aloha(tmp_path / "hdf5", lengths=(5,))
    write_rlds(tmp_path / "rlds", lengths=(5,), shards=(1,))
    write_stills(tmp_path / "lerobot", "v2.1", lengths=(5,))
    for name in ("hdf5", "rlds", "lerobot"):
        fps = None if name == "lerobot" else FPS
        assert (
            found(tmp_path / name, fps=fps) == found(tmp_path / name, fps=fps, format=name) == name
        )
    write_tars(tmp_path / "tars", lengths=(12,), shards=(1,))
    assert robots_at(Source(uri=str(tmp_path / "tars"))) is None
    write_video(tmp_path / "hdf5/episode_0.mp4", range(12))
    with pytest.raises(
        DataError, match=r"both HDF5 files and videos .* set `format: hdf5` or `format: clips`"
    ):
        robots_at(Source(uri=str(tmp_path / "hdf5")))
    assert found(tmp_path / "hdf5", fps=FPS, format="hdf5") == "hdf5"
    assert robots_at(Source(uri=str(tmp_path / "hdf5"), format="clips")) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "auto",
            (
                r"no videos there .*no webdataset shards \(\*.tar\), "
                r"no LeRobot set \(meta/info.json\), no RLDS set .*no HDF5 episodes"
            ),
        ),
        ("clips", r"no videos there \(.*\); check"),
        ("tars", r"in shards \(\*.tar\) there"),
        ("lerobot", "not a LeRobot set"),
        ("hdf5", "no HDF5 episodes"),
        ("rlds", r"not an RLDS set \(features.json beside"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, name: Any, said: str) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=said):
        build_manifest(
            [Source(uri=str(tmp_path), format=name, fps=FPS)],
            embodiments={},
            window=WINDOW,
            clip=CLIP,
        )
