"""From a committed checkpoint to weights, and from weights to a policy bundle."""

import json
import tempfile
from pathlib import Path
from typing import Any

from gwp import storage
from gwp.errors import GwpError
from gwp.model.weights import save_weights
from gwp.policy.bundle import PolicyConfig, read_bundle, seal
from pipelines.jobs.resolve import FINAL_NOTE
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoint.checkpoints import fetch, latest_committed, load_committed
from pipelines.training.control.room import disk_told
from pipelines.training.finished import Weights, plain_weights, trained_state, write_adapter
from pipelines.training.origin import parents_of, stages_of
from pipelines.training.prepare import PreparedRun


def write_final(
    prepared: PreparedRun, checkpoint: str, run_id: str | None, weights: Weights = "ema"
) -> str:
    """Finished weights of a run with its codec and text encoder under `final/`; the form that
    `init` takes.
    """
    final = storage.join(prepared.uri, "final")
    # A run without an average has its own weights only.
    weights = weights if prepared.job.engine.ema_decay else "raw"
    with tempfile.TemporaryDirectory(prefix="gwp-final-") as scratch:
        folder = Path(scratch)
        out = folder / "final"
        # The weights are no more than what they are made of.
        size = 2 * sum(entry.size for entry in load_committed(checkpoint).files.values())
        with disk_told(folder, "the finished weights", size):
            state = _state(checkpoint, folder / "checkpoint")
            trained = trained_state(state, prepared.job, weights)
            write_adapter(out / "adapter", prepared.uri, trained, prepared.job)
            plain = plain_weights(trained, prepared.job)
            save_weights(out / "model", prepared.job.model_config_, plain)
        for part in ("codec", "text"):
            storage.download(storage.join(prepared.uri, part), out / part)
        note = {
            "run_id": run_id,
            "checkpoint": checkpoint,
            "weights": weights,
            "init": prepared.init,
            "parents": list(parents_of(prepared.init)),
        }
        # Last, and gone while older weights are replaced: with it the folder is whole.
        whole = storage.join(final, FINAL_NOTE)
        storage.remove(whole)
        storage.upload(out, final)
        storage.write_bytes(whole, json.dumps(note, indent=1).encode())
    return final


def _state(checkpoint: str, folder: Path) -> Path:
    """Local copy of a committed checkpoint, verified; GwpError without a complete manifest."""
    # Below this name `Uploads` puts the shares of all ranks.
    return fetch(checkpoint, load_committed(checkpoint), folder) / "state"


def export(
    run: str, out: str, *, weights: Weights = "ema", steps: int = 10, shift: float = 5.0
) -> str:
    """Make a policy bundle of a finished run folder and return the policy id. Nothing is left
    behind when it fails.
    """
    # The bundle says where it comes from.
    run = storage.absolute(run)
    out = storage.absolute(out)
    if not storage.exists(storage.join(run, "job.json")):
        raise GwpError(
            f"{run}: no job.json; give the folder of a training run (its storage and name)"
        )
    if storage.exists(storage.join(out, "MANIFEST.json")):
        raise GwpError(
            f"{out}: a bundle is there already, and bundles never change; choose another place"
        )
    record = json.loads(storage.read_bytes(storage.join(run, "job.json")))
    job = TrainJob.model_validate(record["job"])
    checkpoint = latest_committed(run)
    if checkpoint is None:
        raise GwpError(f"{run}: no committed checkpoint yet; train first")
    stats = json.loads(storage.read_bytes(storage.join(run, "stats.json")))
    embodiments = json.loads(storage.read_bytes(storage.join(run, "embodiments.json")))
    # Without statistics, which come from actions, nothing can be un-normalised.
    labelled = {n: e for n, e in embodiments.items() if n in stats}
    if not labelled:
        raise GwpError(
            f"{run}: the run saw no actions, so there is no policy to export; run the policy stage"
        )
    uri, manifest = checkpoint
    settings = PolicyConfig(
        family=job.model_config_.family,
        model_dim=job.model_config_.action_channels,
        canvas=job.data.canvas,
        window=job.data.window,
        steps=steps,
        shift=shift,
        trained_delay=_trained_delay(job),
        masking=job.objective.masking,
        visibility=job.model_config_.visibility,
        actions=job.model_config_.actions,
    )
    # Built and sealed here, then copied: a bundle in the making is never seen at `out`.
    with tempfile.TemporaryDirectory(prefix="gwp-export-") as scratch:
        folder = Path(scratch)
        state = _state(uri, folder / "checkpoint")
        bundle = folder / "bundle"
        plain = plain_weights(trained_state(state, job, weights), job)
        save_weights(bundle / "model", job.model_config_, plain)
        for part in ("codec", "text"):
            storage.download(storage.join(run, part), bundle / part)
        (bundle / "policy.json").write_text(settings.model_dump_json(indent=1))
        (bundle / "embodiments.json").write_text(json.dumps(labelled, indent=1))
        (bundle / "stats.json").write_text(json.dumps(stats, indent=1))
        lineage = _lineage(run, uri, manifest.samples_seen, record)
        (bundle / "lineage.json").write_text(json.dumps(lineage, indent=1))
        # The last change: the manifest holds the hash of every file.
        policy_id = seal(bundle)
        # What cannot be read back is not published.
        read_bundle(bundle)
        _publish(bundle, out)
    return policy_id


def _trained_delay(job: TrainJob) -> int:
    """Longest clean prefix that training showed the model, control steps, as
    `gwp.model.draws` draws it; 0: none.
    """
    objective = job.objective
    if objective.chunk_prefix == 0:
        return 0
    return min(objective.max_prefix, job.data.window.chunk - 1)


def _publish(bundle: Path, out: str) -> None:
    """Copy a sealed bundle to `out`. The manifest goes last: a bundle without it does not
    exist.
    """
    manifest = (bundle / "MANIFEST.json").read_bytes()
    (bundle / "MANIFEST.json").unlink()
    storage.upload(bundle, out)
    # Create-only, so that of two exports to one place the second fails.
    storage.write_bytes(storage.join(out, "MANIFEST.json"), manifest, create_only=True)


def _lineage(run: str, checkpoint: str, samples: int, record: dict[str, Any]) -> dict[str, Any]:
    """The run, its checkpoint, and the runs before it, oldest last."""
    chain = []
    uri: str | None = run
    while uri:
        job = json.loads(storage.read_bytes(storage.join(uri, "job.json")))
        note = storage.join(uri, "run_id")
        run_id = storage.read_bytes(note).decode() if storage.exists(note) else None
        chain.append(
            {
                "run": uri,
                "stage": job["job"]["stage"],
                "config_hash": job["config_hash"],
                "mlflow_run_id": run_id,
                "sources": [s["uri"] for s in job["job"]["data"]["sources"]],
            }
        )
        # The chain ends at weights that no run of ours made, or whose run is gone. A bundle says
        # itself what came before it.
        init = job["init"]
        parent = init.removesuffix("/final") if init and init.endswith("/final") else None
        uri = parent if parent and storage.exists(storage.join(parent, "job.json")) else None
        if init and uri is None:
            chain += stages_of(init)
    return {
        "checkpoint": checkpoint,
        "samples_seen": samples,
        "config_hash": record["config_hash"],
        "stages": chain,
    }
