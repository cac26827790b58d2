"""`gwp data inspect` of a set behind storage that answers late: seconds, of all cores too, and
requests.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clusters.services import LOOPBACK, Service, free_ports
from gwp.errors import GwpError
from pipelines.bench.far.store import COUNTS

_ROWS, _FPS, _WIDE = 200, 20, 14
_CAMERA = "observation.images.front"
_CHUNK = 1000
_BUCKET = "s3://far"


def bench_inspect(folder: str | None, episodes: int, delay_ms: float) -> dict[str, Any]:
    """Inspect the set in a folder, or a made one of so many episodes, from a store that answers
    after `delay_ms`. GwpError when the command fails.
    """
    with tempfile.TemporaryDirectory(prefix="gwp-far-") as scratch:
        place = Path(folder) if folder else write_set(Path(scratch) / "set", episodes)
        (port,) = free_ports(1)
        server = Service(
            "the store",
            [
                sys.executable,
                "-m",
                "pipelines.bench.far.store",
                str(port),
                str(place.parent.resolve()),
                str(delay_ms / 1000),
            ],
            port,
            COUNTS,
            Path(scratch) / "store.log",
            {},
        )
        server.start()
        try:
            server.wait(300)
            return _inspected(server.url, place.name) | {"set": place.name, "delay_ms": delay_ms}
        finally:
            server.stop()


def _inspected(url: str, name: str) -> dict[str, Any]:
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }
    # These would win over the settings, and lead elsewhere.
    foreign = ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")
    env = {key: value for key, value in os.environ.items() if key not in foreign} | settings
    command = [sys.executable, "-m", "pipelines.cli", "data", "inspect", f"{_BUCKET}/{name}"]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [*command, "--json"], env=env, capture_output=True, text=True, check=False
    )
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode > 1:
        raise GwpError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout[-500:]}")
    facts = json.loads(done.stdout)
    with urllib.request.urlopen(url + COUNTS, timeout=10) as answer:  # noqa: S310  loopback
        requests = json.load(answer)
    return {
        "format": facts["format"],
        "episodes": facts["episodes"],
        "usable": facts["usable"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "requests": requests,
        "memory_mb": round(after.ru_maxrss / 1024),
    }


def write_set(root: Path, episodes: int) -> Path:
    """A LeRobot v2.1 set: per episode a data file of 200 rows of 14 and 14 numbers, and a video
    of 320x240, which is the same file for all.
    """
    rng = np.random.default_rng(0)
    video = root.parent / "video.mp4"
    root.mkdir(parents=True)
    _write_video(video, rng)
    numbers = [f"joint_{i}" for i in range(_WIDE)]
    vector = {"dtype": "float32", "shape": [_WIDE], "names": numbers}
    single = {name: {"dtype": "int64", "shape": [1], "names": None} for name in _COUNTERS}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "arm",
        "fps": _FPS,
        "total_episodes": episodes,
        "total_frames": episodes * _ROWS,
        "chunks_size": _CHUNK,
        "features": {
            "observation.state": vector,
            "action": vector,
            _CAMERA: {"dtype": "video", "shape": [240, 320, 3], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **single,
        },
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": (
            "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        ),
    }
    lines = [{"episode_index": i, "tasks": ["go"], "length": _ROWS} for i in range(episodes)]
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "go"}))
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    way = np.cumsum(rng.normal(0, 0.01, (_ROWS, _WIDE)), 0).astype(np.float32)
    for i in range(episodes):
        data = root / f"data/chunk-{i // _CHUNK:03d}/episode_{i:06d}.parquet"
        shown = root / f"videos/chunk-{i // _CHUNK:03d}/{_CAMERA}/episode_{i:06d}.mp4"
        for file in (data, shown):
            file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_rows(i, way), data)
        shown.hardlink_to(video)
    return root


_COUNTERS = ("frame_index", "episode_index", "index", "task_index")


def _rows(episode: int, way: np.ndarray) -> pa.Table:
    """The rows of an episode. way: float32 `[rows, 14]`"""
    count = np.arange(_ROWS)
    counters = (count, np.full(_ROWS, episode), episode * _ROWS + count, np.zeros(_ROWS, int))
    vectors = [pa.array((way * by + episode * 1e-4).ravel()) for by in (1.0, 1.01)]
    state, action = (pa.FixedSizeListArray.from_arrays(flat, _WIDE) for flat in vectors)
    return pa.table(
        {
            "observation.state": state,
            "action": action,
            "timestamp": (count / _FPS).astype(np.float32),
            **dict(zip(_COUNTERS, counters, strict=True)),
        }
    )


def _write_video(path: Path, rng: np.random.Generator) -> None:
    """Blocks of colour that move to the right; a key frame every two."""
    blocks = np.kron(rng.integers(0, 255, (12, 16, 3), np.uint8), np.ones((20, 20, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"g": "2", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for k in range(_ROWS):
            frame = av.VideoFrame.from_ndarray(np.roll(blocks, k, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
