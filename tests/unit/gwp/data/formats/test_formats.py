"""Formats beside LeRobot videos: whatever a set lies in, from a folder or a bucket, its samples
are the same.
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, set_at, usable_episodes
from gwp.data.formats.format import FilePart
from gwp.data.formats.rlds import format as rlds
from gwp.data.formats.robot_set import RobotSet, embodiment_of
from gwp.data.formats.vectors import episode_vectors
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import Manifest
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.other_sets import (
    LENGTHS,
    TASK,
    encoded,
    write_aloha,
    write_libero,
    write_rlds,
    write_stills,
    write_tars,
)
from tests.support.sets import (
    FPS,
    TOP,
    WRIST,
    episode_values,
    frame_number,
    number,
    write_v21,
    write_v30,
    write_video,
)

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
WIDE = Canvas(layout="horizontal", width=64, height=32)
FORMATS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "aloha": (write_aloha, {"fps": FPS}),
    "aloha as JPEG": (lambda root: write_aloha(root, compress=True), {"fps": FPS}),
    "libero": (lambda root: write_libero(root / "demo.hdf5"), {}),
    "rlds": (write_rlds, {"fps": FPS}),
    "rlds unpacked, in one shard": (
        lambda root: write_rlds(root, packed=False, shards=(2,)),
        {"fps": FPS},
    ),
    "LeRobot v2.1 with pictures": (lambda root: write_stills(root, "v2.1"), {}),
    "LeRobot v3.0 with pictures": (lambda root: write_stills(root, "v3.0"), {}),
}


def robots(uri: Path | str, **fields: Any) -> RobotSet:
    data = robots_at(Source(uri=str(uri), **fields))
    assert data is not None
    return data


def prepare(uri: Path | str, **fields: Any) -> tuple[Manifest, SampleSpec, Embodiment]:
    source = Source(uri=str(uri), embodiment="arm", **fields)
    arm = embodiment_of(robots(uri, **fields), "arm", 4, 2, delta_mask=(True, False))
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    return (
        manifest,
        SampleSpec(
            WIDE,
            WINDOW,
            CLIP,
            {"arm": arm},
            {"arm": compute_stats([source], arm, WINDOW)},
            6,
            False,
            0,
        ),
        arm,
    )


def samples_of(manifest: Manifest, spec: SampleSpec) -> list[dict[str, Any]]:
    samples, failures = decode_samples(
        manifest.rows(range(manifest.table.num_rows)), spec, FileReader()
    )
    assert not failures
    return samples


def skipped(uri: Path | str, **fields: Any) -> dict[str, str]:
    """What a manifest leaves out, with the reason."""
    return {s["item"]: s["reason"] for s in prepare(uri, **fields)[0].skipped}


@pytest.mark.parametrize("name", FORMATS)
def test_frames_state_and_actions_belong_together(tmp_path: Path, name: str) -> None:
    write, fields = FORMATS[name]
    write(tmp_path / "set")
    manifest, spec, arm = prepare(tmp_path / "set", **fields)
    samples, normalizer = samples_of(manifest, spec), Normalizer(spec.stats["arm"], arm)
    assert (len(samples), arm.fps, set(arm.cameras.values())) == (sum(LENGTHS), FPS, {TOP, WRIST})
    left = arm.cameras["front"]
    for sample in samples:
        episode, k = (int(x) for x in sample["sample_id"].split("/")[1:])
        seen = [min(k + i, LENGTHS[episode] - 1) for i in range(5)]
        for camera, box in ((left, slice(0, 32)), (WRIST if left == TOP else TOP, slice(32, 64))):
            assert [frame_number(f[:, box]) for f in sample["frames"]] == [
                number(camera, episode, s) for s in seen
            ]
        state, action = episode_values(episode, LENGTHS[episode])
        np.testing.assert_allclose(sample["state"][:3], normalizer.state(state[k]), atol=1e-4)
        np.testing.assert_allclose(
            sample["actions"][:, :2], normalizer.actions(action[seen[:4]], state[k]), atol=1e-4
        )


@pytest.mark.parametrize("name", FORMATS)
def test_a_bucket_gives_the_samples_of_the_folder(bucket: str, tmp_path: Path, name: str) -> None:
    write, fields = FORMATS[name]
    write(tmp_path / "set")
    there = f"{bucket}/{name.replace(' ', '-')}"
    storage.upload(tmp_path / "set", there)
    found = []
    for uri in (str(tmp_path / "set"), there):
        manifest, spec, _ = prepare(uri, **fields)
        found.append(
            (manifest.fingerprint, spec.stats["arm"].to_json(), samples_of(manifest, spec))
        )
    assert found[0][:2] == found[1][:2]
    for a, b in zip(found[0][2], found[1][2], strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("name", "kind"), [("aloha", np.float64), ("libero", np.float64), ("rlds", np.float32)]
)
def test_vectors_are_those_that_were_written(tmp_path: Path, name: str, kind: Any) -> None:
    write, fields = FORMATS[name]
    write(tmp_path / "set")
    data = robots(tmp_path / "set", **fields)
    good, bad = usable_episodes(data, Source(uri=data.uri, embodiment="arm"), list(data.cameras))
    assert not bad
    for (episode, first), n in zip(good, LENGTHS, strict=True):
        for found, written in zip(
            episode_vectors(data, episode, first, FileReader()),
            episode_values(episode.index, n),
            strict=True,
        ):
            assert np.array_equal(found, written.astype(kind))


def test_instructions(tmp_path: Path) -> None:
    write_libero(tmp_path / "libero.hdf5")
    write_rlds(tmp_path / "rlds")
    for uri, fields in ((tmp_path / "libero.hdf5", {}), (tmp_path / "rlds", {"fps": FPS})):
        assert {e.text for e in robots(uri, **fields).episodes} == {TASK}


def test_columns_by_name(tmp_path: Path) -> None:
    libero = robots(
        write_libero(tmp_path / "libero.hdf5"),
        state=("obs/gripper_states",),
        action=("actions", "dones"),
    )
    assert libero.state_names == ("gripper_states_0",)
    assert libero.action_names == ("actions_0", "actions_1", "dones_0")
    state, action = episode_vectors(libero, libero.episodes[1], 0, FileReader())
    expected = episode_values(1, LENGTHS[1])
    np.testing.assert_array_equal(state, expected[0][:, 2:])
    np.testing.assert_array_equal(action[:, :2], expected[1])
    rewards = robots(write_rlds(tmp_path / "rlds"), fps=FPS, state=("reward", "observation/state"))
    np.testing.assert_array_equal(
        episode_vectors(rewards, rewards.episodes[0], 0, FileReader())[0][:, 0],
        -np.arange(LENGTHS[0]),
    )
    swapped = robots(
        write_v30(tmp_path / "v30"), state=("action",), action=("observation.state", "action")
    )
    assert (swapped.state_names, swapped.action_names) == (
        ("dx", "grip"),
        ("x", "y", "grip", "dx", "grip"),
    )
    np.testing.assert_allclose(
        episode_vectors(swapped, swapped.episodes[1], LENGTHS[0], FileReader())[0],
        expected[1],
        atol=1e-5,
    )
    with pytest.raises(
        DataError,
        match=r"no column 'obs/gripper_state' for `state`; did you mean 'obs/gripper_states'\?",
    ):
        robots(tmp_path / "libero.hdf5", state=("obs/gripper_state",))


def test_a_set_of_unusual_columns_asks_for_them(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "demo.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo.move("obs/ee_states", "obs/hand")
    with pytest.raises(
        DataError, match=r"no state; name its columns in `state` \(the set has .*obs/hand"
    ):
        prepare(path)
    assert not skipped(path, state=("obs/hand", "obs/gripper_states"))


def test_the_rate_is_asked_for_where_the_format_states_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"set `fps` on this source \(ALOHA is customarily recorded at 50 Hz\)"
    ):
        robots(write_aloha(tmp_path / "aloha"))
    with pytest.raises(DataError, match="set `fps` on this source"):
        robots(write_rlds(tmp_path / "rlds"))
    for uri in (write_libero(tmp_path / "demo.hdf5"), write_v21(tmp_path / "v21")):
        assert robots(uri, fps=FPS).fps == FPS
        with pytest.raises(DataError, match=r"was recorded at 10 Hz, `fps` says 50; remove `fps`"):
            robots(uri, fps=50)


def test_a_set_of_another_rate_is_resampled(tmp_path: Path) -> None:
    write_aloha(tmp_path / "set", lengths=(12,))
    arm = embodiment_of(robots(tmp_path / "set", fps=FPS), "arm", 4, 2).model_copy(
        update={"fps": FPS / 2}
    )
    source = Source(uri=str(tmp_path / "set"), fps=FPS, embodiment="arm", resample=True)
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    spec = SampleSpec(
        WIDE, WINDOW, CLIP, {"arm": arm}, {"arm": compute_stats([source], arm, WINDOW)}, 6, False, 0
    )
    assert [frame_number(f[:, :32]) for f in samples_of(manifest, spec)[0]["frames"]] == [
        number(TOP, 0, k) for k in (0, 2, 4, 6, 8)
    ]


def test_a_recording_made_again_is_another_set(tmp_path: Path) -> None:
    def written(place: str, value: float) -> Path:
        root = write_aloha(tmp_path / place)
        with h5py.File(root / "episode_1.hdf5", "a") as file:
            file["action"][3, 1] = value
        return root

    prints = [
        robots(written(f"a{i}", value), fps=FPS).fingerprint
        for i, value in enumerate((0.25, 0.25, 0.75))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_splits_are_chosen(tmp_path: Path) -> None:
    write_rlds(tmp_path, split="val", lengths=(9,), shards=(1,))
    write_rlds(tmp_path, split="train")
    with pytest.raises(DataError, match="has splits train, val; name one of them in `split`"):
        robots(tmp_path, fps=FPS)
    assert [len(robots(tmp_path, fps=FPS, split=s).episodes) for s in ("train", "val")] == [2, 1]
    with pytest.raises(DataError, match="has splits train, val"):
        robots(tmp_path, fps=FPS, split="test")


def test_the_version_of_a_set_is_found_below_its_name(tmp_path: Path) -> None:
    write_rlds(tmp_path / "bridge/1.0.0")
    assert len(robots(tmp_path / "bridge", fps=FPS).episodes) == 2
    write_rlds(tmp_path / "bridge/2.0.0")
    with pytest.raises(DataError, match=r"RLDS sets in 1\.0\.0, 2\.0\.0; name one"):
        robots(tmp_path / "bridge", fps=FPS)


@pytest.mark.parametrize("remote", [False, True])
def test_videos_in_shards(bucket: str, tmp_path: Path, remote: bool) -> None:
    root: Path | str = write_tars(tmp_path / "shards")
    if remote:
        storage.upload(root, f"{bucket}/shards")
        root = f"{bucket}/shards"
    found = set_at(Source(uri=str(root)))
    assert [(c.name, c.caption) for c in found.clips] == [
        ("000000.tar/0000.mp4", "clip 0"),
        ("000000.tar/0001.mp4", "clip 1"),
        ("000001.tar/0002.mp4", "clip 2"),
    ]
    manifest = build_manifest([Source(uri=str(root))], embodiments={}, window=WINDOW, clip=CLIP)
    spec = SampleSpec(
        Canvas(layout="single", width=32, height=32), WINDOW, CLIP, {}, {}, 4, False, 0
    )
    shown = [
        (s["sample_id"].split("/")[2], [frame_number(f) for f in s["frames"]])
        for s in samples_of(manifest, spec)
    ]
    # Video k starts at level k; 5 frames at 5 Hz of videos at 10 Hz.
    starts = ((0, 0), (0, 10), (0, 20), (1, 0), (1, 10), (2, 0))
    assert shown == [
        (f"000{k}.mp4", [k + first + i for i in (0, 2, 4, 6, 8)]) for k, first in starts
    ]
    one = set_at(Source(uri=f"{root}/000001.tar"))
    assert [c.caption for c in one.clips] == ["clip 2"]


def test_members_are_told_apart_by_folder(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", range(12))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for folder in ("left", "right"):
            tar.add(tmp_path / "v.mp4", f"{folder}/1.mp4")
            about = tarfile.TarInfo(f"{folder}/1.txt")
            about.size = len(folder)
            tar.addfile(about, io.BytesIO(folder.encode()))
    (tmp_path / "v.mp4").unlink()
    assert [(c.name, c.caption) for c in set_at(Source(uri=str(tmp_path))).clips] == [
        ("a.tar/left/1.mp4", "left"),
        ("a.tar/right/1.mp4", "right"),
    ]


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["nothing"] = 1
    with pytest.raises(
        DataError, match=r"none of 1 HDF5 files can be used \(first: a.h5 holds no episode"
    ):
        robots(tmp_path, fps=FPS)


def test_pictures_of_an_episode_are_read_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of many megabytes costs what is wanted of it."""
    write_rlds(tmp_path, lengths=(12,), shards=(1,))
    data = robots(tmp_path, fps=FPS)
    episode = data.episodes[0]
    span = episode.videos[WRIST]
    uri = str(tmp_path / episode.data_file)
    taken: list[int] = []
    real = storage.open_read

    def counted(*args: Any) -> Any:
        handle = real(*args)
        read = handle.read
        monkeypatch.setattr(handle, "read", lambda n: (taken.append(n), read(n))[1], raising=False)
        return handle

    monkeypatch.setattr(storage, "open_read", counted)
    part = FilePart(uri, span.offset, span.bytes)
    with rlds.open_pictures(part, span.key, FileReader()) as (many, get):
        shown = frame_number(np.asarray(Image.open(io.BytesIO(get(7)))))
    assert (many, shown) == (12, number(WRIST, 0, 7))
    assert sum(taken) < 12 * 20 + len(encoded(WRIST, 0, 7)) + 1
    assert sum(taken) < (episode.bytes or 0) / 4
