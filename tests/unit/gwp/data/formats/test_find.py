"""What a source names: one set, once, and nothing that the set does not have."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gwp import storage
from gwp.data.formats.find import robots_at, set_at, usable_episodes
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.stats.files import stats_for
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.cli import main
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_aloha, write_libero, write_rlds, write_tars
from tests.support.sets import FPS, TOP, WRIST, write_v21, write_v30, write_video
from tests.unit.gwp.data.formats.test_formats import prepare, robots

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)


def build(*sources: Source) -> int:
    return len(build_manifest(sources, embodiments={}, window=WINDOW, clip=CLIP))


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_of_sets_is_none_of_them(bucket: str, tmp_path: Path, remote: bool) -> None:
    """Their videos are no plain ones, and their files no set together."""
    root = tmp_path / "all"
    write_v21(root / "org/one", lengths=(5,))
    write_v30(root / "two", lengths=(5,))
    write_aloha(root / "three", lengths=(5,))
    uri = f"{bucket}/all" if remote else str(root)
    if remote:
        storage.upload(root, uri)
    for look in (set_at, robots_at):
        with pytest.raises(
            DataError, match=r"in 3 folders below it: org/one, three, two; name one"
        ):
            look(Source(uri=uri))
    assert len(robots(f"{uri}/org/one").episodes) == 1
    # Who says what is meant has it.
    assert len(set_at(Source(uri=uri, format="clips")).clips) == 2
    assert len(robots(uri, format="hdf5", fps=FPS).episodes) == 1


def test_inspecting_a_folder_of_sets_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_v21(tmp_path / name, lengths=(5,))
    assert main(["data", "inspect", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in 2 folders below it: a, b" in line


def test_a_set_with_another_inside_is_itself(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,))
    write_aloha(root / "raw", lengths=(5, 5))
    assert len(robots(root).episodes) == 1


def test_folders_of_one_form_that_lie_deeper_are_one_set(tmp_path: Path) -> None:
    for name in ("left", "right"):
        write_aloha(tmp_path / "hdf5" / name, lengths=(5,))
    assert len(robots(tmp_path / "hdf5", fps=FPS).episodes) == 2
    write_rlds(tmp_path / "rlds/1.0.0")
    assert len(robots(tmp_path / "rlds", fps=FPS).episodes) == 2


@pytest.mark.parametrize(
    "again", ["{}/", "{}/.", "file://{}", "{}/../set", "{}//", pytest.param("{}", id="same")]
)
def test_a_folder_by_two_names_is_one(tmp_path: Path, again: str) -> None:
    uri = str(write_v21(tmp_path / "set", lengths=(9, 9)))
    other = again.format(uri)
    with pytest.raises(DataError, match="the same episodes are named twice"):
        build(Source(uri=uri), Source(uri=other, weight=2))
    # Other episodes of it, or another use, are other samples.
    parts = Source(uri=uri, episodes="0"), Source(uri=other, episodes="1")
    assert build(*parts) == build(Source(uri=uri))
    assert build(Source(uri=uri), Source(uri=other, task="look")) == 2 * build(Source(uri=uri))


WHOLE_AND_PART = {
    "hdf5": (lambda r: [write_aloha(r / name, lengths=(9,)) for name in "xy"], {"fps": FPS}),
    "clips": (lambda r: [write_video(r / f"{name}/a.mp4", range(12)) for name in "xy"], {}),
    "tars": (lambda r: [write_tars(r / name, (9, 9), (1, 1)) for name in "xy"], {}),
    "rlds": (lambda r: [write_rlds(r / "x", lengths=(9,))], {"fps": FPS}),
    "lerobot": (lambda r: [write_v21(r / "x", lengths=(9,))], {}),
}


@pytest.mark.parametrize("name", WHOLE_AND_PART)
def test_a_file_in_two_folders_is_read_for_one_source(tmp_path: Path, name: str) -> None:
    write, fields = WHOLE_AND_PART[name]
    write(tmp_path / "set")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    one = {"uri": str(tmp_path / "set/x"), **fields}
    others = [tmp_path / "link/x"]
    if (tmp_path / "set/y").exists():
        others += [tmp_path / "set", *(f for f in (tmp_path / "set/x").iterdir() if f.is_file())]
    for other in others:
        with pytest.raises(DataError, match="the same episodes are named twice"):
            build(Source(**one), Source(**one | {"uri": str(other)}))
    # Another use is another sample, and so is a copy.
    assert build(Source(**one), Source(**one | {"uri": str(others[0])}, task="look"))
    shutil.copytree(tmp_path / "set/x", tmp_path / "copy")
    assert build(Source(**one), Source(**one | {"uri": str(tmp_path / "copy")}))


def test_statistics_count_a_file_once(tmp_path: Path) -> None:
    for name in "xy":
        write_aloha(tmp_path / "set" / name, lengths=(9,))
    _, _, arm = prepare(tmp_path / "set", fps=FPS)
    sources = [Source(uri=str(tmp_path / p), fps=FPS, embodiment="arm") for p in ("set", "set/x")]
    with pytest.raises(DataError, match="the same episodes are named twice"):
        compute_stats(sources, arm, WINDOW)


def test_a_link_to_a_file_of_the_set_counts_once(tmp_path: Path) -> None:
    root = write_aloha(tmp_path / "set", lengths=(9, 7))
    (root / "a").mkdir()
    (root / "a/again.hdf5").symlink_to(root / "episode_0.hdf5")
    data = robots(root, fps=FPS)
    assert [e.data_file for e in data.episodes] == ["episode_0.hdf5", "episode_1.hdf5"]
    findings = describe(Source(uri=str(root), fps=FPS))["findings"]
    assert ("a/again.hdf5", "is episode_0.hdf5 once more, by a link") in [
        (f["item"], f["what"]) for f in findings
    ]


def test_a_bucket_by_two_names_is_one(bucket: str, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", range(12))
    storage.upload(tmp_path, f"{bucket}/clips")
    for again in (f"{bucket}/clips/", f"{bucket}//clips"):
        with pytest.raises(DataError, match="the same episodes are named twice"):
            build(Source(uri=f"{bucket}/clips"), Source(uri=again))


@pytest.mark.parametrize("write", [write_tars, lambda root: write_video(root / "a.mp4", range(9))])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"split": "train"}, "`split` is for .*, not for .*; remove it"),
        ({"cameras": {"front": "a"}}, "which have no `cameras`; remove it"),
        ({"state": ["x"]}, "no `state`"),
        ({"action": ["x"]}, "no `action`"),
        ({"fps": 10}, "no `fps`"),
        ({"only": "success"}, "no `only`"),
        ({"embodiment": "arm"}, "no `embodiment`"),
    ],
)
def test_plain_videos_have_nothing_of_robots(
    tmp_path: Path, write: Any, fields: dict[str, Any], said: str
) -> None:
    write(tmp_path / "set")
    with pytest.raises(DataError, match=said):
        set_at(Source(uri=str(tmp_path / "set"), **fields))


def with_success(root: Path) -> Path:
    """Of three episodes the second fails, though it was close."""
    path = write_libero(root / "a.hdf5", lengths=(12, 9, 7))
    with h5py.File(path, "a") as file:
        for name, demo in file["data"].items():
            n = len(demo["actions"])
            demo["success"] = np.arange(n) == n - 1 - (name == "demo_1")
    return path


def test_only_episodes_that_ended_well(tmp_path: Path) -> None:
    path = with_success(tmp_path)
    manifest, _, arm = prepare(path, only="success")
    kept = {row["sample_id"].split("/")[1] for row in manifest.rows(range(len(manifest)))}
    assert kept == {"000000", "000002"}
    assert not manifest.skipped
    # Statistics of those are statistics of what is trained, and no others are.
    source = Source(uri=str(path), only="success", embodiment="arm")
    stats = compute_stats([source], arm, WINDOW)
    assert stats.metadata["num_episodes"] == 2
    storage.write_bytes(str(tmp_path / "stats.json"), _json(stats.to_json()))
    stats_for(str(tmp_path / "stats.json"), arm, WINDOW, [source], False, None)
    every = source.model_copy(update={"only": None})
    with pytest.raises(DataError, match="computed without 1 episodes"):
        stats_for(str(tmp_path / "stats.json"), arm, WINDOW, [every], False, None)
    facts = describe(Source(uri=str(path), only="success"))
    assert facts["usable"] == 2
    assert "success is false at the end of 1 of 3 episodes" in [
        f["what"] for f in facts["findings"]
    ]


def _json(document: Any) -> bytes:
    import json

    return json.dumps(document).encode()


def test_outcomes_that_cannot_be_told(tmp_path: Path) -> None:
    path = with_success(tmp_path)
    source = Source(uri=str(path), only="succes", embodiment="arm")
    data = robots(path)
    with pytest.raises(DataError, match="no column 'succes' for `only`; the set has actions, done"):
        usable_episodes(data, source, [])
    _, bad = usable_episodes(data, source.model_copy(update={"only": "actions"}), [])
    assert {reason for _, reason in bad} == {
        "'actions' has 2 values a row; `only` takes a column of one"
    }
    with pytest.raises(DataError, match="'dones' is false at the end of each of 3 episodes"):
        usable_episodes(data, source.model_copy(update={"only": "dones"}), [])


@pytest.mark.parametrize("write", [write_rlds, write_v30])
def test_outcomes_in_every_format(tmp_path: Path, write: Any) -> None:
    """Any column of one number tells how an episode ended."""
    root = write(tmp_path / "set")
    fps = FPS if write is write_rlds else None
    column = "reward" if write is write_rlds else "frame_index"
    source = Source(uri=str(root), fps=fps, only=column, embodiment="arm")
    data = robots_at(source)
    assert data is not None
    good, bad = usable_episodes(data, source, [])
    assert ([e.index for e, _ in good], bad) == ([0, 1], [])


def test_cameras_of_a_source_without_a_robot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v21(tmp_path / "set", lengths=(9, 9), cameras=(TOP, WRIST))
    # What nobody asks for may be missing.
    shutil.rmtree(root / f"videos/chunk-000/{TOP}")
    (root / f"videos/chunk-000/{TOP}").mkdir()
    write_video(root / f"videos/chunk-000/{TOP}/episode_000000.mp4", range(9))
    source = Source(uri=str(root), cameras={"front": WRIST})
    manifest = build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
    assert not manifest.skipped
    uris = {view["uri"] for row in manifest.rows(range(len(manifest))) for view in row["views"]}
    assert all(WRIST in uri for uri in uris)
    page = tmp_path / "x.html"
    words = ["data", "inspect", str(root), "--cameras", f"front={WRIST}", "--html", str(page)]
    assert main(words) == 0
    assert TOP not in page.read_text()
    assert WRIST in capsys.readouterr().out
    for wrong, said in (
        ("top", "--cameras top: write front=KEY"),
        (f"frnt={TOP}", "--cameras.frnt"),
        ("front=none", "no camera 'none'"),
        (f"front={TOP},front={WRIST}", "write front=KEY"),
    ):
        assert main(["data", "inspect", str(root), "--cameras", wrong]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["stats", "{}", "--chunk", "4", "--episodes", "", "--out", "{}.json"], "cannot read ''"),
        (["stats", "{}", "--chunk", "4", "--out", "{}"], "is a folder; name a file"),
        (["inspect", "{}", "--html", "{}"], "is a folder; name a file"),
        (["inspect", "{}", "--fps", "1e400"], "--fps: Input should be a finite number"),
        (
            ["stats", "{}", "--chunk", "4", "--cameras", "front=no", "--out", "{}.json"],
            "no camera 'no'",
        ),
        (
            ["inspect", "S3://bucket/set"],
            "copy it to a local folder or to s3:// (in small letters)",
        ),
        (["inspect", "gs://bucket/set"], "is of no kind that is read"),
        (["inspect", "hf://set"], "is of no kind that is read"),
        (["inspect", "s3://"], "names no bucket; write s3://bucket/prefix"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,))
    assert main(["data", *(option.format(root) for option in options)]) == 2
    out = capsys.readouterr().err.strip()
    assert said in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize("name", ["hdf5", "clips", "tars", "lerobot"])
def test_a_link_to_a_folder_that_is_not_there_is_told(tmp_path: Path, name: str) -> None:
    write, fields = WHOLE_AND_PART[name]
    write(tmp_path / "set")
    root = tmp_path / "set/x"
    (root / "part2").symlink_to("/nowhere/part2")
    (root / "videos.old.zip").symlink_to("/nowhere/other")
    facts = describe(Source(uri=str(root), **fields))
    assert facts["usable"]
    said = [f for f in facts["findings"] if f["item"] == "part2"]
    assert [(f["what"].partition(";")[0], f["consequence"]) for f in said] == [
        ("is a link to something that is not there", "left out")
    ]
    assert "videos.old.zip" not in str(facts["findings"])
    told: list[str] = []
    manifest = build_manifest(
        [Source(uri=str(root), **fields)],
        embodiments={},
        window=WINDOW,
        clip=CLIP,
        tell=told.append,
    )
    assert "part2" in str(told) + str(manifest.skipped)


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_a_set_that_lies_deep_is_no_folder_of_plain_videos(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "all/a/b/c/d/set", lengths=(5,))
    for look in (set_at, robots_at):
        with pytest.raises(DataError, match="no set itself, but in 1 folders below it: a/b/c/d/s"):
            look(Source(uri=str(tmp_path / "all")))
    assert len(set_at(Source(uri=str(tmp_path / "all"), format="clips")).clips) == 1
    (tmp_path / "all/a/b/c/d/set/meta/info.json").unlink()
    assert len(set_at(Source(uri=str(tmp_path / "all"))).clips) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("replay_buffer.zarr/data/action/0.0", "zarr"),
        ("replay_buffer.zarr.zip", "zarr"),
        ("data/.zarray", "zarr"),
        ("run_0.mcap", "ROS bags"),
        ("run_0.bag", "ROS bags"),
        ("rosbag/rosbag_0.db3", "ROS bags"),
        ("a/episode_0.npz", "numpy files"),
        ("a/episode_0.pkl", "pickles"),
        ("data/train-00000.parquet", "Parquet files without"),
        ("readme.md", "check the URI"),
    ],
)
def test_known_forms_that_are_not_read_are_named(tmp_path: Path, name: str, said: str) -> None:
    file = tmp_path / "set" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    places = [tmp_path / "set", *([file] if "." in file.name[1:] else [])]
    if ".zarr/" in name:
        places = [tmp_path / "set", tmp_path / "set/replay_buffer.zarr"]
    for place in places:
        with pytest.raises(DataError) as caught:
            set_at(Source(uri=str(place)))
        text = str(caught.value)
        if said == "check the URI":
            assert "convert" not in text
        else:
            assert said in text
            assert "convert them to LeRobot or to HDF5" in text


def test_slashes_more_than_needed_are_one(bucket: str, tmp_path: Path) -> None:
    write_v21(tmp_path / "set", lengths=(5,))
    storage.upload(tmp_path / "set", f"{bucket}/set")
    twice = f"{bucket.replace('s3://', 's3:///')}//set//"
    assert robots(twice).fingerprint == robots(f"{bucket}/set").fingerprint
    assert build(Source(uri=twice)) == build(Source(uri=f"{bucket}/set"))


@pytest.mark.parametrize(
    "fields",
    [
        {"resample": True},
        {"fps": FPS},
        {"state": ("observation.state",)},
        {"cameras": {"front": TOP}},
        {"instruction": "task_index"},
        {"colours": {TOP: "rgb"}},
    ],
)
def test_a_field_that_changes_nothing_makes_no_other_samples(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    source = Source(uri=str(write_v21(tmp_path / "set", lengths=(9, 9))))
    with pytest.raises(DataError, match="the same episodes are named twice"):
        build(source, Source(uri=source.uri, **fields))
    half = Source(uri=source.uri, episodes="0", **fields)
    assert build(half, source.model_copy(update={"episodes": "1"})) == build(source)
