"""The weights of a checkpoint, as what comes after the run takes them: plain and whole, whatever
of them trained.
"""

import json
from pathlib import Path
from typing import Literal

from torch import Tensor

from gwp import storage
from gwp.errors import GwpError
from gwp.model.adapters import merged, save_adapter
from pipelines.jobs.train_job import TrainJob
from pipelines.jobs.trained import shapes_of
from pipelines.training.engine.deepspeed_engine import full_state
from pipelines.training.engine.ema import load_ema
from pipelines.training.engine.optimizer import whole_of
from pipelines.training.initial_state import BASE_NOTE

Weights = Literal["ema", "raw"]


def trained_state(state: Path, job: TrainJob, weights: Weights) -> dict[str, Tensor]:
    """fp32 weights of a fetched checkpoint, in the names that they train under. GwpError where
    averaged ones are asked for and there are none.
    """
    if weights == "raw":
        return full_state(state)
    averaged = load_ema(state)
    if not averaged:
        raise GwpError(
            f"{state}: the checkpoint holds no average of weights; export with --weights raw"
        )
    if averaged.keys() >= shapes_of(job.model_config_).keys():
        return averaged
    # What does not train has no average, and needs none.
    return full_state(state) | averaged


def plain_weights(trained: dict[str, Tensor], job: TrainJob) -> dict[str, Tensor]:
    """Those of a model without adapters that computes the same."""
    return merged(job.lora, trained) if job.lora else trained


def write_adapter(folder: Path, run: str, trained: dict[str, Tensor], job: TrainJob) -> None:
    """The adapters of a run alone, with the digest of what they stand beside; nothing without."""
    if job.lora is None:
        return
    config = job.model_config_
    note = json.loads(storage.read_bytes(storage.join(run, BASE_NOTE)))
    save_adapter(folder, config, job.lora, trained, whole_of(config, job.lora), note["sha256"])
