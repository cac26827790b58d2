"""Small sets of the formats beside LeRobot videos, with the pictures and vectors of
`tests.support.sets`.
"""

import io
import json
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gwp.data.formats.rlds.tfrecord import masked_crc
from tests.support.sets import (
    ACTION_NAMES,
    FPS,
    STATE_NAMES,
    TOP,
    WRIST,
    columns,
    episode_values,
    level,
    number,
    write_video,
)

TASK = "Push the button"
LENGTHS = (12, 9)
SIZE = (64, 48)


def picture(camera: str, episode: int, row: int) -> np.ndarray:
    return np.full((SIZE[1], SIZE[0], 3), min(255, level(number(camera, episode, row))), np.uint8)


def encoded(camera: str, episode: int, row: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(camera, episode, row)).save(out, kind)
    return out.getvalue()


def write_aloha(
    root: Path,
    lengths: Sequence[int] = LENGTHS,
    cameras: Sequence[str] = (TOP, WRIST),
    compress: bool = False,
    lost: int = 0,
) -> Path:
    """One file per episode, as ACT records. `lost`: pictures of the wrist that the last episode
    lacks.
    """
    root.mkdir(parents=True)
    for episode, n in enumerate(lengths):
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            file.attrs.update({"sim": False, "compress": compress})
            state, action = episode_values(episode, n)
            file["observations/qpos"], file["action"] = state, action
            file["observations/qvel"] = np.zeros_like(state)
            for camera in cameras:
                shown = range(n - (lost if episode == len(lengths) - 1 and camera == WRIST else 0))
                name = f"observations/images/{camera}"
                if compress:
                    raw = [encoded(camera, episode, k, "JPEG") for k in shown]
                    width = max(len(r) for r in raw) + 5
                    file[name] = np.stack(
                        [np.frombuffer(r.ljust(width, b"\0"), np.uint8) for r in raw]
                    )
                else:
                    file.create_dataset(
                        name,
                        data=np.stack([picture(camera, episode, k) for k in shown]),
                        chunks=(1, SIZE[1], SIZE[0], 3),
                    )
    return root


