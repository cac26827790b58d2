"""Write a LeRobot v3.0 set, locally or to object storage.

meta/info.json goes last: a set without it does not exist for any reader.
"""

import io
import json
import tempfile
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.lerobot import ACTION, INFO, STATE
from gwp.errors import DataError

_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CHUNK_FILES = 1000


class _VideoFile:
    """One growing mp4 of one camera."""

    def __init__(self, folder: Path, fps: float, size: tuple[int, int]) -> None:
        self.path = Path(tempfile.mkstemp(dir=folder, suffix=".mp4")[1])
        self.frames = 0
        self._container = av.open(str(self.path), "w")
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        # A key frame every second frame makes random access cheap; without B-frames order of decoding and showing agree.
        self._stream.options = {"crf": "16", "preset": "veryfast", "g": "2", "bf": "0"}
        self._stream.codec_context.thread_count = 1

    def add(self, pictures: np.ndarray) -> None:
        for picture in pictures:
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                self._container.mux(packet)
        self.frames += len(pictures)

    def close(self) -> Path:
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        return self.path


class LeRobotWriter:
    """Use as a context manager; leaving it without an error finishes the set.

    cameras: key -> (height, width), both even. with_actions False leaves out state and action columns.
    """

    def __init__(
        self, uri: str, *, fps: float, robot_type: str, cameras: dict[str, tuple[int, int]], state_names: tuple[str, ...] = (),
        action_names: tuple[str, ...] = (), with_actions: bool = True, video_mb: float = 200.0,
    ) -> None:
        if storage.exists(storage.join(uri, INFO)):
            raise DataError(f"{uri}: a set is there already; choose another place or remove it")
        odd = [k for k, (h, w) in cameras.items() if h % 2 or w % 2]
        if odd:
            raise DataError(f"cameras {', '.join(odd)} have odd sides; H.264 needs even ones")
        self.uri, self._fps, self._robot, self._cameras = uri, fps, robot_type, cameras
        self._names = {STATE: state_names, ACTION: action_names} if with_actions else {}
        self._limit = video_mb * (1 << 20)
        self._scratch = tempfile.TemporaryDirectory(prefix="gwp-lerobot-")
        self._open: dict[str, _VideoFile] = {}
        self._files = dict.fromkeys(cameras, 0)
        self._episodes: list[dict[str, Any]] = []
        self._columns: dict[str, list[np.ndarray]] = {k: [] for k in self._names}
        self._tasks: dict[str, int] = {}
        self._total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        self._scratch.cleanup()

    def add_episode(
        self, frames: dict[str, np.ndarray], task: str, state: np.ndarray | None = None, action: np.ndarray | None = None
    ) -> None:
        """uint8 frames `[T, H, W, 3]` per camera, float32 state `[T, ds]` and action `[T, da]` (both absent in a video-only set)."""
        T = len(next(iter(frames.values())))
        vectors = {k: v for k, v in ((STATE, state), (ACTION, action)) if v is not None}
        if set(frames) != set(self._cameras) or set(vectors) != set(self._names):
            raise DataError(f"episode with {sorted({*frames, *vectors})}, the set has {sorted({*self._cameras, *self._names})}")
        for name, rows in {**frames, **vectors}.items():
            width = len(self._names[name]) if name in self._names else 3
            if len(rows) != T or rows.shape[-1] != width:
                raise DataError(f"{name}: shape {list(rows.shape)}, expected {T} rows ending in {width}")
        row: dict[str, Any] = {
            "episode_index": len(self._episodes), "tasks": [task], "length": T, "dataset_from_index": self._total,
            "dataset_to_index": self._total + T, "data/chunk_index": 0, "data/file_index": 0,
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
        }
        for key, pictures in frames.items():
            row |= self._add_video(key, pictures)
        for name, rows in vectors.items():
            self._columns[name].append(np.asarray(rows, np.float32))
        self._tasks.setdefault(task, len(self._tasks))
        self._episodes.append(row)
        self._total += T

    def _add_video(self, key: str, pictures: np.ndarray) -> dict[str, Any]:
        if key in self._open and self._open[key].path.stat().st_size > self._limit:
            self._ship(key)
        if key not in self._open:
            self._open[key] = _VideoFile(Path(self._scratch.name), self._fps, self._cameras[key])
        video, index = self._open[key], self._files[key]
        start = video.frames / self._fps
        video.add(pictures)
        return {
            f"videos/{key}/chunk_index": index // _CHUNK_FILES, f"videos/{key}/file_index": index % _CHUNK_FILES,
            f"videos/{key}/from_timestamp": start, f"videos/{key}/to_timestamp": start + len(pictures) / self._fps,
        }

    def _ship(self, key: str) -> None:
        """Close the camera's file and copy it to its place."""
        index = self._files[key]
        path = self._open.pop(key).close()
        place = _VIDEO.format(video_key=key, chunk_index=index // _CHUNK_FILES, file_index=index % _CHUNK_FILES)
        storage.write_bytes(storage.join(self.uri, place), path.read_bytes())
        path.unlink()
        self._files[key] += 1

    def finish(self) -> None:
        """Write everything that is still open; DataError without an episode."""
        if not self._episodes:
            raise DataError(f"{self.uri}: no episode was recorded, nothing is written")
        for key in list(self._open):
            self._ship(key)
        lengths = [e["length"] for e in self._episodes]
        frame = np.concatenate([np.arange(n) for n in lengths])
        columns: dict[str, Any] = {}
        for name, parts in self._columns.items():
            flat = np.concatenate(parts)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), pa.float32()), flat.shape[1])
        tasks = [self._tasks[e["tasks"][0]] for e in self._episodes]
        columns |= {
            "timestamp": pa.array((frame / self._fps).astype(np.float32)), "frame_index": pa.array(frame),
            "episode_index": pa.array(np.repeat(np.arange(len(lengths)), lengths)), "index": pa.array(np.arange(self._total)),
            "task_index": pa.array(np.repeat(tasks, lengths)),
        }
        self._write_table(_DATA.format(chunk_index=0, file_index=0), pa.table(columns))
        self._write_table("meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(self._episodes))
        self._write_table("meta/tasks.parquet", pa.table({"task_index": list(self._tasks.values()), "task": list(self._tasks)}))
        self._write_json("meta/stats.json", {n: _describe(np.concatenate(p)) for n, p in self._columns.items()})
        self._write_json(INFO, self._info())

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, (h, w) in self._cameras.items():
            about = {"video.fps": self._fps, "video.height": h, "video.width": w, "video.channels": 3, "video.codec": "h264",
                     "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "has_audio": False}
            features[key] = {"dtype": "video", "shape": [h, w, 3], "names": ["height", "width", "channels"], "info": about}
        for name, names in self._names.items():
            features[name] = {"dtype": "float32", "shape": [len(names)], "names": list(names), "fps": self._fps}
        for name, dtype in (("timestamp", "float32"), ("frame_index", "int64"), ("episode_index", "int64"), ("index", "int64"),
                            ("task_index", "int64")):
            features[name] = {"dtype": dtype, "shape": [1], "names": None, "fps": self._fps}
        return {
            "codebase_version": "v3.0", "robot_type": self._robot, "total_episodes": len(self._episodes), "total_frames": self._total,
            "total_tasks": len(self._tasks), "chunks_size": _CHUNK_FILES, "data_files_size_in_mb": 100,
            "video_files_size_in_mb": round(self._limit / (1 << 20)), "fps": self._fps, "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": _DATA, "video_path": _VIDEO, "features": features,
        }

    def _write_table(self, name: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        storage.write_bytes(storage.join(self.uri, name), buffer.getvalue())

    def _write_json(self, name: str, value: Any) -> None:
        storage.write_bytes(storage.join(self.uri, name), json.dumps(value, indent=1).encode())


def _describe(x: np.ndarray) -> dict[str, list[float]]:
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    values = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0), "q01": q01, "q99": q99}
    return {k: v.tolist() for k, v in values.items()} | {"count": [len(x)]}
