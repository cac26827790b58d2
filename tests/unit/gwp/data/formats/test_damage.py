"""What is damaged in sets of HDF5, RLDS and tar files is named, and the rest is used."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from gwp import storage
from gwp.data.decode import decode_samples
from gwp.data.formats.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from tests.support.other_sets import (
    encoded,
    record,
    write_aloha,
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
