"""Sets and jobs that `gwp bench ingest` reads: given ones, or small ones that it writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at
from gwp.data.formats.lerobot.read import INFO
from gwp.data.formats.lerobot.write import LeRobotWriter
from gwp.data.source import Source
from pipelines.jobs.resolve import compute_all_stats, manifest_of, sample_spec
from pipelines.jobs.robots import resolve_embodiments
from pipelines.jobs.train_job import TrainJob
from pipelines.training.prepare import PreparedRun

ROBOT = "bench"
WHOLE_FRAMES = 17
"""Frames of the samples that are compared with `read_videos`, which gives every frame."""
_FROM_END_TO_END = 64
"""Windows of a file that are decoded together where all of it is wanted."""
# Never built: what matters is what it asks of the data. The codec below has the shape of the
# published one, 48 channels a latent.
_MODEL = {
    "family": "gwp05",
    "num_layers": 1,
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "ffn_dim": 256,
    "action_expert_dim": 64,
    "action_ffn_dim": 128,
    "in_channels": 48,
    "num_embodiments": 1,
    "text_dim": 64,
    "freq_dim": 64,
}
CAMERAS = tuple(f"observation.images.{name}" for name in ("front", "left", "right"))


def made_set(
    folder: Path,
    gop: int,
    size: tuple[int, int],
    episodes: int = 6,
    rows: int = 100,
    cameras: int = 3,
) -> str:
    """A LeRobot set of moving textures: H.264, key frames `gop` apart, pictures of `size`
    (height, width). Returns its URI.
    """
    rng = np.random.default_rng(0)
    h, w = size
    names = CAMERAS[:cameras]
    # Coarse squares that an encoder follows, and grain that keeps files as large as a camera's.
    grain = rng.integers(0, 256, (2 * h, 2 * w, 3), np.uint8)
    coarse = np.kron(
        rng.integers(0, 200, (2 * h // 16 + 1, 2 * w // 16 + 1, 3), np.uint8),
        np.ones((16, 16, 1), np.uint8),
    )
    # Twice as wide and high as a picture, so that there is room to wander.
    world = coarse[: 2 * h, : 2 * w] // 2 + grain // 32
    middle = np.array([h // 2, w // 2])
    axes = tuple(f"j{i}" for i in range(7))
    uri = str(folder / f"made_gop{gop}")
    with LeRobotWriter(
        uri,
        fps=30.0,
        robot_type=ROBOT,
        cameras=dict.fromkeys(names, size),
        state_names=axes,
        action_names=axes,
        gop=gop,
    ) as writer:
        for _ in range(episodes):
            frames = {}
            for name in names:
                # The camera wanders over the texture, a few pixels a frame.
                steps = rng.integers(-3, 4, (rows, 2))
                path = np.clip(middle + np.cumsum(steps, 0), 0, 2 * middle)
                frames[name] = np.stack([world[y : y + h, x : x + w] for y, x in path])
            state = np.cumsum(rng.normal(0, 0.02, (rows, 7)), 0).astype(np.float32)
            writer.add_episode(frames, "follow the texture", state, state + np.float32(0.01))
    return uri


def job_for(
    uri: str,
    *,
    canvas: tuple[int, int],
    chunk: int,
    stride: int,
    clip: dict[str, Any],
    batch: int,
    workers: int,
    tasks: int,
    steps: int,
    whole: bool = False,
) -> TrainJob:
    """A stage that reads this set. canvas: width and height; batch: samples per worker and
    step; whole: its videos as plain clips, every sample of which begins where the one before
    ended.
    """
    robots = None if whole else robots_at(Source(uri=uri))
    # A LeRobot set keeps its videos there, which are plain clips by themselves.
    if whole and storage.exists(storage.join(uri, INFO)):
        uri = storage.join(uri, "videos")
    source: dict[str, Any] = {"uri": uri, "format": "clips"}
    embodiments: dict[str, dict[str, Any]] = {}
    layout = "single"
    widest = 8
    if robots is not None:
        source = {"uri": uri, "embodiment": ROBOT}
        embodiments = {ROBOT: {}}
        # Three views are composed as a T; a missing one stays grey.
        layout = "single" if len(robots.cameras) == 1 else "t"
        widest = max(len(robots.state_names), len(robots.action_names))
    return TrainJob.model_validate(
        {
            "kind": "TrainJob",
            "version": 1,
            "stage": "policy" if robots else "world",
            "run": {"name": "bench", "steps": steps},
            "model": _MODEL | {"action_channels": widest},
            "codec": {"kind": "pca", "spatial": 16, "channels": 48, "fit_clips": 16},
            "text": {"kind": "hashed", "dim": 64, "rows": 8},
            "data": {
                "sources": [source],
                "canvas": {
                    "layout": layout,
                    "width": canvas[0],
                    "height": canvas[1],
                    "missing": "grey",
                },
                "window": {"chunk": chunk, "stride": stride},
                "clip": clip,
                "embodiments": embodiments,
                # Whoever wants every frame once reads a file from end to end.
                "together": _FROM_END_TO_END if whole else 1,
            },
            "engine": {"global_batch": batch * workers},
            "cluster": {"workers": workers, "decode_tasks": tasks},
        }
    )


def prepared_for(job: TrainJob) -> PreparedRun:
    """What a stage hands to its stream, without a run folder."""
    reader = FileReader()
    embodiments = resolve_embodiments(job, reader)
    manifest = manifest_of(job, embodiments, reader)
    spec = sample_spec(job, embodiments, compute_all_stats(job, embodiments, reader))
    # Its folder, hashes and weights are never asked for.
    return PreparedRun("", job, manifest, manifest.fingerprint, spec, "", None)


@dataclass(frozen=True)
class Shape:
    """What is read. canvas: width and height, pixels; chunk, stride, clip_frames, clip_fps:
    windows of robots and of plain videos; batch: samples per micro-batch; steps: measured
    micro-batches of each worker; warm: those before them, and again behind them, so that as
    many are in work when the clock stops as when it starts; cores: decoding processes.
    """

    canvas: tuple[int, int] = (320, 384)
    chunk: int = 48
    stride: int = 12
    clip_frames: int = 5
    clip_fps: float = 5.0
    batch: int = 16
    steps: int = 40
    warm: int = 6
    workers: int = 2
    cores: int = 2

    def prepared(self, uri: str, whole: bool = False, fps: float | None = None) -> PreparedRun:
        """Its stream from the set at `uri`; `whole`: every frame of its videos once, at `fps`."""
        clip = {"frames": WHOLE_FRAMES if whole else self.clip_frames, "fps": fps or self.clip_fps}
        return prepared_for(
            job_for(
                uri,
                canvas=self.canvas,
                chunk=self.chunk,
                stride=self.stride,
                clip=clip,
                batch=self.batch,
                workers=self.workers,
                tasks=self.cores,
                steps=self.steps + 2 * self.warm,
                whole=whole,
            )
        )
