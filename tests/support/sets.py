"""Small data sets that tests make for themselves. A frame is one even grey, so its number can
be read from its picture.
"""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.robot.embodiment import Embodiment, Slot
from tests.support import paths

SHARED = paths.SHARED / "data"
FPS = 10
TOP, WRIST = "observation.images.top", "observation.images.wrist"
STATE_NAMES, ACTION_NAMES = ["x", "y", "grip"], ["dx", "grip"]
ARM = Embodiment(
    name="tester",
    fps=FPS,
    state_names=tuple(STATE_NAMES),
    action_names=tuple(ACTION_NAMES),
    cameras={"front": TOP},
    chunk=8,
    replan=4,
)
"""The robot that recorded them."""


def level(number: int) -> int:
    """Grey level of frame `number` (0 to 82)."""
    return 8 + 3 * number


def frame_number(picture: np.ndarray) -> int:
    """The inverse of `level`, from any part of a decoded frame."""
    return round((float(picture.mean()) - 8) / 3)


def write_video(
    path: Path,
    numbers: Sequence[int],
    fps: float = FPS,
    size: tuple[int, int] = (64, 48),
    gop: int = 250,
    **options: str,
) -> Path:
    """H.264 video whose k-th frame has the grey of `numbers[k]`. `size`: width, height."""
    return write_pictures(
        path,
        [np.full((size[1], size[0], 3), level(n), np.uint8) for n in numbers],
        fps,
        gop,
        **options,
    )


def write_pictures(
    path: Path, pictures: Sequence[np.ndarray], fps: float = FPS, gop: int = 250, **options: str
) -> Path:
    """H.264 video of uint8 `[H, W, 3]` pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=Fraction(fps).limit_denominator(1001),
            options={"crf": "4", "g": str(gop), **options},
        )
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def episode_values(episode: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """State `[rows, 3]` and action `[rows, 2]`, all different."""
    k = np.arange(rows, dtype=np.float64)
    state = np.stack([episode + k / 100, 10 * episode - k / 50, np.sin(k / 3)], 1)
    return state, np.stack([state[:, 0] + 0.5 + k**2 / 1000, np.cos(k / 2 + episode)], 1)


def info(version: str, cameras: Sequence[str], **changes: Any) -> dict[str, Any]:
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": [STATE_NAMES]},
        "action": {"dtype": "float32", "shape": [2], "names": {"motors": ACTION_NAMES}},
    }
    features |= {
        c: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
        for c in cameras
    }
    place = (
        "chunk-{chunk_index:03d}/file-{file_index:03d}"
        if version == "v3.0"
        else "episode_{episode_index:06d}"
    )
    old = "" if version == "v3.0" else "chunk-{episode_chunk:03d}/"
    return {
        "codebase_version": version,
        "robot_type": "tester",
        "fps": FPS,
        "chunks_size": 1000,
        "features": features,
        "data_path": f"data/{old}{place}.parquet",
        "video_path": f"videos/{old}{{video_key}}/{place}.mp4",
    } | changes


def columns(
    episode: int, rows: int, first: int = 0, fixed: bool = False, wide: bool = False
) -> dict[str, pa.Array]:
    """Parquet columns of an episode. `fixed`: fixed-size lists; `wide`: float64."""
    kind = pa.float64() if wide else pa.float32()
    vectors = zip(("observation.state", "action"), episode_values(episode, rows), strict=True)
    out = {
        name: pa.array(v.tolist(), pa.list_(kind, v.shape[1]) if fixed else pa.list_(kind))
        for name, v in vectors
    }
    return out | {
        "episode_index": pa.array([episode] * rows),
        "frame_index": pa.array(range(rows)),
        "index": pa.array(range(first, first + rows)),
        # Recorded clocks need not start at 0; nothing may depend on them.
        "timestamp": pa.array([(k + 1) / FPS for k in range(rows)], pa.float32()),
        "task_index": pa.array([0] * rows),
    }


def _jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def write_v21(
    root: Path,
    lengths: Sequence[int] = (12, 9),
    cameras: Sequence[str] = (TOP,),
    fixed: bool = True,
    wide: bool = False,
    tasks: Sequence[str] = ("success", "Push the &amp;amp; button"),
    **changes: Any,
) -> Path:
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info("v2.1", cameras, **changes)))
    _jsonl(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)])
    _jsonl(
        root / "meta/episodes.jsonl",
        [{"episode_index": i, "tasks": list(tasks), "length": n} for i, n in enumerate(lengths)],
    )
    for i, n in enumerate(lengths):
        pq.write_table(
            pa.table(columns(i, n, fixed=fixed, wide=wide)),
            root / f"data/chunk-000/episode_{i:06d}.parquet",
        )
        for c in cameras:
            write_video(
                root / f"videos/chunk-000/{c}/episode_{i:06d}.mp4",
                [number(c, i, k) for k in range(n)],
                gop=4,
            )
    return root


def number(camera: str, episode: int, row: int) -> int:
    """What `level` shows in a frame of a set: cameras, episodes and rows differ, in sets of two
    episodes.
    """
    return (40 if camera == WRIST else 0) + 15 * episode + row


def write_v30(
    root: Path,
    lengths: Sequence[int] = (12, 9),
    cameras: Sequence[str] = (TOP,),
    pandas_tasks: bool = False,
    tasks: Sequence[str] = ("success", "Push the &amp;amp; button"),
    **changes: Any,
) -> Path:
    """All episodes in one data file and one file of the first camera; every further camera has
    a file per episode.
    """
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info("v3.0", cameras, **changes)))
    text = "__index_level_0__" if pandas_tasks else "task"
    pq.write_table(
        pa.table({"task_index": list(range(len(tasks))), text: list(tasks)}),
        root / "meta/tasks.parquet",
    )
    starts = np.cumsum([0, *lengths]).tolist()
    tables = [pa.table(columns(i, n, starts[i])) for i, n in enumerate(lengths)]
    pq.write_table(
        pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet", row_group_size=7
    )
    rows = []
    for i, n in enumerate(lengths):
        row: dict[str, Any] = {
            "episode_index": i,
            "tasks": list(tasks),
            "length": n,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": starts[i],
            "dataset_to_index": starts[i + 1],
            "stats/action/min": [0.0],
        }
        for j, c in enumerate(cameras):
            start = starts[i] / FPS if j == 0 else 0.0
            row |= {
                f"videos/{c}/chunk_index": 0,
                f"videos/{c}/file_index": 0 if j == 0 else i,
                f"videos/{c}/from_timestamp": start,
                f"videos/{c}/to_timestamp": start + n / FPS,
            }
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    for j, c in enumerate(cameras):
        pictures = [[number(c, i, k) for k in range(n)] for i, n in enumerate(lengths)]
        for f, shown in enumerate(
            [[p for episode in pictures for p in episode]] if j == 0 else pictures
        ):
            write_video(root / f"videos/{c}/chunk-000/file-{f:03d}.mp4", shown, gop=4)
    return root


def infer_embodiment(
    uri: str,
    name: str,
    chunk: int,
    replan: int,
    cameras: dict[Slot, str] | None = None,
    delta_mask: tuple[bool, ...] | None = None,
    id: int = 0,  # noqa: A002
) -> Embodiment:
    """`embodiment_of` a LeRobot set."""
    return embodiment_of(read_set(uri), name, chunk, replan, cameras, delta_mask, id)
