"""Checkpoints: read every published form strictly, write ours, make one family from another,
compare two.

`files` reads tensors, `names` translates them, `checkpoint` tells what a checkpoint is, `load`
fills models, `save` writes folders, `derive` converts, `compare` inspects.
"""

from gwp.model.weights.checkpoint import Checkpoint, open_checkpoint, read_config
from gwp.model.weights.files import locate, weight_files
from gwp.model.weights.load import build_model, load_model
from gwp.model.weights.names import published_name
from gwp.model.weights.save import save_weights

__all__ = [
    "Checkpoint",
    "build_model",
    "load_model",
    "locate",
    "open_checkpoint",
    "published_name",
    "read_config",
    "save_weights",
    "weight_files",
]
