"""One optimiser step on a global batch, as a rank takes part in it.

A rank cuts its share of the batch into micro-batches and accumulates their gradients. Losses are
divided by what is learnt in the whole global batch, and every draw belongs to a sample, so the
step does not depend on how many ranks and micro-batches share it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gwp.data.records import StreamBatch
from gwp.model.cost import tokens_of, training_flop
from gwp.model.draws import disturbed, draw_noise, generator
from gwp.model.objective import (
    Counts,
    action_weights,
    counts_of,
    draw_video_only,
    idle_loss,
    levels_of,
    training_losses,
)
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.live import Work
from pipelines.training.control.journal import Journal
from pipelines.training.control.stopped import StoppedError
from pipelines.training.engine.deepspeed_engine import Engine
from pipelines.training.engine.ema import Ema
from pipelines.training.engine.ranks import Ranks
from pipelines.training.measure.account import Account
from pipelines.training.samples.encoders import Encoders
from pipelines.training.samples.shares import PADDING

# Samples that a message names; all are in the journal.
_NAMED = 4


class TrainStep:
    """What takes the steps of one rank; the training loop makes it and calls it with each share.

    broken:  samples of this rank that could not be read, in this attempt
    skipped: steps that were not taken because a loss or gradient was no finite number; the same
             on every rank
    at_once: samples of the largest micro-batch of the newest step
    account: what steps come to, which the step feeds and whoever logs reads
    """

    def __init__(
        self, job: TrainJob, ranks: Ranks, engine: Engine, ema: Ema, encoders: Encoders
    ) -> None:
        self._job = job
        self._ranks = ranks
        self._engine = engine
        self._ema = ema
        self._encoders = encoders
        self.broken = 0
        self.skipped = 0
        self.at_once = 0
        # Of one sample of the newest step: arithmetic of the model, and tokens.
        self._flop = self._tokens = 0
        self.account = Account(job, ranks, engine.device)
        # Of the steps skipped just now, one behind the other.
        self._in_a_row = 0

    def take(self, step: int, raw: StreamBatch, start: int, journal: Journal) -> dict[str, float]:
        """Take optimiser step `step` (from 0) on this rank's share of the global batch that
        begins at plan position `start`.

        Returns the losses of the whole global batch, none where it has no whole sample.
        Collective. StoppedError after `optimizer.max_skipped` steps in a row without a finite
        loss.
        """
        job = self._job
        objective, seed = job.objective, job.run.seed
        clock = self.account.clock
        # Padding draws as some sample does; nothing that it draws counts.
        positions = np.maximum(raw["position"], 0).tolist()
        self.broken += journal.quarantine(step, raw, raw["ok"].astype(bool))
        ok, step_valid, dim_valid, has_action = (
            torch.from_numpy(raw[name].astype(bool))
            for name in ("ok", "step_valid", "dim_valid", "has_action")
        )
        mixed = job.data.batches == "mixed"
        # What could not be read counts for nothing anyway, and needs no mask.
        labelled = (has_action | ~ok).tolist() if mixed else None
        levels = levels_of(objective, seed, positions, raw["actions"].shape[1], labelled)
        mine = counts_of(action_weights(objective, levels, step_valid, dim_valid, ok), ok)
        acting = float((has_action & ~levels.video_only).any())
        with clock.within("exchange"):
            action, video, acting = self._ranks.summed([mine.action, mine.video, acting])
        counts = Counts(action, video)
        # The same on all ranks, so that their graphs are: of the sum, and by one draw.
        video_only = acting == 0
        if not mixed:
            video_only = draw_video_only(objective.modes, acting > 0, generator(seed, start))
        parts = micro_batches(len(positions), job.passes(self._ranks.world))
        self.at_once = max(rows.stop - rows.start for rows in parts)
        # Of this rank: the sums over its micro-batches, by name. They stay on the device, so that
        # it need not wait for the host between passes.
        losses: dict[str, Tensor] = {}
        for rows in parts:
            self._engine.begin(last=rows is parts[-1])
            batch = self._encoders.batch(raw, rows, clock)
            future, actions = batch.latents[0, :, 1:].shape, batch.actions.shape[1:]
            if rows is parts[0]:
                self._count(
                    batch.latents.shape[2:],
                    None if video_only else actions[0],
                    batch.text.shape[1],
                )
            noise = draw_noise(seed, positions[rows], future, actions)
            state = disturbed(batch.state, objective.state_noise, seed, positions[rows])
            batch = replace(batch, state=state)
            with clock.within("forward"):
                result = training_losses(
                    self._engine.module,
                    batch,
                    objective,
                    video_only,
                    levels.of(rows),
                    noise,
                    counts,
                )
                loss = result.total
                if video_only:
                    # Video alone leaves parameters without a gradient, and sharding engines want
                    # one of each.
                    loss = loss + idle_loss(self._engine.module, self._encoders.text_like())
            with clock.within("backward"):
                self._engine.backward(loss)
            self.account.losses.add(result, levels.of(rows), raw["source"][rows])
            for name, part in (
                ("loss", result.total),
                ("loss_action", result.action),
                ("loss_video", result.video),
            ):
                if part is not None:
                    before = losses.get(name, torch.zeros((), device=part.device))
                    losses[name] = before + part.detach().double()
        with clock.within("optimiser"):
            norm = self._engine.step(job.optimizer.lr_at(step, job.run.steps))
        with clock.within("exchange"):
            # Behind the passes: only here, and for the norm, the host waits for the device.
            own = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
            sums = self._ranks.summed(list(own.values()))
        taken = math.isfinite(norm) and all(map(math.isfinite, sums))
        if taken:
            with clock.within("optimiser"):
                self._ema.update(step)
        size = int(raw["batch"][0])
        each = (self._tokens, self._flop, self._encoders.flop)
        self.account.stepped(Work(size, *(float(size * one) for one in each)), norm)
        if taken:
            self._in_a_row = 0
            return dict(zip(own, sums, strict=True)) if counts.video else {}
        self._skip(step, raw, own, norm, journal)
        return {}

    def _count(self, latent: Sequence[int], actions: int | None, text_rows: int) -> None:
        """What a sample of this step costs. latent: frames, rows and columns; actions: rows of a
        chunk, None: video only
        """
        frames, rows, columns = latent
        config = self._job.model_config_
        future = actions is None or self._job.objective.video_weight > 0
        tokens = tokens_of(config, (frames, rows, columns), actions, future)
        self._tokens = sum(tokens.values())
        self._flop = training_flop(config, tokens, text_rows)

    def _skip(
        self,
        step: int,
        raw: StreamBatch,
        mine: dict[str, float],
        norm: float,
        journal: Journal,
    ) -> None:
        """Count a step that was not taken, and note what this rank had of it; StoppedError when
        it was one too many in a row. Every rank comes here at the same steps.
        """
        self.skipped += 1
        self._in_a_row += 1
        # Where only the gradient is no number, every sample may be the reason.
        own = not all(map(math.isfinite, mine.values()))
        ids = [str(name) for name in raw["sample_id"][raw["position"] != PADDING]]
        shares = self._ranks.gathered((own, mine["loss"], ids))
        worst = [share for share in shares if share[0]] or shares
        names = [name for _, _, names in worst for name in names]
        if self._ranks.rank == 0:
            journal.skipped(step, [loss for _, loss, _ in shares], norm, names)
        most = self._job.optimizer.max_skipped
        if self._in_a_row <= most:
            return
        named = ", ".join(names[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        begun = step + 1 - most
        what = f"step {step + 1}" if most == 0 else f"steps {begun} to {step + 1}"
        raise StoppedError(
            f"{what}: the loss is {worst[0][1]}, the gradient's norm {norm}; samples of the last "
            f"step: {named}{more}"
        )


def micro_batches(size: int, passes: int) -> list[slice]:
    """`size` samples cut into at most `passes` parts, as even as can be; none is empty."""
    edges = [size * i // passes for i in range(passes + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]
