"""The policy's numbers on the rows of the batch: encode into them, step, move, read them."""

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np
import torch

from gwp.policy.batching.schedule import BUCKETS, Move
from gwp.policy.batching.slots import Slots, fill, step, whole
from gwp.policy.graphs import RecordedPrefix, graph_pool, recorded
from gwp.policy.inputs import AdmittedObservation
from gwp.policy.policy import Policy


class ModelRunner:
    """Buffers and recordings of one engine.

    It knows rows, not requests; who holds which row is the `Schedule`'s business.

    Made and used by the engine's thread alone, in `torch.inference_mode()`. A call that fails
    leaves the rows that it writes in an unknown state; rows are independent of each other, and
    `encode` writes all of a row.
    """

    def __init__(
        self,
        policy: Policy,
        sizes: Collection[int],
        group: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """sizes: numbers of rows that a batch may have; group: most observations encoded at
        once.
        """
        solver = policy.solver
        text_rows = policy.text.rows
        self._policy = policy
        self._device = policy.device
        self._clock = clock

        # Everything is allocated and recorded here: while robots wait, nothing is made anew.
        self._slots = Slots.empty(solver, max(sizes), text_rows)
        self._observe = RecordedPrefix(solver, group, text_rows, future=False)
        for count in [size for size in BUCKETS if size <= group]:
            self._observe.record(count)

        # With and without promised actions: most robots promise none, and need no index per token.
        self._steps: dict[tuple[int, bool], Callable[[], object]] = {}
        pool = graph_pool(self._device)
        whole_requests = solver.with_future
        pass_of_all = None if whole_requests else solver.acting(self._slots.prefix)
        for size in sorted(sizes):
            rows = self._slots.rows(0, size)
            action_pass = pass_of_all
            if pass_of_all is not None and not solver.model.any_batch:
                action_pass = solver.acting(rows.prefix)
            for committed in (False, True):
                work = (
                    partial(whole, solver, rows, committed)
                    if action_pass is None
                    else partial(step, solver, rows, action_pass, committed)
                )
                self._steps[size, committed] = recorded(work, self._device, pool)

    def encode(self, observations: Sequence[AdmittedObservation], row: int) -> dict[str, float]:
        """Put new observations into the rows from `row` on.

        Returns milliseconds of `vae` and of `prefix`.
        """
        begin = self._clock()
        batch = self._policy.batch(observations)
        reference = self._policy.latents(batch.canvas)
        self._settle()
        encoded = self._clock()
        # Encoded when it was submitted: this finds it in memory.
        text = self._policy.text_keys([x.observation.prompt for x in observations])
        prefix = self._observe(batch.state, reference, text, batch.embodiment)
        fill(self._slots.rows(row, row + len(observations)), batch, prefix)
        self._settle()
        done = self._clock()
        return {"vae": (encoded - begin) * 1e3, "prefix": (done - encoded) * 1e3}

    def step(self, size: int, committed: bool) -> None:
        """One Euler step of the rows `0 .. size - 1`; all of them where acting denoises a future.

        committed: some of them have actions that are already promised
        """
        self._steps[size, committed]()
        self._settle()

    def chunks(self, rows: Sequence[int]) -> np.ndarray:
        """Denoised actions of these rows, fp32 `[len(rows), p, d]`: one copy, one wait."""
        chunks: np.ndarray = self._slots.x[list(rows)].cpu().numpy()
        return chunks

    def move(self, moves: Sequence[Move]) -> None:
        """Follow the schedule: one row takes the place of another, in order."""
        for move in moves:
            self._slots.move(move.source, move.target)

    def _settle(self) -> None:
        # Costs are measured by the clock, and kernels are only queued when their call returns.
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
