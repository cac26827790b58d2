"""HDF5 files of many forms: which of their groups are episodes, which rows belong together, and
what a source may choose of them.
"""

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import usable_episodes
from gwp.data.formats.format import FilePart
from gwp.data.formats.hdf5 import format as hdf5
from gwp.data.formats.pictures import as_rgb
from gwp.data.formats.robot_set import vector_names
from gwp.data.formats.vectors import episode_vectors
from gwp.data.source import Source
from gwp.errors import DataError
from pipelines.datasets.inspect import describe, exit_code
from tests.support.other_sets import LENGTHS, picture, write_aloha, write_libero
from tests.support.sets import FPS, TOP, WRIST, episode_values, frame_number, number
from tests.unit.gwp.data.formats.test_formats import prepare, robots, samples_of, skipped


def write_demos(path: Path, where: str = "traj_{}", more: int = 0, lengths: Any = LENGTHS) -> Path:
    """Episodes as groups of one file; `more` observations than actions, as ManiSkill has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for episode, n in enumerate(lengths):
            state, action = episode_values(episode, n + more)
            demo = file.create_group(where.format(episode))
            demo["actions"], demo["obs/agent/qpos"] = action[:n], state
            demo["success"] = np.arange(n) >= n - (episode != 1)
            for camera in (TOP, WRIST):
                shown = [picture(camera, episode, k) for k in range(n + more)]
                demo[f"obs/sensor_data/{camera}"] = np.stack(shown)
    return path


def said(path: Path, **fields: Any) -> list[str]:
    return [f"{f.item}: {f.what}" for f in robots(path, fps=FPS, **fields).remarks]


@pytest.mark.parametrize(
    "where",
    ["traj_{}", "demo_{}", "Episode-{}", "episode{}", "{}", "data/demo_{}", "episodes/{}"],
)
@pytest.mark.parametrize("more", [0, 1])
def test_each_group_is_an_episode(tmp_path: Path, where: str, more: int) -> None:
    path = write_demos(tmp_path / "a.h5", where, more)
    data = robots(path, fps=FPS)
    assert [(e.index, e.length, e.problem, e.label_problem) for e in data.episodes] == [
        (0, 12, "", ""),
        (1, 9, "", ""),
    ]
    for episode in data.episodes:
        found = episode_vectors(data, episode, 0, FileReader())
        for given, written in zip(
            found, episode_values(episode.index, episode.length), strict=True
        ):
            np.testing.assert_array_equal(given, written)
    manifest, spec, _ = prepare(path, fps=FPS)
    samples = samples_of(manifest, spec)
    assert len(samples) == sum(LENGTHS)
    for sample in samples:
        episode, k = (int(part) for part in sample["sample_id"].split("/")[1:])
        seen = [number(TOP, episode, min(k + i, LENGTHS[episode] - 1)) for i in range(5)]
        assert [frame_number(frame[:, :32]) for frame in sample["frames"]] == seen


def test_episodes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    lengths = [5 + i for i in range(11)]
    data = robots(write_demos(tmp_path / "a.h5", lengths=lengths), fps=FPS)
    assert [e.length for e in data.episodes] == lengths


def test_numbers_of_more_sides_are_laid_out_in_order(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.h5")
    actions = [episode_values(i, n)[1] for i, n in enumerate(LENGTHS)]
    two = [np.stack([values, -values], 1) for values in actions]
    with h5py.File(path, "a") as file:
        for episode, values in enumerate(two):
            demo = file[f"traj_{episode}"]
            del demo["actions"]
            demo["actions"] = values
            demo["obs/deep"] = values[..., None, None] * np.ones((3, 2))
            demo["obs/cloud"] = np.zeros((len(values), 300, 300))
    data = robots(path, fps=FPS)
    assert data.action_names == tuple(f"actions_{i}" for i in range(4))
    assert "obs/cloud" not in data.columns
    deep = robots(path, fps=FPS, state=("obs/deep",))
    for episode, values in zip(deep.episodes, two, strict=True):
        state, action = episode_vectors(deep, episode, 0, FileReader())
        np.testing.assert_array_equal(action, values.reshape(-1, 4))
        np.testing.assert_array_equal(state, np.repeat(values.reshape(-1, 4), 6, 1))


@pytest.mark.parametrize("form", ["HWC", "CHW", "RGBA"])
def test_pictures_of_every_order_are_pictures(tmp_path: Path, form: str) -> None:
    path = write_demos(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        for episode in range(len(LENGTHS)):
            place = f"traj_{episode}/obs/sensor_data/{TOP}"
            shown = file[place][()]
            del file[place]
            alpha = np.concatenate([shown, shown[..., :1]], -1)
            file[place] = {"HWC": shown, "CHW": shown.transpose(0, 3, 1, 2), "RGBA": alpha}[form]
    manifest, spec, _ = prepare(path, fps=FPS)
    for sample in samples_of(manifest, spec):
        episode, k = (int(part) for part in sample["sample_id"].split("/")[1:])
        assert frame_number(sample["frames"][0][:, :32]) == number(TOP, episode, k)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("held", ["text", "bytes"])
def test_encoded_pictures_of_every_kind_are_pictures(tmp_path: Path, kind: str, held: str) -> None:
    path = write_demos(tmp_path / "a.h5")
    shown = np.zeros((8, 6, 3), np.uint8)
    # The last bytes of a BMP are its upper row, here of zeros.
    shown[1:] = (10, 100, 200)
    written = io.BytesIO()
    Image.fromarray(shown).save(written, kind, lossless=True)
    raw = written.getvalue()
    with h5py.File(path, "a") as file:
        for demo in file.values():
            n = len(demo["actions"])
            rows = np.array([raw] * n, f"S{len(raw)}")
            bytes_ = np.tile(np.frombuffer(raw, np.uint8), (n, 1))
            demo["obs/encoded"] = rows if held == "text" else bytes_
    data = robots(path, fps=FPS)
    span = data.episodes[0].videos["encoded"]
    with hdf5.open_pictures(FilePart(str(path)), span.key, FileReader()) as (count, get):
        assert count == data.episodes[0].length
        np.testing.assert_array_equal(as_rgb(get(0), "a picture"), shown)


def test_the_observation_behind_the_last_action_is_told(tmp_path: Path) -> None:
    facts = describe(Source(uri=str(write_demos(tmp_path / "a.h5", more=1)), fps=FPS))
    told = {f["what"]: f["consequence"] for f in facts["findings"]}
    assert told["one observation more than actions in 2 of 2 episodes"] == "repaired"
    assert (exit_code(facts), facts["frames"]) == (0, sum(LENGTHS))


@pytest.mark.parametrize("shorter", ["obs/agent/qpos", f"obs/sensor_data/{TOP}"])
def test_observations_of_several_lengths_are_not_guessed(tmp_path: Path, shorter: str) -> None:
    path = write_demos(tmp_path / "a.h5", more=1, lengths=(12, 9, 9))
    with h5py.File(path, "a") as file:
        values = file[f"traj_1/{shorter}"][:-1]
        del file[f"traj_1/{shorter}"]
        file[f"traj_1/{shorter}"] = values
    assert set(skipped(path, fps=FPS)) == {"episode 1"}


def test_parts_with_numbers_do_not_make_several_of_one_episode(tmp_path: Path) -> None:
    write_aloha(tmp_path / "set", lengths=(5,))
    with h5py.File(tmp_path / "set/episode_0.hdf5", "a") as file:
        file["0/intrinsics"] = np.zeros((3, 3))
        file["demo_1/notes"] = np.zeros(3)
    assert [e.length for e in robots(tmp_path / "set", fps=FPS).episodes] == [5]


@pytest.mark.parametrize("place", ["action", "data/action"])
def test_two_forms_in_one_file_are_refused(tmp_path: Path, place: str) -> None:
    where = "data/demo_{}" if place.startswith("data") else "demo_{}"
    path = write_demos(tmp_path / "a.h5", where)
    with h5py.File(path, "a") as file:
        file[place] = np.zeros((9, 2))
    with pytest.raises(DataError, match="which of them is an episode cannot be told"):
        robots(path, fps=FPS)


def test_one_episode_below_data(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/observations/qpos"], file["data/action"] = np.ones((5, 3)), np.ones((5, 2))
    data = robots(tmp_path, fps=FPS)
    assert [(e.length, e.prefix) for e in data.episodes] == [(5, "data/")]


def test_an_empty_demonstration_keeps_its_number(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.h5", lengths=(12, 9, 7))
    with h5py.File(path, "a") as file:
        del file["traj_1"]
        file.create_group("traj_1")
    assert not skipped(path, fps=FPS)
    assert [e.index for e in robots(path, fps=FPS).episodes] == [0, 2]
    assert said(path) == ["episode 1: a.h5 traj_1 is empty"]


def test_a_group_that_holds_itself_ends(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["traj_0/obs/again"] = file["traj_0"]
        file["traj_0/obs/root"] = h5py.SoftLink("/")
    assert [e.length for e in robots(path, fps=FPS).episodes] == list(LENGTHS)


def test_demonstrations_in_files_beside_are_those_of_the_link(tmp_path: Path) -> None:
    """Their names are those of the link, not those that they have in their own file."""
    write_demos(tmp_path / "set/parts/b.h5", "kept_{}")
    with h5py.File(tmp_path / "set/a.hdf5", "w") as file:
        file["traj_0"] = h5py.ExternalLink("parts/b.h5", "/kept_1")
    data = robots(tmp_path / "set/a.hdf5", fps=FPS)
    state, _ = episode_vectors(data, data.episodes[0], 0, FileReader())
    np.testing.assert_array_equal(state, episode_values(1, LENGTHS[1])[0])


@pytest.mark.parametrize("name", ["observations/qpos", f"observations/images/{TOP}"])
def test_links_are_looked_at_whenever_a_file_is_read(tmp_path: Path, name: str) -> None:
    """A file that was harmless when it was indexed may lead elsewhere when it is read."""
    root = write_aloha(tmp_path / "set", lengths=(5,))
    data = robots(root, fps=FPS)
    write_aloha(tmp_path / "other", lengths=(5,))
    outside = str(tmp_path / "other/episode_0.hdf5")
    with h5py.File(root / "episode_0.hdf5", "a") as file:
        del file[name]
        file[name] = h5py.ExternalLink(outside, f"/{name}")
    part, reader = FilePart(str(root / "episode_0.hdf5")), FileReader()
    if name.endswith("qpos"):
        with pytest.raises(DataError, match="lies in another file"):
            episode_vectors(data, data.episodes[0], 0, reader)
        return
    pictures = hdf5.open_pictures(part, name, reader)
    with pytest.raises(DataError, match="lies in another file"):
        pictures.__enter__()


def mask(path: Path, **splits: list[str]) -> Path:
    with h5py.File(path, "a") as file:
        for name, members in splits.items():
            file[f"mask/{name}"] = np.array(members, "S16")
    return path


def test_splits_choose_and_change_no_number(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "a.hdf5", lengths=(12, 9, 7))
    mask(path, train=["demo_2", "demo_0"], valid=["demo_1"], both=["data/demo_1", "demo_0"])
    chosen = {
        split: [(e.index, e.length) for e in robots(path, split=split).episodes]
        for split in (None, "train", "valid", "both")
    }
    assert chosen == {
        None: [(0, 12), (1, 9), (2, 7)],
        "train": [(0, 12), (2, 7)],
        "valid": [(1, 9)],
        "both": [(0, 12), (1, 9)],
    }
    assert robots(path, split="train").fingerprint == robots(path).fingerprint
    assert len(prepare(path, split="valid")[0]) == 9
    with pytest.raises(DataError, match="no split 'test'; the set has splits both, train, valid"):
        robots(path, split="test")
    told = [f["what"] for f in describe(Source(uri=str(path)))["findings"]]
    assert "splits: both, train, valid" in told


def test_splits_that_cannot_be_honoured(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no splits; remove `split`"):
        robots(write_aloha(tmp_path / "aloha"), fps=FPS, split="train")
    mask(write_libero(tmp_path / "two/a.hdf5"), train=["demo_0"])
    write_libero(tmp_path / "two/b.hdf5")
    with pytest.raises(DataError, match=r"b\.hdf5 does not say which of its episodes"):
        robots(tmp_path / "two", split="train")
    path = mask(write_libero(tmp_path / "one/a.hdf5"), train=["demo_7"])
    with pytest.raises(DataError, match="no episode is in split 'train'"):
        robots(path, split="train")
    told = [f["what"] for f in describe(Source(uri=str(path)))["findings"]]
    assert "split train names demo_7, not in the file" in told


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("left/qpos", "right/qpos"), ("left/qpos_0", "right/qpos_0")),
        (("obs/a/x/q", "obs/b/x/q", "g"), ("a/x/q_0", "b/x/q_0", "g_0")),
        (("qpos", "left/qpos"), ("qpos_0", "left/qpos_0")),
        (("observations/qpos", "observations/qvel"), ("qpos_0", "qvel_0")),
    ],
)
def test_names_of_dimensions_are_told_apart(keys: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert vector_names(keys, dict.fromkeys(keys, 1)) == names


@pytest.mark.parametrize("rate", ["fast", [20], -1, 0, True, float("nan")])
def test_a_rate_that_is_none_is_asked_for(tmp_path: Path, rate: Any) -> None:
    path = write_libero(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        about = {"env_kwargs": {"control_freq": rate}}
        file["data"].attrs["env_args"] = json.dumps(about)
    with pytest.raises(DataError, match="set `fps` on this source"):
        robots(path)


def test_cameras_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["action"] = np.zeros((5, 2))
        for place, level in (("obs/top", 10), ("observations/images/top", 20)):
            file[place] = np.full((5, 8, 8, 3), level, np.uint8)
    (episode,) = robots(tmp_path, fps=FPS).episodes
    assert {camera: span.key for camera, span in episode.videos.items()} == {
        "top": "obs/top",
        "observations/images/top": "observations/images/top",
    }


def test_the_last_value_of_a_longer_column_counts(tmp_path: Path) -> None:
    """Behind the last action, as observations are."""
    path = write_demos(tmp_path / "a.h5", more=1)
    with h5py.File(path, "a") as file:
        for episode, demo in enumerate(file.values()):
            n = len(demo["actions"])
            del demo["success"]
            # The first ends well at the very last value; the second has lost it again there.
            demo["success"] = np.arange(n + 1) == n - episode
    data = robots(path, fps=FPS)
    source = Source(uri=str(path), fps=FPS, only="success")
    good, bad = usable_episodes(data, source, [])
    assert [episode.index for episode, _ in good] == [0]
    assert not bad


@pytest.mark.parametrize("labelled", [True, False])
def test_groups_of_any_numbered_name_are_never_one_episode(tmp_path: Path, labelled: bool) -> None:
    path = write_demos(tmp_path / "a.h5", "run_{}")
    if not labelled:
        with h5py.File(path, "a") as file:
            for demo in file.values():
                del demo["actions"]
    data = robots(path, fps=FPS)
    assert [(e.prefix, e.length) for e in data.episodes] == [("run_0/", 12), ("run_1/", 9)]
    assert len(data.cameras) == 2


def test_numbered_groups_that_differ_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["run_0/position"], file["run_1/speed"] = np.zeros((2, 5, 3))
    with pytest.raises(DataError, match="run_0/ and run_1/ may be episodes or parts of one"):
        robots(path, fps=FPS)


def test_numbered_cameras_are_those_of_one_episode(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for i in range(2):
            file[f"camera_{i}/rgb"] = np.stack([picture(TOP, 0, k) for k in range(5)])
    (episode,) = robots(path, fps=FPS).episodes
    assert set(episode.videos) == {"camera_0/rgb", "camera_1/rgb"}