def write_libero(path: Path, lengths: Sequence[int] = LENGTHS) -> Path:
    """All episodes in one file, as robomimic and LIBERO have them; the state lies in two
    columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        group.attrs["env_args"] = json.dumps(
            {"env_name": "Tester", "env_kwargs": {"control_freq": FPS}}
        )
        group.attrs["problem_info"] = json.dumps({"language_instruction": TASK})
        for episode, n in enumerate(lengths):
            state, action = episode_values(episode, n)
            demo = group.create_group(f"demo_{episode}")
            demo["actions"], demo["dones"] = action, np.zeros(n)
            demo["obs/ee_states"], demo["obs/gripper_states"] = state[:, :2], state[:, 2]
            for camera in (TOP, WRIST):
                demo[f"obs/{camera}"] = demo[f"next_obs/{camera}"] = np.stack(
                    [picture(camera, episode, k) for k in range(n)]
                )
    return path


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    value, out = value & (1 << 64) - 1, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def example(values: dict[str, Any], packed: bool = True) -> bytes:
    """tf.train.Example of arrays and lists of bytes."""
    entries = b""
    for name, given in values.items():
        if isinstance(given, list):
            feature = _message(1, b"".join(_message(1, v) for v in given))
        elif given.dtype.kind == "f":
            flat = given.astype("<f4").ravel()
            feature = _message(
                2,
                _message(1, flat.tobytes())
                if packed
                else b"".join(b"\x0d" + v.tobytes() for v in flat),
            )
        else:
            flat = [_varint(int(v)) for v in given.ravel()]
            feature = _message(
                3, _message(1, b"".join(flat)) if packed else b"".join(b"\x08" + v for v in flat)
            )
        entries += _message(1, _message(1, name.encode()) + _message(2, feature))
    return _message(1, entries)


def record(payload: bytes) -> bytes:
    head = struct.pack("<Q", len(payload))
    return (
        head
        + struct.pack("<I", masked_crc(head))
        + payload
        + struct.pack("<I", masked_crc(payload))
    )


def _tensor(width: int | None, kind: str = "float32") -> dict[str, Any]:
    return {
        "tensor": {
            "shape": {"dimensions": [str(width)]} if width else {},
            "dtype": kind,
            "encoding": "none",
        }
    }


def write_rlds(
    root: Path,
    lengths: Sequence[int] = LENGTHS,
    packed: bool = True,
    shards: Sequence[int] = (1, 1),
    split: str = "train",
    lost: int = 0,
    more: Callable[[int, int], dict[str, Any]] = lambda episode, rows: {},
) -> Path:
    """`shards`: episodes in each file. `lost`: pictures of the wrist that the last episode
    lacks. `more`: other features of an episode of so many rows, lists of texts or numbers.
    """
    root.mkdir(parents=True, exist_ok=True)
    picture_of = {
        "image": {
            "shape": {"dimensions": [str(SIZE[1]), str(SIZE[0]), "3"]},
            "dtype": "uint8",
            "encodingFormat": "png",
        }
    }
    observation: dict[str, Any] = {TOP: picture_of, WRIST: picture_of, "state": _tensor(3)}
    steps: dict[str, Any] = {
        "action": _tensor(2),
        "is_first": _tensor(None, "bool"),
        "language_instruction": {"text": {}},
        "reward": _tensor(None),
        "observation": {"featuresDict": {"features": observation}},
    }
    about: dict[str, Any] = {
        "steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}, "length": "-1"}}
    }
    for name, given in more(0, 1).items():
        *folders, last = name.removeprefix("steps/").split("/")
        kind = {"text": {}} if isinstance(given, list) else _tensor(None)
        if name.startswith("steps/"):
            (observation if folders else steps)[last] = kind
        else:
            inner = about.setdefault("episode_metadata", {"featuresDict": {"features": {}}})
            inner["featuresDict"]["features"][last] = kind
    (root / "features.json").write_text(json.dumps({"featuresDict": {"features": about}}))
    info = {
        "name": "tester",
        "version": "1.0.0",
        "splits": [{"name": split, "shardLengths": [str(n) for n in shards]}],
    }
    (root / "dataset_info.json").write_text(json.dumps(info))
    made = []
    for episode, n in enumerate(lengths):
        state, action = episode_values(episode, n)
        shown = n - (lost if episode == len(lengths) - 1 else 0)
        made.append(
            record(
                example(
                    {
                        "steps/observation/state": state,
                        f"steps/observation/{TOP}": [encoded(TOP, episode, k) for k in range(n)],
                        "steps/action": action,
                        "steps/is_first": np.arange(n) == 0,
                        "steps/language_instruction": [TASK.encode()] * n,
                        f"steps/observation/{WRIST}": [
                            encoded(WRIST, episode, k) for k in range(shown)
                        ],
                        "steps/reward": -np.arange(n),
                        **more(episode, n),
                    },
                    packed,
                )
            )
        )
    for i, n in enumerate(shards):
        first = sum(shards[:i])
        (root / f"tester-{split}.tfrecord-{i:05d}-of-{len(shards):05d}").write_bytes(
            b"".join(made[first : first + n])
        )
    return root


def write_tars(
    root: Path, lengths: Sequence[int] = (30, 24, 18), shards: Sequence[int] = (2, 1)
) -> Path:
    """Videos whose frames show 0, 1, ...; the first of a shard has its caption in JSON, the
    others in a text file.
    """
    root.mkdir(parents=True)
    clip = 0
    for i, n in enumerate(shards):
        with tarfile.open(root / f"{i:06d}.tar", "w") as tar:
            for k in range(n):
                raw = write_video(
                    root / "scratch.mp4", range(clip, clip + lengths[clip])
                ).read_bytes()
                text = json.dumps({"caption": f"clip {clip}"}) if k == 0 else f"clip {clip}\n"
                for name, data in (
                    (f"{clip:04d}.mp4", raw),
                    (f"{clip:04d}.{'json' if k == 0 else 'txt'}", text.encode()),
                ):
                    about = tarfile.TarInfo(name)
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
                clip += 1
    (root / "scratch.mp4").unlink()
    return root


def write_stills(root: Path, version: str, lengths: Sequence[int] = LENGTHS) -> Path:
    """A LeRobot set whose pictures lie in its Parquet files."""
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": [STATE_NAMES]},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ACTION_NAMES}},
    }
    features |= {
        c: {
            "dtype": "image",
            "shape": [SIZE[1], SIZE[0], 3],
            "names": ["height", "width", "channels"],
        }
        for c in (TOP, WRIST)
    }
    new = version == "v3.0"
    files = (
        "chunk-{chunk_index:03d}/file-{file_index:03d}"
        if new
        else "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
    )
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    about = {
        "codebase_version": version,
        "fps": FPS,
        "features": features,
        "data_path": f"data/{files}.parquet",
        "video_path": None,
    }
    (root / "meta/info.json").write_text(json.dumps(about))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    tables = []
    for episode, n in enumerate(lengths):
        shown = {
            c: pa.array(
                [{"bytes": encoded(c, episode, k), "path": f"{k}.png"} for k in range(n)], kind
            )
            for c in (TOP, WRIST)
        }
        tables.append(pa.table(columns(episode, n) | shown))
    if new:
        pq.write_table(
            pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet", row_group_size=7
        )
        place = {"tasks": [TASK], "data/chunk_index": 0, "data/file_index": 0}
        rows = [place | {"episode_index": i, "length": n} for i, n in enumerate(lengths)]
        pq.write_table(
            pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet"
        )
        pq.write_table(pa.table({"task_index": [0], "task": [TASK]}), root / "meta/tasks.parquet")
        return root
    for i, table in enumerate(tables):
        pq.write_table(table, root / f"data/chunk-000/episode_{i:06d}.parquet")
    (root / "meta/episodes.jsonl").write_text(
        "".join(
            json.dumps({"episode_index": i, "tasks": [TASK], "length": n}) + "\n"
            for i, n in enumerate(lengths)
        )
    )
    return root
