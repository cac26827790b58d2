"""The one training loop, run by every rank of every stage.

Order that matters: build in fp32, load weights, create the engine, then EMA, then resume.
Checkpoints are committed by our own protocol (`pipelines.training.checkpoints`); what is
reported to Ray is a pointer.
"""

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from torch import Tensor
from torch import distributed as dist

from gwp import storage
from gwp.model.codecs.cached import CachedTextEncoder, from_stored
from gwp.model.codecs.text import TextTable, load_text_encoder
from gwp.model.codecs.video import load_video_codec
from gwp.model.objective import Batch, draw_video_only, idle_loss, training_losses
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights import build_model, load_model, locate, open_checkpoint
from gwp.model.weights.derive import require_same
from pipelines.tracking.run_log import RunLog
from pipelines.training.checkpoints import (
    CheckpointManifest,
    checkpoint_uri,
    commit,
    fetch,
    latest_committed,
    next_attempt,
    prune,
    upload_files,
)
from pipelines.training.deepspeed_engine import Engine, convert_to_universal
from pipelines.training.ema import Ema
from pipelines.training.failures import StoppedError, lasting
from pipelines.training.prepare import PreparedRun
from pipelines.training.stream import batches

# Below this many broken samples their share says nothing.
_FEW_BROKEN = 20
# Bad losses that a message names.
_NAMED = 4


