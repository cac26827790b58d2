"""Write a LeRobot v3.0 set, locally or to object storage.

meta/info.json goes last: a set without it does not exist for any reader.
"""

import io
import json
import os
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
from gwp.data.formats.lerobot.read import INFO
from gwp.data.formats.robot_set import ACTION, STATE
from gwp.errors import DataError
from gwp.storage.names import relative_names

_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_CHUNK_FILES = 1000
# One picture in so many counts for the statistics of a camera; neighbours look alike.
_PICTURES = 10
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


class _VideoFile:
    """One growing mp4 of one camera."""

    def __init__(self, folder: Path, fps: float, size: tuple[int, int], gop: int) -> None:
        # Only for a name that is free: FFmpeg opens it by itself.
        handle, name = tempfile.mkstemp(dir=folder, suffix=".mp4")
        os.close(handle)
        self.path = Path(name)
        self.frames = 0
        self._container = av.open(name, "w")
        # 1001: rates of broadcast video, such as 30000/1001.
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001)
        )
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        # Without B-frames order of decoding and showing agree.
        self._stream.options = {"crf": "16", "preset": "veryfast", "g": str(gop), "bf": "0"}
        self._stream.codec_context.thread_count = 1

    def add(self, pictures: np.ndarray) -> None:
        for picture in pictures:
            # The encoder gives packets when it has some, none for the first pictures.
            for packet in self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                self._container.mux(packet)
        self.frames += len(pictures)

    def close(self) -> Path:
        # What it still holds; without this the last pictures would be missing.
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        return self.path


