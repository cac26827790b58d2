"""What all sides train: one stage of a size of `gwp bench act`, and a batch of its shapes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gwp.model.config import Family
from gwp.model.objective import Batch
from pipelines.bench.act.sizes import SIZES
from pipelines.bench.ingest.jobs import ROBOT, made_set
from pipelines.jobs.train_job import TrainJob

LATENT_FRAMES = 2
"""The reference, and one of the future: four strides are one latent frame."""
_STRIDES = 4


@dataclass(frozen=True)
class Problem:
    """Every side is given this, and nothing else.

    size:   of `gwp bench act`
    batch:  samples of a step
    device: `cpu` or `cuda`
    precision: `fp32` or `bf16` (with fp32 masters)
    threads: of torch, on a CPU
    """

    size: str
    family: Family
    batch: int
    device: str
    precision: str
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        """Of weights in a pass."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def job(
        self, uri: str = "none", storage: str = "runs", steps: int = 1000, zero: int = 1
    ) -> TrainJob:
        """The stage, reading the set at `uri`, by one worker."""
        size = SIZES[self.size]
        rows, columns = size.latent
        fields: dict[str, Any] = {
            "kind": "TrainJob",
            "version": 1,
            "stage": "policy",
            "run": {"name": "bench", "storage": storage, "steps": steps},
            "model": size.config(self.family).model_dump(mode="json"),
            "codec": {
                "kind": "pca",
                "spatial": size.spatial,
                "channels": size.channels,
                "fit_clips": 32,
            },
            "text": {"kind": "hashed", "dim": size.text[1], "rows": size.text[0]},
            "data": {
                "sources": [{"uri": uri, "embodiment": ROBOT}],
                "canvas": {
                    "layout": "single",
                    "width": columns * size.spatial,
                    "height": rows * size.spatial,
                },
                "window": {"chunk": size.chunk, "stride": size.chunk // _STRIDES},
                "embodiments": {ROBOT: {}},
            },
            "engine": {
                "zero_stage": zero,
                "precision": self.precision,
                "global_batch": self.batch,
            },
            "cluster": {"workers": 1, "gpu": self.device == "cuda", "decode_tasks": 1},
        }
        return TrainJob.model_validate(fields)

    def make_set(self, folder: Path) -> str:
        """A robot set with pictures of the canvas's size, below `folder`; returns its URI."""
        size = SIZES[self.size]
        height, width = (side * size.spatial for side in size.latent)
        return made_set(folder, 2, (height, width), episodes=6, rows=120, cameras=1)

    def tensors(self) -> Batch:
        """One batch, random, on the device."""
        size = SIZES[self.size]
        draw = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(self.batch, *shape, generator=draw).to(self.device)

        def true(*shape: int) -> torch.Tensor:
            return torch.ones(self.batch, *shape, dtype=torch.bool, device=self.device)

        return Batch(
            latents=randn(size.channels, LATENT_FRAMES, *size.latent),
            state=randn(1, size.dims),
            actions=randn(size.chunk, size.dims),
            step_valid=true(size.chunk),
            dim_valid=true(size.dims),
            text=randn(*size.text),
            embodiment=torch.zeros(self.batch, dtype=torch.long, device=self.device),
            ok=true(),
        )
