"""Shards of a cache, as tasks and actors make them: decode in tasks, encode and write in actors
that hold the codec.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gwp import storage
from gwp.data.decode import SampleSpec, decode_frames
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import NumberFormat, write_shard
from gwp.data.records import Missing, Row, Shaped
from gwp.errors import GwpError
from gwp.model.codecs.cached import read_t5_embedding, to_stored
from gwp.model.codecs.text import load_text_encoder
from gwp.model.codecs.video import VideoCodec, load_video_codec

_TOGETHER = 8
"""Samples or texts that are encoded at a time."""
_SAME = 0.05
"""Share of its norm that an embedding computed elsewhere may differ by: bf16 arithmetic through
24 layers.
"""


def frame_shape(row: Shaped, spec: SampleSpec) -> tuple[int, int, int, int]:
    """Shape `(T, H, W, 3)` of the frames of a manifest row's sample."""
    canvas = spec.canvas_of(row)
    return spec.frames_of(row), canvas.height, canvas.width, 3


def decode_block(table: pa.Table, spec: SampleSpec) -> pa.Table:
    """Frames of a shard's rows as bytes, because their shapes may differ; null where they
    cannot be decoded. A shard is decoded by a task, which has a reader of its own.
    """
    rows: list[Row] = table.to_pylist()
    frames, reasons = decode_frames(rows, spec, FileReader())
    return pa.table(
        {
            "name": table["name"],
            "shard": table["shard"],
            "shape": pa.array([frame_shape(row, spec) for row in rows], pa.list_(pa.int32())),
            "frames": pa.array(
                [frames[i].tobytes() if i in frames else None for i in range(len(rows))],
                pa.large_binary(),
            ),
            "reason": pa.array([reasons.get(i) for i in range(len(rows))], pa.string()),
        }
    )


class LatentWriter:
    """Encodes the samples of a shard and writes it."""

    def __init__(self, uri: str, number_format: NumberFormat, gpu: bool) -> None:
        self.uri = uri
        self.number_format = number_format
        self.device = "cuda" if gpu else "cpu"
        with tempfile.TemporaryDirectory() as scratch:
            self.codec: VideoCodec = load_video_codec(
                storage.download(storage.join(uri, "codec"), scratch)
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        names, shapes, reasons = (table[n].to_pylist() for n in ("name", "shape", "reason"))
        arrays: dict[str, np.ndarray] = {}
        failed: dict[str, Missing] = {}
        # Those that were decoded, by shape: a batch of the codec has one.
        good: dict[tuple[int, ...], list[int]] = {}
        for i, (shape, reason) in enumerate(zip(shapes, reasons, strict=True)):
            if reason is None:
                good.setdefault(tuple(shape), []).append(i)
            else:
                # With the shape: in training an empty row of it stands for the sample.
                failed[names[i]] = {"reason": reason, "shape": self._latent(shape)}
        for shape, rows in good.items():
            for start in range(0, len(rows), _TOGETHER):
                some = rows[start : start + _TOGETHER]
                # Views of Arrow's memory, uint8 `[T, H, W, 3]`; stacking copies them.
                pictures = [
                    np.frombuffer(table["frames"][i].as_buffer(), np.uint8).reshape(shape)
                    for i in some
                ]
                with torch.no_grad():
                    latents = self.codec.encode(
                        torch.from_numpy(np.stack(pictures)).to(self.device)
                    )
                for i, one in zip(some, latents, strict=True):
                    stored = to_stored(one, self.number_format)
                    if stored is None:
                        failed[names[i]] = {
                            "reason": f"latents do not fit into {self.number_format}",
                            "shape": self._latent(shape),
                        }
                    else:
                        arrays[names[i]] = stored
        # A block is a shard, so its rows have one number.
        number = table["shard"][0].as_py()
        size = write_shard(self.uri, "latents", number, arrays, failed, self.number_format)
        return _told(number, len(names), size)

    def _latent(self, shape: Sequence[int]) -> list[int]:
        """Shape `[C, T_lat, h, w]` of the latents of frames `[T, H, W, 3]`."""
        c = self.codec
        return [
            c.channels,
            # The first frame has a latent of its own, later ones share one by `temporal`.
            (shape[0] - 1) // c.temporal + 1,
            shape[1] // c.spatial,
            shape[2] // c.spatial,
        ]


class TextWriter:
    """Encodes the texts of a shard and writes it."""

    def __init__(self, uri: str, number_format: NumberFormat, gpu: bool) -> None:
        self.uri, self.number_format = uri, number_format
        # Kept while it lives: its weights are read from there as they are needed.
        self.scratch = tempfile.TemporaryDirectory()
        self.encoder: Any = load_text_encoder(
            storage.download(storage.join(uri, "text"), self.scratch.name)
        )
        self.compared = False
        if gpu and hasattr(self.encoder, "model"):
            self.encoder.model.to("cuda")

    def __call__(self, table: pa.Table) -> pa.Table:
        # Ray keeps only the words of what is raised here, so errors are handed back.
        rows, number = table.to_pylist(), table["shard"][0].as_py()
        arrays: dict[str, np.ndarray] = {}
        try:
            for start in range(0, len(rows), _TOGETHER):
                some = rows[start : start + _TOGETHER]
                for row, embedding in zip(some, self._embed(some), strict=True):
                    # Padding behind the last token is zeros, and is not stored.
                    length = int(embedding.any(1).nonzero().max()) + 1 if embedding.any() else 0
                    stored = to_stored(embedding[:length], self.number_format)
                    if stored is None:
                        raise GwpError(
                            f"embeddings do not fit into {self.number_format}; use "
                            "--number-format bfloat16 and another --out"
                        )
                    arrays[row["name"]] = stored
        except GwpError as error:
            return _told(number, 0, 0, str(error))
        return _told(
            number,
            len(rows),
            write_shard(self.uri, "texts", number, arrays, {}, self.number_format),
        )

    def _embed(self, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
        """fp32 `[rows, dim]` of each text, from a file where it names one."""
        read = {
            i: read_t5_embedding(row["file"])[: self.encoder.rows]
            for i, row in enumerate(rows)
            if row["file"]
        }
        if not self.compared:
            # One for each actor tells whether files and encoder belong together.
            for i in list(read)[:1]:
                self._compare(rows[i], read[i])
        rest = [i for i in range(len(rows)) if i not in read]
        fresh = self.encoder.encode([rows[i]["text"] for i in rest]) if rest else ()
        read |= dict(zip(rest, fresh, strict=True))
        return [read[i] for i in range(len(rows))]

    def _compare(self, row: dict[str, Any], released: torch.Tensor) -> None:
        """GwpError when a file holds something else than the encoder makes of the text."""
        own = self.encoder.encode([row["text"]])[0]
        # An embedding of another width leaves zeros, which are 100 % away.
        padded = torch.zeros_like(own)
        if released.shape[1] == self.encoder.dim:
            padded[: len(released)] = released
        apart = float((padded - own).norm() / own.norm().clamp(min=1e-9))
        if apart > _SAME:
            raise GwpError(
                f"{row['file']}: {apart:.0%} away from what the stage's text encoder makes of "
                f"'{row['text'][:60]}'; leave "
                "--t5-embedding out"
            )
        self.compared = True


def _told(shard: int, samples: int, size: int, error: str = "") -> pa.Table:
    return pa.table({"shard": [shard], "samples": [samples], "bytes": [size], "error": [error]})