class LeRobotWriter:
    """Use as a context manager; leaving it without an error finishes the set.

    fps: Hz, of rows and pictures. cameras: key -> (height, width), both even. state_names,
    action_names: one per dimension. with_actions False leaves out state and action columns.
    video_mb: size after which a camera starts a new file. gop: distance between key frames;
    with 2, as LeRobot has it, random access is cheap. DataError when there is a set at `uri`,
    or nothing that can be encoded.
    """

    def __init__(
        self,
        uri: str,
        *,
        fps: float,
        robot_type: str,
        cameras: dict[str, tuple[int, int]],
        state_names: tuple[str, ...] = (),
        action_names: tuple[str, ...] = (),
        with_actions: bool = True,
        video_mb: float = 200.0,
        gop: int = 2,
    ) -> None:
        if storage.exists(storage.join(uri, INFO)):
            raise DataError(f"{uri}: a set is there already; choose another place or remove it")
        if not cameras:
            raise DataError(f"{uri}: a set needs at least one camera")
        # They become folders.
        relative_names(cameras, f"{uri}: camera", DataError)
        odd = [k for k, (h, w) in cameras.items() if h % 2 or w % 2]
        if odd:
            raise DataError(f"cameras {', '.join(odd)} have odd sides; H.264 needs even ones")
        self.uri, self._fps, self._robot, self._cameras = uri, fps, robot_type, cameras
        self._names = {STATE: state_names, ACTION: action_names} if with_actions else {}
        self._limit, self._gop = video_mb * (1 << 20), gop
        self._scratch = tempfile.TemporaryDirectory(prefix="gwp-lerobot-")
        # Per camera: the growing file, and the number of files before it.
        self._open: dict[str, _VideoFile] = {}
        self._files = dict.fromkeys(cameras, 0)
        self._episodes: list[dict[str, Any]] = []
        self._columns: dict[str, list[np.ndarray]] = {k: [] for k in self._names}
        # How often each level was seen, per channel [3, 256]: pictures themselves are not
        # kept.
        self._seen = {k: np.zeros((3, 256), np.int64) for k in cameras}
        self._pictures = 0
        self._tasks: dict[str, int] = {}
        self._total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        self._scratch.cleanup()

    def add_episode(
        self,
        frames: dict[str, np.ndarray],
        task: str,
        state: np.ndarray | None = None,
        action: np.ndarray | None = None,
    ) -> None:
        """uint8 frames `[T, H, W, 3]` per camera, float32 state `[T, ds]` and action `[T, da]`
        (both absent in a video-only set).

        DataError when the episode is empty or does not fit the set; it is not added then.
        """
        # All is checked before anything is written: a video cannot be taken back.
        vectors = {k: v for k, v in ((STATE, state), (ACTION, action)) if v is not None}
        if set(frames) != set(self._cameras) or set(vectors) != set(self._names):
            raise DataError(
                f"episode with {sorted({*frames, *vectors})}, the set has "
                f"{sorted({*self._cameras, *self._names})}"
            )
        T = len(next(iter(frames.values())))
        self._check(T, frames, vectors)
        # Of meta/episodes. Rows of all episodes are kept until `finish`, and go into one
        # file.
        row: dict[str, Any] = {
            "episode_index": len(self._episodes),
            "tasks": [task],
            "length": T,
            "dataset_from_index": self._total,
            "dataset_to_index": self._total + T,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for key, pictures in frames.items():
            row |= self._add_video(key, pictures)
            # A view of one row of `_seen`, changed in place.
            for channel, counts in enumerate(self._seen[key]):
                counts += np.bincount(
                    pictures[::_PICTURES, ..., channel].reshape(-1), minlength=256
                )
        self._pictures += -(-T // _PICTURES)
        for name, rows in vectors.items():
            self._columns[name].append(np.asarray(rows, np.float32))
        self._tasks.setdefault(task, len(self._tasks))
        self._episodes.append(row)
        self._total += T

    def _check(self, T: int, frames: dict[str, np.ndarray], vectors: dict[str, np.ndarray]) -> None:
        if not T:
            raise DataError("episode without frames; leave it out")
        for name, rows in {**frames, **vectors}.items():
            shape = (
                (T, *self._cameras[name], 3)
                if name in self._cameras
                else (T, len(self._names[name]))
            )
            if rows.shape != shape:
                raise DataError(f"{name}: shape {list(rows.shape)}, expected {list(shape)}")
            if name in self._cameras and rows.dtype != np.uint8:
                raise DataError(f"{name}: {rows.dtype} pictures, expected uint8 from 0 to 255")
            if name in self._names and not np.isfinite(rows).all():
                raise DataError(f"{name}: holds values that are not finite")

    def _add_video(self, key: str, pictures: np.ndarray) -> dict[str, Any]:
        # Between episodes only, so that an episode is in one file. The encoder may hold back
        # some pictures, so files grow a little beyond the limit.
        if key in self._open and self._open[key].path.stat().st_size > self._limit:
            self._ship(key)
        if key not in self._open:
            self._open[key] = _VideoFile(
                Path(self._scratch.name), self._fps, self._cameras[key], self._gop
            )
        video, index = self._open[key], self._files[key]
        # From a count and not a sum of seconds, which would drift over many episodes.
        start = video.frames / self._fps
        video.add(pictures)
        return {
            f"videos/{key}/chunk_index": index // _CHUNK_FILES,
            f"videos/{key}/file_index": index % _CHUNK_FILES,
            f"videos/{key}/from_timestamp": start,
            f"videos/{key}/to_timestamp": start + len(pictures) / self._fps,
        }

    def _ship(self, key: str) -> None:
        """Close the camera's file and copy it to its place."""
        index = self._files[key]
        path = self._open.pop(key).close()
        place = _VIDEO.format(
            video_key=key, chunk_index=index // _CHUNK_FILES, file_index=index % _CHUNK_FILES
        )
        storage.write_bytes(storage.join(self.uri, place), path.read_bytes())
        path.unlink()
        self._files[key] += 1

    def finish(self) -> None:
        """Write everything that is still open; DataError without an episode."""
        if not self._episodes:
            raise DataError(f"{self.uri}: no episode was recorded, nothing is written")
        # Videos, tables, statistics, and at last info.json, which makes it a set.
        for key in list(self._open):
            self._ship(key)
        lengths = [e["length"] for e in self._episodes]
        # [rows]: number of each row in its episode.
        frame = np.concatenate([np.arange(n) for n in lengths])
        columns: dict[str, Any] = {}
        for name, parts in self._columns.items():
            flat = np.concatenate(parts)
            columns[name] = pa.FixedSizeListArray.from_arrays(
                pa.array(flat.reshape(-1), pa.float32()), flat.shape[1]
            )
        tasks = [self._tasks[e["tasks"][0]] for e in self._episodes]
        columns |= {
            "timestamp": pa.array((frame / self._fps).astype(np.float32)),
            "frame_index": pa.array(frame),
            "episode_index": pa.array(np.repeat(np.arange(len(lengths)), lengths)),
            "index": pa.array(np.arange(self._total)),
            "task_index": pa.array(np.repeat(tasks, lengths)),
        }
        self._write_table(_DATA.format(chunk_index=0, file_index=0), pa.table(columns))
        self._write_table(
            "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(self._episodes)
        )
        self._write_table("meta/tasks.parquet", _task_table(self._tasks))
        # For other readers; ours computes its own under the window rule.
        stats = {name: _describe(np.concatenate(parts)) for name, parts in self._columns.items()}
        stats |= {
            key: _describe_pictures(counts, self._pictures) for key, counts in self._seen.items()
        }
        self._write_json("meta/stats.json", stats)
        self._write_json(INFO, self._info())

    def _info(self) -> dict[str, Any]:
        fps = (
            int(self._fps) if float(self._fps).is_integer() else self._fps
        )  # other readers expect an integer where it is one
        features: dict[str, Any] = {}
        for key, (h, w) in self._cameras.items():
            about = {
                "video.fps": fps,
                "video.height": h,
                "video.width": w,
                "video.channels": 3,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "has_audio": False,
            }
            features[key] = {
                "dtype": "video",
                "shape": [h, w, 3],
                "names": ["height", "width", "channels"],
                "info": about,
            }
        for name, names in self._names.items():
            features[name] = {
                "dtype": "float32",
                "shape": [len(names)],
                "names": list(names),
                "fps": fps,
            }
        for name, dtype in (
            ("timestamp", "float32"),
            ("frame_index", "int64"),
            ("episode_index", "int64"),
            ("index", "int64"),
            ("task_index", "int64"),
        ):
            features[name] = {"dtype": dtype, "shape": [1], "names": None, "fps": fps}
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot,
            "total_episodes": len(self._episodes),
            "total_frames": self._total,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK_FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": round(self._limit / (1 << 20)),
            "fps": fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": _DATA,
            "video_path": _VIDEO,
            "features": features,
        }

    def _write_table(self, name: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        storage.write_bytes(storage.join(self.uri, name), buffer.getvalue())

    def _write_json(self, name: str, value: Any) -> None:
        storage.write_bytes(storage.join(self.uri, name), json.dumps(value, indent=1).encode())


def _describe(x: np.ndarray) -> dict[str, list[float]]:
    """Statistics of each column of `[n, d]`."""
    values = {
        "min": x.min(0),
        "max": x.max(0),
        "mean": x.mean(0, np.float64),
        "std": x.std(0, np.float64),
    }
    values |= dict(zip(_QUANTILES, np.quantile(x, list(_QUANTILES.values()), axis=0), strict=True))
    return {k: v.tolist() for k, v in values.items()} | {"count": [len(x)]}


def _describe_pictures(counts: np.ndarray, pictures: int) -> dict[str, Any]:
    """Statistics of each channel, `[3, 1, 1]` in [0, 1], from how often each of the 256 levels
    was seen `[3, 256]`.
    """
    # counts @ levels: sums over all pixels, without the pixels. Variance from two sums may
    # come out below 0 by rounding.
    levels, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ levels / total
    share = np.cumsum(counts, axis=1) / total[:, None]
    seen = [levels[c > 0] for c in counts]
    values = {
        "min": [x[0] for x in seen],
        "max": [x[-1] for x in seen],
        "mean": mean,
        "std": np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0)),
    }
    # The first level up to which that share of the pixels lies.
    values |= {name: levels[(share >= q).argmax(1)] for name, q in _QUANTILES.items()}
    return {k: np.reshape(v, (3, 1, 1)).tolist() for k, v in values.items()} | {"count": [pictures]}


def _task_table(tasks: dict[str, int]) -> pa.Table:
    """Readers that use pandas expect the text to be the index, which Parquet says in a note of
    the schema.
    """
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    columns = [
        {"name": n, "field_name": n, "pandas_type": p, "numpy_type": t, "metadata": None}
        for n, p, t in kinds
    ]
    note = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": columns,
        "pandas_version": "2.0.0",
    }
    table = pa.table(
        {"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks, pa.string())}
    )
    return table.replace_schema_metadata({"pandas": json.dumps(note)})
