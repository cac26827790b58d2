"""Shards of a cache, as tasks and actors make them: decode in tasks, encode and write in actors that hold the codec."""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gwp import storage
from gwp.data.cached import NumberFormat, write_shard
from gwp.data.sample import SampleSpec, decode_frames
from gwp.model.codecs.cached import to_stored
from gwp.model.codecs.text import load_text_encoder
from gwp.model.codecs.video import VideoCodec, load_video_codec

_TOGETHER = 8
"""Samples or texts that are encoded at a time."""


def frame_shape(row: dict[str, Any], spec: SampleSpec) -> tuple[int, int, int, int]:
    """Shape `(T, H, W, 3)` of the frames of a manifest row's sample."""
    canvas = spec.canvas_of(row)
    return spec.frames_of(row), canvas.height, canvas.width, 3


def decode_block(table: pa.Table, spec: SampleSpec) -> pa.Table:
    """Frames of a shard's rows as bytes, because their shapes may differ; null where they cannot be decoded."""
    rows = table.to_pylist()
    frames, reasons = decode_frames(rows, spec)
    return pa.table({
        "name": table["name"], "shard": table["shard"], "shape": pa.array([frame_shape(row, spec) for row in rows], pa.list_(pa.int32())),
        "frames": pa.array([frames[i].tobytes() if i in frames else None for i in range(len(rows))], pa.large_binary()),
        "reason": pa.array([reasons.get(i) for i in range(len(rows))], pa.string()),
    })


class LatentWriter:
    """Encodes the samples of a shard and writes it."""

    def __init__(self, uri: str, number_format: NumberFormat, gpu: bool) -> None:
        self.uri, self.number_format, self.device = uri, number_format, "cuda" if gpu else "cpu"
        with tempfile.TemporaryDirectory() as scratch:
            self.codec: VideoCodec = load_video_codec(storage.download(storage.join(uri, "codec"), scratch))

    def __call__(self, table: pa.Table) -> pa.Table:
        names, shapes, reasons = (table[n].to_pylist() for n in ("name", "shape", "reason"))
        arrays: dict[str, np.ndarray] = {}
        failed: dict[str, dict[str, Any]] = {}
        good: dict[tuple[int, ...], list[int]] = {}
        for i, (shape, reason) in enumerate(zip(shapes, reasons, strict=True)):
            if reason is None:
                good.setdefault(tuple(shape), []).append(i)
            else:
                failed[names[i]] = {"reason": reason, "shape": self._latent(shape)}
        for shape, rows in good.items():
            for start in range(0, len(rows), _TOGETHER):
                some = rows[start : start + _TOGETHER]
                pictures = [np.frombuffer(table["frames"][i].as_buffer(), np.uint8).reshape(shape) for i in some]
                with torch.no_grad():
                    latents = self.codec.encode(torch.from_numpy(np.stack(pictures)).to(self.device))
                for i, one in zip(some, latents, strict=True):
                    stored = to_stored(one, self.number_format)
                    if stored is None:
                        failed[names[i]] = {"reason": f"latents do not fit into {self.number_format}", "shape": self._latent(shape)}
                    else:
                        arrays[names[i]] = stored
        number = table["shard"][0].as_py()
        size = write_shard(self.uri, "latents", number, arrays, failed, self.number_format)
        return _told(number, len(names), size)

    def _latent(self, shape: Sequence[int]) -> list[int]:
        """Shape `[C, T_lat, h, w]` of the latents of frames `[T, H, W, 3]`."""
        c = self.codec
        return [c.channels, (shape[0] - 1) // c.temporal + 1, shape[1] // c.spatial, shape[2] // c.spatial]


class TextWriter:
    """Encodes the texts of a shard and writes it."""

    def __init__(self, uri: str, number_format: NumberFormat, gpu: bool) -> None:
        self.uri, self.number_format = uri, number_format
        # Kept while it lives: its weights are read from there as they are needed.
        self.scratch = tempfile.TemporaryDirectory()
        self.encoder: Any = load_text_encoder(storage.download(storage.join(uri, "text"), self.scratch.name))
        if gpu and hasattr(self.encoder, "model"):
            self.encoder.model.to("cuda")

    def __call__(self, table: pa.Table) -> pa.Table:
        arrays: dict[str, np.ndarray] = {}
        names, texts, number = table["name"].to_pylist(), table["text"].to_pylist(), table["shard"][0].as_py()
        for start in range(0, len(texts), _TOGETHER):
            found = self.encoder.encode(texts[start : start + _TOGETHER])
            for name, rows in zip(names[start : start + _TOGETHER], found, strict=True):
                stored = to_stored(rows[: int(rows.any(1).nonzero().max()) + 1 if rows.any() else 0], self.number_format)
                if stored is None:
                    # A text is no sample that may be left out. Ray keeps only the words of what is raised here.
                    return _told(number, 0, 0, f"embeddings do not fit into {self.number_format}; use --number-format bfloat16")
                arrays[name] = stored
        return _told(number, len(names), write_shard(self.uri, "texts", number, arrays, {}, self.number_format))


def _told(shard: int, samples: int, size: int, error: str = "") -> pa.Table:
    return pa.table({"shard": [shard], "samples": [samples], "bytes": [size], "error": [error]})
