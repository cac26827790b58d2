"""The process that judges checkpoints while training goes on: an actor of Ray's.

It is given a checkpoint by name and takes the weights from storage, those that the workers compute
with, so that nothing is asked of the workers. Model and encoded samples stay from one checkpoint to
the next. `beside` starts it and asks it.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gwp.model.transformer import WorldActionTransformer
from pipelines.compat import import_deepspeed
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoint.checkpoints import CheckpointManifest, fetch, load_committed
from pipelines.training.checkpoint.uploads import patiently
from pipelines.training.control.room import disk_told
from pipelines.training.engine.deepspeed_engine import full_state
from pipelines.training.engine.node import Node
from pipelines.training.engine.optimizer import add_lora
from pipelines.training.engine.ranks import Ranks
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.encoders import Encoders
from pipelines.training.scratch import Scratch, sweep
from pipelines.training.validation import Dealt, Validation


@dataclass(frozen=True)
class Verdict:
    """What was found of a checkpoint.

    losses:  as `Validation.losses` has them
    figures: as `Validation.figures` has them
    picture: real frames above imagined ones, uint8 `[h, w, 3]`; None: none
    seconds: that it took, fetching included
    """

    step: int
    losses: dict[str, float]
    figures: dict[str, float]
    picture: np.ndarray | None
    seconds: float


class Validator:
    """Judges checkpoints of one run, one at a time."""

    def __init__(self, prepared: PreparedRun) -> None:
        """prepared: slim. Nothing that may fail is done here: an error would be told as one of Ray."""
        assert prepared.job.validation is not None
        worker = prepared.job.validation.worker
        self._prepared = prepared
        self._device = torch.device("cuda" if worker and worker.gpus else "cpu")
        self._model: WorldActionTransformer | None = None
        # What was made for shares of so many workers.
        self._validation: tuple[int, Validation] | None = None

    def here(self) -> bool:
        """That it has found its place."""
        return True

    def judge(self, uri: str) -> Verdict:
        """Of a committed checkpoint. Raises what storage does, GwpError of one that is not whole."""
        begin = time.perf_counter()
        # It unpickles what DeepSpeed wrote.
        import_deepspeed(self._device.type == "cuda")
        manifest = patiently(lambda: load_committed(uri))
        self._prepared.require_own(uri, manifest)
        model = self._model = self._model or empty_model(self._prepared.job, self._device)
        sweep()
        with Scratch() as scratch:
            patiently(lambda: load_weights(model, uri, manifest, scratch.folder))
        validation = self._of(model, manifest.world_size)
        losses = validation.losses()
        figures = validation.figures()
        picture = validation.picture
        return Verdict(manifest.step, losses, figures, picture, seconds=time.perf_counter() - begin)

    def _of(self, model: WorldActionTransformer, world: int) -> Validation:
        """The samples, in the shares of so many workers."""
        if self._validation and self._validation[0] == world:
            return self._validation[1]
        alone = Ranks(0, 1)
        # What is judged is in no cache.
        prepared = replace(self._prepared, cache=None)
        with Scratch() as scratch:
            encoders = Encoders(prepared, Node(alone, 0, 0, scratch.folder), self._device)
            dealt = Dealt(world, range(world))
            made = Validation(prepared, alone, model, self._device, encoders, dealt)
        self._validation = world, made
        return made


def empty_model(job: TrainJob, device: torch.device) -> WorldActionTransformer:
    """The model of a job on a device, in the form in which its workers have it, with whatever lay in
    memory for weights.
    """
    with torch.device("meta"):
        model = WorldActionTransformer(job.model_config_)
    if job.lora:
        add_lora(model, job.lora, job.run.seed)
    # DeepSpeed casts whole modules likewise.
    dtype = torch.bfloat16 if job.engine.precision == "bf16" else torch.float32
    return model.to(dtype).to_empty(device=device)


def load_weights(
    model: WorldActionTransformer, uri: str, manifest: CheckpointManifest, folder: Path
) -> None:
    """Give a model the weights of a committed checkpoint as its workers computed with them, not
    averaged. folder: empty, for what is fetched; GwpError when it has no room, or a file is altered
    """
    wanted = manifest.model_copy(update={"files": _files(manifest)})
    size = sum(entry.size for entry in wanted.files.values())
    with disk_told(folder, "the weights of a checkpoint", size):
        state = full_state(fetch(uri, wanted, folder) / "state")
    model.load_state_dict(state)


def _files(manifest: CheckpointManifest) -> dict[str, object]:
    """Those that weights are read from."""
    kept = {n: e for n, e in manifest.files.items() if not n.startswith("state/ema/")}
    if manifest.zero_stage == 3:
        # They follow from the masters, which lie beside the moments.
        return dict(kept)
    return {name: entry for name, entry in kept.items() if name.endswith("model_states.pt")}
