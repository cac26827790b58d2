"""Work on fixed buffers, recorded once and replayed: a CUDA graph, or the call that it is.

An eager pass launches some forty kernels per layer, which takes the host longer than the GPU
takes to run them for one robot. A graph launches all of them at once. What is recorded may read
nothing back, allocate nothing that outlives it, and finds its inputs where they were when it
was recorded.

Beside the solver, beneath `policy` (`RecordedSingle`) and `batching` (`RecordedPrefix`,
`recorded`).

Shape legend: B observations, p actions, d model channels, C latent channels, h w latent rows
and columns.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gwp.model.inference.layout import TextKeys
from gwp.policy.solver import Prefix, Solver

# As in PyTorch's own examples.
_WARM_UP = 3


def recorded(
    work: Callable[[], object], device: torch.device, pool: Any = None
) -> Callable[[], object]:
    """`work` as something to call again and again.

    On a GPU it is run a few times now, so it must do no harm to its buffers.

    pool: of `graph_pool`; graphs that never run at the same time may share one, because nothing
        they allocate outlives them
    """
    if device.type != "cuda":
        return work
    # Capture wants the warm-up on a side stream, ordered with the current one.
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        # Libraries choose their kernels and take their workspaces outside the recording.
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads (a text encoder, say) may allocate meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay


def graph_pool(device: torch.device) -> Any:
    """Memory for the temporaries of graphs that take turns; None where there are no graphs."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class RecordedPrefix:
    """Prefixes of up to `count` observations in buffers of its own; a recording per number of
    them.

    The engine's runner has one for its groups, `RecordedSingle` one for a robot. One thread at
    a time; what it returns is overwritten by the next call.
    """

    def __init__(self, solver: Solver, count: int, text_rows: int, future: bool = True) -> None:
        config, device = solver.model.config, solver.model.device
        C, h, w = solver.shapes.latent
        self._solver = solver
        self._pool = graph_pool(device)
        self._state = torch.zeros(count, 1, config.action_channels, device=device)
        self._reference = torch.zeros(count, C, 1, h, w, device=device)
        self._prefix = solver.empty(count, text_rows, config.experts, future)
        self._passes: dict[int, Callable[[], object]] = {}

    def record(self, count: int) -> None:
        """Prepare for `count` observations at once."""
        if count not in self._passes:
            work = partial(self._observe, count)
            self._passes[count] = recorded(work, self._solver.model.device, self._pool)

    def __call__(
        self, state_B1d: Tensor, reference_BC1hw: Tensor, text: TextKeys, embodiment_B: Tensor
    ) -> Prefix:
        """As `Solver.observe`; views of the buffers."""
        count = state_B1d.shape[0]
        self.record(count)
        # A recording reads where it was recorded, so what is new is copied there.
        prefix = self._prefix.rows(0, count)
        prefix.take(text, embodiment_B)
        self._state[:count].copy_(state_B1d)
        self._reference[:count].copy_(reference_BC1hw)
        self._passes[count]()
        return prefix

    def _observe(self, count: int) -> None:
        prefix = self._prefix.rows(0, count)
        state, reference = self._state[:count], self._reference[:count]
        self._solver.observe(state, reference, prefix.text, prefix.embodiment, prefix.cache)


class RecordedSingle:
    """`Solver.observe` and `Solver.act` for one robot, each as one recording.

    The policy makes one where recording pays. Results are tensors of their own, so that they
    outlive later calls; threads take turns.
    """

    def __init__(self, solver: Solver, text_rows: int) -> None:
        model = solver.model
        shape = (1, solver.shapes.chunk, model.config.action_channels)
        self._solver = solver
        self._text_rows = text_rows
        self._pool = graph_pool(model.device)
        # Recorded without a future; `observe` copies into a prefix that has room for one.
        self._observing = RecordedPrefix(solver, 1, text_rows, future=False)
        experts = solver.acting_experts
        self._prefix = solver.empty(1, text_rows, experts, future=solver.with_future)
        # What the recorded loop reads, and where it leaves its answer.
        self._noise = torch.zeros(shape, device=model.device)
        self._future: Tensor | None = None
        if solver.with_future:
            self._future = torch.zeros(1, *solver.future_shape(), device=model.device)
        self._given = torch.zeros(shape, device=model.device)
        self._padding = torch.zeros(1, shape[2], dtype=torch.bool, device=model.device)
        self._out = torch.zeros(shape, device=model.device)
        self._committed = torch.zeros(shape[:2], dtype=torch.bool, device=model.device)
        self._loops: dict[bool, Callable[[], object]] = {}
        self._alone = threading.Lock()

    def observe(
        self, state_B1d: Tensor, reference_BC1hw: Tensor, text: TextKeys, embodiment_B: Tensor
    ) -> Prefix:
        """As `Solver.observe` with B = 1, with space for a future."""
        prefix = self._solver.empty(1, self._text_rows, self._solver.model.config.experts)
        with self._alone:
            observed = self._observing(state_B1d, reference_BC1hw, text, embodiment_B)
            prefix.take(text, embodiment_B, observed.cache)
        return prefix

    def act(
        self,
        prefix: Prefix,
        noise_Bpd: Tensor,
        given_Bpd: Tensor | None = None,
        committed_Bp: Tensor | None = None,
        padding_Bd: Tensor | None = None,
        future_BCThw: Tensor | None = None,
    ) -> Tensor:
        """As `Solver.act` with B = 1: actions fp32 `[1, p, d]`, with or without promised ones."""
        promised = given_Bpd is not None and committed_Bp is not None
        # The buffers are one robot's at a time.
        with self._alone:
            # Recorded before they are filled: warming up writes into them.
            if promised not in self._loops:
                work = partial(self._act, promised)
                self._loops[promised] = recorded(work, self._solver.model.device, self._pool)
            self._prefix.take(prefix.text, prefix.embodiment, prefix.cache)
            self._noise.copy_(noise_Bpd)
            if self._future is not None and future_BCThw is not None:
                self._future.copy_(future_BCThw)
            if padding_Bd is None:
                self._padding.zero_()
            else:
                self._padding.copy_(padding_Bd)
            if given_Bpd is not None and committed_Bp is not None:
                self._given.copy_(given_Bpd)
                self._committed.copy_(committed_Bp)
            self._loops[promised]()
            # The buffer is overwritten by the next robot.
            return self._out.clone()

    def _act(self, promised: bool) -> None:
        given, committed = (self._given, self._committed) if promised else (None, None)
        self._out.copy_(
            self._solver.act(
                self._prefix, self._noise, given, committed, self._padding, self._future
            )
        )
