"""The sides that train on tensors in memory. Each has one method: take a step.

bare    model, losses, backward, clipping, AdamW: what nobody can do without
masked  the same with one attention over all tokens under a mask, instead of one by segment
materialised  as masked, by a kernel that writes the scores of all pairs to memory: what is left where no
        fast one takes a mask
compiled  as bare, with each block compiled
zero N  the same under our engine: DeepSpeed with ZeRO stage N, one rank
products  the matrix and attention products of a bare step, forward and backward, alone
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from clusters.services import free_ports
from gwp.model.draws import draw_noise
from gwp.model.objective import levels_of, training_losses
from gwp.model.transformer import WorldActionTransformer
from pipelines.bench.train.problem import Problem
from pipelines.compat import operators_of

Step = Callable[[], object]

_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", *_ATTENTION, *(f"{n}_backward" for n in _ATTENTION)}


def side(name: str, problem: Problem) -> Step:
    """A side, ready to take steps."""
    if name == "bare":
        return _Bare(problem).step
    if name == "compiled":
        return _Bare(problem, compiled=True).step
    if name in ("masked", "materialised"):
        _mask_attention(materialised=name == "materialised")
        return _Bare(problem).step
    if name == "products":
        return _products(_Bare(problem).step)
    return _zero(problem, int(name.removeprefix("zero ")))


class _Bare:
    """A loop of plain PyTorch."""

    def __init__(self, problem: Problem, compiled: bool = False) -> None:
        self._loss = _Loss(problem)
        self._job = problem.job()
        model = _model(problem)
        if compiled:
            for block in model.blocks:
                block.compile()
        # AdamW keeps what it changes in fp32, as an engine does.
        self._masters: list[Tensor] = list(model.parameters())
        self._model = model.to(problem.dtype)
        if problem.precision == "bf16":
            self._masters = [p.detach().float().requires_grad_() for p in model.parameters()]
        given = self._job.optimizer
        self._optimizer = torch.optim.AdamW(
            self._masters,
            lr=given.lr,
            betas=given.betas,
            weight_decay=given.weight_decay,
            fused=True,
        )

    def step(self) -> None:
        """One optimiser step."""
        self._loss(self._model).backward()
        parameters: list[Tensor] = list(self._model.parameters())
        apart = parameters[0] is not self._masters[0]
        if apart:
            for master, parameter in zip(self._masters, parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, self._job.optimizer.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if apart:
            with torch.no_grad():
                for parameter, master in zip(parameters, self._masters, strict=True):
                    parameter.copy_(master)


class _Loss:
    """The loss of the batch, with draws of noise as a step makes them; `step` counts them."""

    def __init__(self, problem: Problem) -> None:
        self._objective = problem.job().objective
        self._batch = problem.tensors()
        self._steps = 0

    def __call__(self, model: WorldActionTransformer) -> Tensor:
        batch = self._batch
        size, chunk = batch.actions.shape[:2]
        positions = list(range(self._steps * size, (self._steps + 1) * size))
        self._steps += 1
        levels = levels_of(self._objective, 0, positions, chunk)
        noise = draw_noise(0, positions, batch.latents[0, :, 1:].shape, batch.actions.shape[1:])
        return training_losses(model, batch, self._objective, False, levels, noise).total


def _model(problem: Problem) -> WorldActionTransformer:
    torch.manual_seed(0)
    return WorldActionTransformer(problem.job().model_config_).to(problem.device).train()


def _zero(problem: Problem, stage: int) -> Step:
    from pipelines.training.engine.deepspeed_engine import Engine

    # DeepSpeed looks for a group of processes in the environment.
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports(1)[0]),
    }
    job = problem.job(zero=stage)
    engine, loss = Engine(_model(problem), job), _Loss(problem)

    def step() -> None:
        engine.begin(last=True)
        engine.backward(loss(engine.module))
        engine.step(job.optimizer.lr)

    return step


def _mask_attention(materialised: bool = False) -> None:
    """From here on, in this process, attention is one product over all tokens under a mask."""
    import gwp.model.block as block

    masks: dict[tuple[Any, ...], Tensor] = {}

    def masked(
        q_BLHh: Tensor, k_BnHh: Tensor, v_BnHh: Tensor, bounds: Any, seen: Tensor | None = None
    ) -> list[Tensor]:
        # The measured batch has no sample without actions.
        assert seen is None
        key = (bounds, q_BLHh.device)
        if key not in masks:
            mask = torch.zeros(q_BLHh.shape[1], k_BnHh.shape[1], dtype=torch.bool)
            for start, stop, end in bounds:
                mask[start:stop, :end] = True
            masks[key] = mask.to(q_BLHh.device)
        q, k, v = (x.transpose(1, 2) for x in (q_BLHh, k_BnHh, v_BnHh))
        with sdpa_kernel(SDPBackend.MATH) if materialised else nullcontext():
            out_BHLh = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[key])
        return [out_BHLh.transpose(1, 2)]

    block.block_causal = masked


def _products(step: Step) -> Step:
    calls = operators_of(step, PRODUCTS)

    def run() -> None:
        with torch.no_grad():
            for call in calls:
                call()

    return run