def train_loop(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker. `config`: {"prepared": PreparedRun, "run_id": str |
    None, "tracking_uri": str | None}.
    """
    prepared: PreparedRun = config["prepared"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    log = (
        RunLog(config["run_id"], config["tracking_uri"]) if rank == 0 and config["run_id"] else None
    )
    with tempfile.TemporaryDirectory(prefix="gwp-worker-") as scratch:
        try:
            with lasting():
                loop = _Loop(prepared, rank, world, Path(scratch))
            loop.run(log)
        finally:
            if log:
                log.flush()


class _Loop:
    def __init__(self, prepared: PreparedRun, rank: int, world: int, scratch: Path) -> None:
        self.prepared, self.job, self.rank, self.world, self.scratch = (
            prepared,
            prepared.job,
            rank,
            world,
            scratch,
        )
        self.attempt = int(self._agreed(next_attempt(prepared.uri) if rank == 0 else 0))
        found = latest_committed(prepared.uri) if rank == 0 else None
        self.found = self._agreed(found)
        model = self._model()
        universal = False
        if self.found:
            uri, manifest = self.found
            state = fetch(uri, manifest, self.scratch / "checkpoint") / "state"
            universal = self.found[1].world_size != world
            if universal:
                convert_to_universal(state)
        self.engine = Engine(model, self.job, load_universal=universal)
        self.ema = Ema(self.engine, self.job.engine.ema_decay, rank, world)
        self.step = self.samples_seen = self.skipped = 0
        self.good = f"{self.found[0]} (step {self.found[1].step})" if self.found else "none yet"
        if self.found:
            self._resume(*self.found)
        self._load_frozen()

    def _agreed(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def _model(self) -> WorldActionTransformer:
        config = self.job.model_config_
        if not self.prepared.init or self.found:
            return build_model(config, self.job.run.seed).train()
        uri = locate(self.prepared.init)
        local = (
            storage.download(uri, self.scratch / "init")
            if storage.is_remote(uri)
            else Path(uri.removeprefix("file://"))
        )
        require_same(open_checkpoint(local), config, uri)
        return load_model(local).train()

    def _resume(self, uri: str, manifest: CheckpointManifest) -> None:
        self.prepared.require_own(uri, manifest)
        self.engine.load(self.scratch / "checkpoint" / "state")
        self.ema.load(self.scratch / "checkpoint" / "state")
        self.step, self.samples_seen = manifest.step, manifest.samples_seen
        if self.rank == 0:
            event = {
                "event": "resumed",
                "step": self.step,
                "attempt": self.attempt,
                "world_size": self.world,
                "time": time.time(),
            }
            storage.write_bytes(
                storage.join(self.prepared.uri, "events", f"resumed-a{self.attempt}.json"),
                json.dumps(event).encode(),
            )

    def _load_frozen(self) -> None:
        cache = self.prepared.cache
        if cache:
            self.text = TextTable(CachedTextEncoder(cache))
        else:
            for part in ("codec", "text"):
                storage.download(storage.join(self.prepared.uri, part), self.scratch / part)
            self.codec = load_video_codec(self.scratch / "codec")
            self.text = TextTable(load_text_encoder(self.scratch / "text"))
        self.texts: dict[str, str] = json.loads(
            storage.read_bytes(storage.join(self.prepared.uri, "texts.json"))
        )

    def run(self, log: RunLog | None) -> None:
        job = self.job
        total = job.run.steps
        stream = batches(
            ray.train.get_dataset_shard("train"), self.samples_seen, self.rank, self.world
        )
        waited, begun = 0.0, self.samples_seen
        started = time.perf_counter()
        while self.step < total:
            begin = time.perf_counter()
            with lasting():
                raw = next(stream)
            waited += time.perf_counter() - begin
            if job.run.record_samples:
                self._record(raw)
            with lasting():
                losses = self._train_step(raw)
            self.step += 1
            self.samples_seen += int(raw["batch"][0])
            stop = False
            if self.step % job.run.log_every == 0 or self.step in (1, total):
                elapsed = time.perf_counter() - started
                skipped = self._progress(log, losses, elapsed, waited)
                # Every rank knows the sum, so all of them stop at the same step.
                stop = skipped >= _FEW_BROKEN and skipped > job.data.max_broken * (
                    self.samples_seen - begun
                )
                started, waited = time.perf_counter(), 0.0
            if self.step % job.run.checkpoint_every == 0 or self.step == total or stop:
                self._checkpoint(log, losses)
            if stop:
                quarantine = storage.join(self.prepared.uri, "quarantine")
                raise StoppedError(
                    f"{skipped} of {self.samples_seen - begun} samples were broken by step "
                    f"{self.step}, "
                    f"more than data.max_broken {job.data.max_broken:g} allows; {quarantine} names "
                    "each with its reason. Mend the data, or raise data.max_broken; the run goes on "
                    "from its last checkpoint"
                )

    def _record(self, raw: dict[str, np.ndarray]) -> None:
        place = storage.join(
            self.prepared.uri,
            "consumed",
            f"a{self.attempt}",
            f"step_{self.step:06d}-rank{self.rank}.json",
        )
        taken = [
            {"position": int(p), "sample_id": str(i)}
            for p, i in zip(raw["position"], raw["sample_id"], strict=True)
        ]
        storage.write_bytes(place, json.dumps(taken).encode())

    def _train_step(self, raw: dict[str, np.ndarray]) -> dict[str, float]:
        job = self.job
        has_action = bool(raw["has_action"].any())
        # One draw for all ranks, so that their graphs are the same; then one stream of noise
        # per rank.
        shared = torch.Generator().manual_seed(_seed(job.run.seed, self.step, 0))
        own = torch.Generator().manual_seed(_seed(job.run.seed, self.step, 1 + self.rank))
        keep = raw["ok"].astype(bool)
        self._quarantine(raw, keep)
        has_action = self._anywhere(has_action)
        video_only = draw_video_only(job.objective.modes, has_action, shared)
        if not keep.any():
            # Nothing to learn here, but the other ranks wait in the all-reduce.
            loss, losses = idle_loss(self.engine.module, self._text_like()), {}
        else:
            result = training_losses(
                self.engine.module, self._batch(raw, keep), job.objective, video_only, own
            )
            loss = (
                result.total + idle_loss(self.engine.module, self._text_like())
                if video_only
                else result.total
            )
            parts = {
                "loss": loss.detach(),
                "loss_action": result.action,
                "loss_video": result.video,
            }
            losses = {k: float(v) for k, v in parts.items() if v is not None}
        self._require_finite(losses)
        norm = self.engine.step(loss, job.optimizer.lr_at(self.step, job.run.steps))
        if norm is not None and not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm}", self.step + 1)
        self.ema.update(self.step)
        return losses

    def _anywhere(self, flag: bool) -> bool:
        """Whether it holds on any rank; every rank must ask."""
        if self.world == 1:
            return flag
        box = torch.tensor([flag], dtype=torch.int32, device=self.engine.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return bool(box.item())

    def _require_finite(self, losses: dict[str, float]) -> None:
        """StoppedError on all ranks, before any takes the step, when a loss of any rank is not
        a finite number.
        """
        if not self._anywhere(not all(map(math.isfinite, losses.values()))):
            return
        shares: list[Any] = [losses] * self.world
        if self.world > 1:
            dist.all_gather_object(shares, losses)
        bad = [
            f"{name} is {value} on rank {rank}"
            for rank, share in enumerate(shares)
            for name, value in share.items()
            if not math.isfinite(value)
        ]
        raise self._diverged(", ".join(bad[:_NAMED]), self.step + 1)

    def _diverged(self, what: str, step: int) -> StoppedError:
        return StoppedError(
            f"step {step}: {what}. Training has stopped; its last good checkpoint: {self.good}. The "
            "same job would come to the same numbers: lower optimizer.lr, raise "
            "optimizer.warmup_steps, or look at the data, and start it under another run.name"
        )

    def _batch(self, raw: dict[str, np.ndarray], keep: np.ndarray) -> Batch:
        device = self.engine.device

        def take(name: str) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(raw[name][keep])).to(device)

        with torch.no_grad():
            latents = (
                from_stored(take("latents"))
                if "latents" in raw
                else self.codec.encode(take("frames"))
            )
            text = self.text.lookup([self.texts[key] for key in raw["text_key"][keep]]).to(device)
        state = take("state")
        return Batch(
            latents=latents,
            state=state.reshape(state.shape[0], 1, -1),
            actions=take("actions"),
            step_valid=take("step_valid"),
            dim_valid=take("dim_valid"),
            text=text,
            embodiment=take("embodiment_id"),
        )

    def _text_like(self) -> Tensor:
        return torch.empty(1, self.text.rows, self.text.dim, device=self.engine.device)

    def _quarantine(self, raw: dict[str, np.ndarray], keep: np.ndarray) -> None:
        if keep.all():
            return
        bad = [
            {"sample_id": str(i), "reason": str(r)}
            for i, r in zip(raw["sample_id"][~keep], raw["reason"][~keep], strict=True)
        ]
        self.skipped += len(bad)
        uri = storage.join(
            self.prepared.uri, "quarantine", f"step_{self.step:06d}-rank{self.rank}.json"
        )
        storage.write_bytes(uri, json.dumps(bad).encode())

    def _progress(
        self, log: RunLog | None, losses: dict[str, float], elapsed: float, waited: float
    ) -> int:
        """Tell how far this rank is; the number of samples that all ranks skipped since they
        started.
        """
        losses, skipped = self._over_ranks(losses)
        report = {
            "step": self.step,
            "pid": os.getpid(),
            "attempt": self.attempt,
            "time": time.time(),
            "skipped": skipped,
        }
        uri = storage.join(self.prepared.uri, "progress", f"rank-{self.rank}.json")
        storage.write_bytes(uri, json.dumps(report | losses).encode())
        if log and losses:
            extra = {
                "data_wait_share": waited / max(elapsed, 1e-9),
                "samples_seen": float(self.samples_seen),
            }
            extra["samples_skipped"] = float(skipped)
            extra["learning_rate"] = self.job.optimizer.lr_at(self.step - 1, self.job.run.steps)
            log.log_metrics(self.step, losses | extra)
        return skipped

    def _over_ranks(self, losses: dict[str, float]) -> tuple[dict[str, float], int]:
        """Mean of each loss and sum of skipped samples over all ranks."""
        shares: list[Any] = [(losses, self.skipped)] * self.world
        if self.world > 1:
            dist.all_gather_object(shares, (losses, self.skipped))
        keys = dict.fromkeys(key for share, _ in shares for key in share)
        mean = {
            key: float(np.mean([share[key] for share, _ in shares if key in share])) for key in keys
        }
        return mean, sum(skipped for _, skipped in shares)

    def _checkpoint(self, log: RunLog | None, losses: dict[str, float]) -> None:
        if log:
            # What a committed step measured must not be lost with a killed worker.
            log.flush(timeout_s=2.0)
        uri = checkpoint_uri(self.prepared.uri, self.step, self.attempt)
        if self._anywhere(not self.engine.finite()):
            # A finite loss and gradient may still have led here.
            raise self._diverged("a weight is not a finite number", self.step)
        with tempfile.TemporaryDirectory(prefix="gwp-save-") as scratch:
            folder = Path(scratch)
            self.engine.save(folder)
            self.ema.save(folder)
            if self.rank:
                # Every rank writes the same pointer files of DeepSpeed; one copy is enough.
                for name in ("latest", "zero_to_fp32.py"):
                    (folder / name).unlink(missing_ok=True)
            mine = upload_files(folder, storage.join(uri, "state"))
        shares: list[Any] = [None] * self.world
        if self.world > 1:
            dist.all_gather_object(shares, mine)
        else:
            shares = [mine]
        if self.rank == 0:
            files = {f"state/{name}": meta for share in shares for name, meta in share.items()}
            commit(
                uri,
                CheckpointManifest(
                    files=files,
                    step=self.step,
                    samples_seen=self.samples_seen,
                    world_size=self.world,
                    zero_stage=self.job.engine.zero_stage,
                    plan_hash=self.prepared.plan_hash,
                    config_hash=self.prepared.config_hash,
                    attempt=self.attempt,
                ),
            )
            prune(self.prepared.uri, self.job.run.keep)
            if log:
                log.set_tags({"gwp.checkpoint": uri, "gwp.checkpoint_step": str(self.step)})
        self.good = f"{uri} (step {self.step})"
        with tempfile.TemporaryDirectory() as pointer:
            (Path(pointer) / "pointer.json").write_text(json.dumps({"uri": uri, "step": self.step}))
            ray.train.report(
                {"step": self.step, **losses},
                checkpoint=ray.train.Checkpoint.from_directory(pointer),
            )


def _seed(seed: int, step: int, stream: int) -> int:
    """One seed per (run, step, stream)."""
    return int(np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0] >> 1)
