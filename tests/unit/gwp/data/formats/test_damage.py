"""What is damaged in sets of HDF5, RLDS and tar files is named, and the rest is used."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from gwp import storage
from gwp.data.decode import decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.rlds.tfrecord import records
from gwp.data.formats.vectors import episode_vectors
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from pipelines.datasets.inspect import describe
from tests.support.other_sets import (
    encoded,
    record,
    write_aloha,
    write_libero,
    write_rlds,
    write_tars,
)
from tests.support.sets import (
    FPS,
    TOP,
    WRIST,
    episode_values,
)
from tests.unit.gwp.data.formats.test_formats import CLIP, WINDOW, prepare, robots, skipped


@pytest.mark.parametrize("name", ["aloha", "rlds"])
def test_pictures_that_are_fewer_than_rows_are_reported(tmp_path: Path, name: str) -> None:
    (write_aloha if name == "aloha" else write_rlds)(tmp_path / "set", lost=2)
    assert skipped(tmp_path / "set", fps=FPS) == {
        "episode 1": f"{WRIST} has 7 pictures, the episode has 9 rows"
    }


def test_rows_that_do_not_agree_are_reported(tmp_path: Path) -> None:
    write_aloha(tmp_path / "set", lengths=(12, 9, 9, 9))
    for i, name, value in (
        (1, "observations/qpos", np.zeros((8, 3))),
        (2, "action", np.zeros((9, 5))),
        (3, "action", None),
    ):
        with h5py.File(tmp_path / f"set/episode_{i}.hdf5", "a") as file:
            del file[name]
            if value is not None:
                file[name] = value
    assert skipped(tmp_path / "set", fps=FPS) == {
        "episode 1": "observations/qpos has 8 rows, action has 9",
        "episode 2": "action is 5 wide, that of the set 2",
        "episode 3": "episode_3.hdf5 has no column action",
    }
    # Without labels the pictures are as good as ever.
    video_only = Source(uri=str(tmp_path / "set"), fps=FPS)
    manifest = build_manifest([video_only], embodiments={}, window=WINDOW, clip=CLIP)
    assert not manifest.skipped
    assert {
        r["sample_id"].split("/")[1] for r in manifest.rows(range(manifest.table.num_rows))
    } == {f"{i:06d}" for i in range(4)}


def test_a_camera_that_an_episode_lacks_is_reported(tmp_path: Path) -> None:
    write_aloha(tmp_path / "set")
    with h5py.File(tmp_path / "set/episode_1.hdf5", "a") as file:
        del file[f"observations/images/{WRIST}"]
    assert skipped(tmp_path / "set", fps=FPS) == {"episode 1": f"has no pictures of {WRIST}"}


@pytest.mark.parametrize("remote", [False, True])
def test_torn_files_are_reported(bucket: str, tmp_path: Path, remote: bool) -> None:
    write_aloha(tmp_path / "torn/aloha")
    write_rlds(tmp_path / "torn/rlds", lengths=(12, 9, 9), shards=(1, 2))
    write_tars(tmp_path / "torn/tars")
    for name in (
        "aloha/episode_1.hdf5",
        "rlds/tester-train.tfrecord-00001-of-00002",
        "tars/000000.tar",
    ):
        file = tmp_path / "torn" / name
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
    if remote:
        storage.upload(tmp_path / "torn", f"{bucket}/torn")
    root = f"{bucket}/torn" if remote else str(tmp_path / "torn")
    (reason,) = skipped(f"{root}/aloha", fps=FPS).items()
    assert reason[0] == "episode 1"
    assert "episode_1.hdf5 cannot be read as HDF5" in reason[1]
    assert skipped(f"{root}/rlds", fps=FPS) == {
        "episode 2": "tester-train.tfrecord-00001-of-00002 record 1 is cut off; the file is truncated"
    }
    manifest = build_manifest(
        [Source(uri=f"{root}/tars")], embodiments={}, window=WINDOW, clip=CLIP
    )
    ((item, why),) = ((s["item"], s["reason"]) for s in manifest.skipped)
    assert item == "000000.tar"
    assert "truncated" in why


def test_a_shard_that_is_missing_keeps_its_place(tmp_path: Path) -> None:
    write_rlds(tmp_path, lengths=(12, 9, 9, 12), shards=(1, 2, 1))
    (tmp_path / "tester-train.tfrecord-00001-of-00003").unlink()
    data = robots(tmp_path, fps=FPS)
    assert [(e.index, bool(e.problem)) for e in data.episodes] == [
        (0, False),
        (1, True),
        (3, False),
    ]
    assert "00001-of-00003 is missing (2 episodes)" in data.episodes[1].problem


def test_a_damaged_header_is_no_record(tmp_path: Path) -> None:
    write_rlds(tmp_path)
    file = tmp_path / "tester-train.tfrecord-00000-of-00002"
    raw = bytearray(file.read_bytes())
    raw[1] ^= 1
    file.write_bytes(raw)
    assert "wrong checksum" in skipped(tmp_path, fps=FPS)["episode 0"]


@pytest.mark.parametrize("remote", [False, True])
def test_damage_within_a_record_is_told_and_the_next_is_read(
    bucket: str, tmp_path: Path, remote: bool
) -> None:
    """Wherever the damage is. Nothing else would see a changed number."""
    write_rlds(tmp_path / "set", lengths=(12, 9, 7), shards=(2, 1))
    file = tmp_path / "set/tester-train.tfrecord-00000-of-00002"
    raw = file.read_bytes()
    calm = robots(tmp_path / "set", fps=FPS)
    actions = episode_values(0, 12)[1].astype("<f4").tobytes()
    parts = {"picture": encoded(TOP, 0, 5), "numbers": actions, "names": b"steps/reward"}
    for place, part in parts.items():
        at = raw.index(part) + len(part) // 2
        file.write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
        root = f"{bucket}/record-{place}" if remote else str(tmp_path / "set")
        if remote:
            storage.upload(tmp_path / "set", root)
        reason = "tester-train.tfrecord-00000-of-00002 record 0 has a wrong checksum; it is damaged"
        assert skipped(root, fps=FPS) == {"episode 0": reason}
        assert robots(root, fps=FPS).episodes[1:] == calm.episodes[1:]


def test_a_damaged_picture_fails_its_rows_only(tmp_path: Path) -> None:
    write_rlds(tmp_path, lengths=(12,), shards=(1,))
    file = tmp_path / "tester-train.tfrecord-00000-of-00001"
    raw, broken = file.read_bytes(), encoded(TOP, 0, 5)
    assert raw.count(broken) == 1
    # Written so: the checksum is that of the damaged picture.
    file.write_bytes(record(raw.replace(broken, broken[:20] + bytes(len(broken) - 20))[12:-4]))
    manifest, spec, _ = prepare(tmp_path, fps=FPS)
    samples, failures = decode_samples(
        manifest.rows(range(manifest.table.num_rows)), spec, FileReader()
    )
    assert [int(name.rsplit("/")[-1]) for name, _ in failures] == [1, 2, 3, 4, 5]
    assert all("picture 5 of" in reason and "damaged" in reason for _, reason in failures)
    assert len(samples) == 7


def damage_header(path: Path, name: str) -> None:
    """Write over the place in an HDF5 file where a group or its data begin."""
    with h5py.File(path) as file:
        at = h5py.h5o.get_info(file[name].id).addr
    raw = bytearray(path.read_bytes())
    raw[at : at + 16] = b"\xff" * 16
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["data/demo_1", f"data/demo_1/obs/{TOP}", "data/demo_1/actions"])
def test_a_damaged_group_costs_its_own_demonstration(tmp_path: Path, name: str) -> None:
    path = write_libero(tmp_path / "a.hdf5", lengths=(12, 9, 7))
    calm = robots(path)
    damage_header(path, name)
    (told,) = skipped(path).items()
    assert told[0] == "episode 1"
    assert told[1].startswith("a.hdf5 data/demo_1 cannot be read as HDF5")
    data = robots(path)
    assert [e for e in data.episodes if e.index != 1] == [e for e in calm.episodes if e.index != 1]
    for episode in data.episodes[::2]:
        state, action = episode_vectors(data, episode, 0, FileReader())
        wanted = episode_values(episode.index, episode.length)
        np.testing.assert_array_equal(state, wanted[0])
        np.testing.assert_array_equal(action, wanted[1])


def test_damaged_splits_of_hdf5_are_told(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array(["demo_0"], "S16")
    damage_header(path, "mask/train")
    facts = describe(Source(uri=str(path)))
    assert facts["usable"] == 2
    assert any(f["what"].startswith("splits: cannot be read as HDF5") for f in facts["findings"])


def test_a_record_that_is_none_costs_itself(tmp_path: Path) -> None:
    write_rlds(tmp_path, lengths=(12, 9, 7), shards=(3,))
    file = tmp_path / "tester-train.tfrecord-00000-of-00001"
    raw = file.read_bytes()
    payloads = [raw[r.start : r.start + r.size] for r in records(io.BytesIO(raw), len(raw))]
    file.write_bytes(b"".join(map(record, [payloads[0], b"\xff" * 20, payloads[2]])))
    assert skipped(tmp_path, fps=FPS) == {
        "episode 1": f"{file.name} record 1 holds no tf.train.Example"
    }
