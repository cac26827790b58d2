"""What a rank begins with: the model with its first weights, or the state of the last checkpoint.

Each machine fetches and converts once, whatever the number of its ranks; all functions here are
collective. Called by the training loop before it takes steps.
"""

import json
from pathlib import Path

from gwp import storage
from gwp.model.adapters import base_digest
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights import build_model, load_model, locate, open_checkpoint
from gwp.model.weights.derive import begin_as, require_same
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    DamagedError,
    fetch,
    set_aside,
)
from pipelines.training.control.room import disk_told
from pipelines.training.engine.deepspeed_engine import convert_to_universal
from pipelines.training.engine.node import Node
from pipelines.training.prepare import PreparedRun

_CHECKPOINT = "checkpoint"
BASE_NOTE = "base.json"
"""File of a run folder: digest of the weights beside which its adapters are trained."""


def first_model(prepared: PreparedRun, node: Node, resumes: bool) -> WorldActionTransformer:
    """The model in fp32: with the weights of `init` where the run begins there, else drawn by the
    job's seed, the same on every rank.
    """
    config = prepared.job.model_config_
    # A checkpoint brings its own weights; those of `init` would be read for nothing.
    if not prepared.init or resumes:
        model = build_model(config, prepared.job.run.seed)
        if not resumes:
            _note_base(prepared, node, model)
        return model.train()
    uri = locate(prepared.init)
    local = Path(uri.removeprefix("file://"))
    if storage.is_remote(uri):
        local = node.folder / "init"
        node.once(lambda: storage.download(uri, local))
    require_same(open_checkpoint(local), config, uri)
    model = load_model(local)
    begin_as(model, config)
    _note_base(prepared, node, model)
    return model.train()


def _note_base(prepared: PreparedRun, node: Node, model: WorldActionTransformer) -> None:
    """Where adapters are trained: write down which weights they stand beside. On rank 0."""
    if prepared.job.lora and node.leads:
        note = json.dumps({"sha256": base_digest(model)})
        storage.write_bytes(storage.join(prepared.uri, BASE_NOTE), note.encode())


def fetch_state(
    prepared: PreparedRun, node: Node, world: int, committed: tuple[str, CheckpointManifest]
) -> bool:
    """Bring the state of a checkpoint to this machine; whether it had to be converted because
    another number of ranks, or another ZeRO stage, wrote it. world: ranks now
    """
    uri, manifest = committed
    before = (manifest.world_size, manifest.zero_stage)
    # Without ZeRO every rank has all of the state, so it is in no form of its own.
    converted = before != (world, prepared.job.engine.zero_stage) and before[1] > 0
    size = sum(entry.size for entry in manifest.files.values())

    def bring() -> None:
        try:
            # The universal form lies beside the one that it is made of.
            with disk_told(node.folder, "the checkpoint", size * (2 if converted else 1)):
                state = fetch(uri, manifest, node.folder / _CHECKPOINT) / "state"
                if converted:
                    convert_to_universal(state)
        except DamagedError as error:
            set_aside(uri, str(error))
            # No StoppedError: the next start of the workers takes the one before.
            raise RuntimeError(f"{error}. The run goes on from the one before") from error

    node.once(bring)
    return converted


def state_folder(node: Node) -> Path:
    """Where `fetch_state` left the state on this machine."""
    return node.folder / _CHECKPOINT / "state"


def remove_state(node: Node) -> None:
    """Remove it, when every rank has loaded it."""
    node.remove(_CHECKPOINT)
