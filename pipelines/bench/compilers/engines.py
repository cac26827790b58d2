"""The ways to run the passes of acting: ours, torch's operators, and compilers.

Every one gets what helps it: static shapes, weights that it may pack and fold, its own threads.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.block import Block
from gwp.model.config import GROUPS, Family, Group
from gwp.model.flow import solver_sigmas
from gwp.model.inference.compiled import NativeLayers
from gwp.model.inference.eager import EagerLayers
from gwp.model.inference.fused import FusedTransformer
from gwp.model.inference.layout import Noise
from gwp.model.transformer import Tokens, WorldActionTransformer
from gwp.policy.solver import Shapes, Solver
from pipelines.bench.act.bench import hardware
from pipelines.bench.act.sizes import SIZES, random_model
from pipelines.bench.compilers.passes import PlainPass
from pipelines.compat import ahead_of_time

STEPS = 10
Cases = dict[str, Callable[[], Any]]
"""By name: `prefix`; `step`, an Euler step behind it; `act`, the prefix and ten steps, which
returns actions; `joint`, a step of all tokens together, which returns actions and future.
"""
_Pass = Callable[..., Any]


@dataclass(frozen=True)
class Problem:
    """One model of a size, and one observation of it; all random, all from one seed."""

    model: WorldActionTransformer
    solver: Solver
    tokens: Tokens
    text: Tensor
    sigmas: list[float]

    @property
    def deltas(self) -> list[float]:
        """Euler steps, between noise levels."""
        return [after - now for now, after in pairwise(self.sigmas)]

    @classmethod
    def draw(cls, size: str, family: Family) -> "Problem":
        shape = SIZES[size]
        config = shape.config(family)
        model = random_model(config, torch.device("cpu"), torch.float32)
        generator = torch.Generator().manual_seed(7)

        def randn(*sizes: int) -> Tensor:
            return torch.randn(1, *sizes, generator=generator)

        with torch.no_grad():
            for parameter in model.parameters():
                # Compilers drop a bias of zeros and a norm of ones; those of a trained model stay.
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        C, (rows, columns), d = shape.channels, shape.latent, config.action_channels
        latent = (C, 1, rows, columns)
        tokens = Tokens(randn(1, d), randn(*latent), randn(shape.chunk, d), randn(*latent))
        shapes = Shapes(shape.chunk, (C, rows, columns), 1)
        return cls(
            model,
            Solver(FusedTransformer(model), shapes, STEPS),
            tokens,
            randn(shape.text[0], config.text_dim),
            solver_sigmas(STEPS).tolist(),
        )


def _ours(problem: Problem, *_: object) -> Cases:
    if not isinstance(problem.solver.model.layers, NativeLayers):
        raise GwpError("there is no compiled code to compare with; see `gwp doctor`")
    return _solver_cases(problem)


def _eager(problem: Problem, *_: object) -> Cases:
    blocks = [block for block in problem.model.blocks if isinstance(block, Block)]
    with torch.inference_mode():
        problem.solver.model.layers = EagerLayers(blocks, problem.model.config)
    return _solver_cases(problem)


def _solver_cases(problem: Problem) -> Cases:
    solver, model, tokens = problem.solver, problem.solver.model, problem.tokens
    state, reference = cast(Tensor, tokens.state), cast(Tensor, tokens.reference)
    noise, future = cast(Tensor, tokens.action), cast(Tensor, tokens.future)
    with torch.inference_mode():
        text, ids = model.text_keys(problem.text), torch.zeros(1, dtype=torch.long)
        prefix = solver.observe(state, reference, text, ids)
        through = solver.acting(prefix)
        # A cache of its own: the joint pass writes keys of state and reference as well.
        whole = solver.observe(state, reference, text, ids)
        together = model.prepare(tokens, whole.cache, text, ids)
    level, delta = solver.level(0), problem.deltas[0]
    levels: dict[Group, Noise] = {"S": solver.clean, "R": solver.clean, "A": level, "F": level}

    @torch.inference_mode()
    def observe() -> object:
        return solver.observe(state, reference, text, ids, prefix.cache)

    @torch.inference_mode()
    def step() -> Tensor:
        return noise + delta * solver.velocity(through, noise, level)

    @torch.inference_mode()
    def act() -> Tensor:
        observe()
        return solver.act(prefix, noise)

    @torch.inference_mode()
    def joint() -> tuple[Tensor, Tensor]:
        out = model.run(tokens, levels, together, ("A", "F"))
        action, velocity = cast(Tensor, out.action), cast(Tensor, out.future)
        return noise + delta * action, future + delta * velocity

    return {"prefix": observe, "step": step, "act": act, "joint": joint}


def _plain_cases(
    problem: Problem, compiled: Callable[[PlainPass, tuple[Tensor, ...]], _Pass]
) -> Cases:
    """The cases by what a compiler makes of plain passes; it is given inputs of their shapes."""
    given, text, (delta, *_) = problem.tokens.present(), problem.text, problem.deltas
    noise = given["A"]

    def module(groups: Sequence[Group], before: int = 0) -> PlainPass:
        shapes = {g: given[g].shape for g in groups}
        return PlainPass(problem.model, shapes, before).eval()

    with torch.no_grad():
        clean, joint = module(("S", "R")), module(GROUPS)
        seen = clean.inputs(given, text, 0.0, 0.0)
        everything = joint.inputs(given, text, problem.sigmas[0], delta)
        prefix = compiled(clean, seen)
        cache = prefix(*seen)
        # `[2 layers, 1, L, H, h]`: actions stand behind the L tokens of the prefix.
        plain = module(("A",), before=cache.shape[2])
        # What an Euler step takes between actions and cache.
        levels = [
            plain.inputs(given, text, sigma, delta)[1:]
            for sigma, delta in zip(problem.sigmas, problem.deltas, strict=False)
        ]
        step = compiled(plain, (noise, *levels[0], cache))
        together = compiled(joint, everything)

    @torch.no_grad()
    def act() -> Tensor:
        cache, x = prefix(*seen), noise
        for level in levels:
            x = step(x, *level, cache)[0]
        return x

    return {
        "prefix": torch.no_grad()(lambda: prefix(*seen)),
        "step": torch.no_grad()(lambda: step(noise, *levels[0], cache)[0]),
        "act": act,
        "joint": torch.no_grad()(lambda: together(*everything)),
    }


def _inductor_options(threads: int) -> dict[str, Any]:
    return {
        # Try kernels, its own and torch's, and keep the fastest.
        "max_autotune": True,
        "max_autotune_gemm_backends": "CPP,ATEN",
        # Weights become constants, which it may pack.
        "freezing": True,
        "cpp.threads": threads,
        # Multiplications and additions may be fused.
        "cpp.enable_floating_point_contract_flag": "fast",
    }


def _compile(problem: Problem, threads: int, _: Path) -> Cases:
    options = _inductor_options(threads) | {
        "cpp_wrapper": True,
        # Shapes never change here, so nothing has to be checked before a call.
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    }

    def compiled(module: PlainPass, _: object) -> _Pass:
        def run(*inputs: Tensor) -> Any:
            return module(*inputs)

        # What is compiled is kept with the code object, and unguarded the first entry is taken:
        # each pass needs a code object of its own.
        run.__code__ = run.__code__.replace()
        return torch.compile(run, dynamic=False, fullgraph=True, options=options)

    return _plain_cases(problem, compiled)


def _aoti(problem: Problem, threads: int, cache: Path) -> Cases:
    options = _inductor_options(threads)

    def compiled(module: PlainPass, inputs: tuple[Tensor, ...]) -> _Pass:
        program = torch.export.export(module, inputs)
        # Weights are the same whenever the graph is: they come from one seed.
        parts = (torch.__version__, hardware(torch.device("cpu")), options, str(program))
        name = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        return ahead_of_time(program, options, cache / f"{name}.pt2")

    return _plain_cases(problem, compiled)


def _openvino(problem: Problem, threads: int, _: Path) -> Cases:
    import openvino as ov

    core = ov.Core()
    how = {
        # Otherwise it computes in bf16 where the processor can.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        # All threads work on one request.
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }

    def compiled(module: PlainPass, inputs: tuple[Tensor, ...]) -> _Pass:
        program = ov.convert_model(torch.export.export(module, inputs))
        request = core.compile_model(program, "CPU", how).create_infer_request()
        bound: dict[int, Tensor] = {}

        def run(*inputs: Tensor) -> Any:
            for port, x in enumerate(inputs):
                if bound.get(port) is not x:
                    # Its memory is shared, not owned: `bound` keeps it.
                    bound[port] = x
                    request.set_input_tensor(port, ov.Tensor(x.numpy(), shared_memory=True))
            request.infer()
            out = [torch.from_numpy(tensor.data) for tensor in request.output_tensors]
            # A step reads what the last one wrote; keys and values are large, and read only.
            return [x.clone() for x in out] if module.noisy else out[0]

        return run

    return _plain_cases(problem, compiled)


ENGINES: dict[str, Callable[[Problem, int, Path], Cases]] = {
    "ours": _ours,
    "eager": _eager,
    "openvino": _openvino,
    "aoti": _aoti,
    "compile": _compile,
}
"""ours: `gwp/native`. eager: torch's operators. aoti, compile: TorchInductor with max-autotune and
frozen weights, as an AOTInductor package and as `torch.compile` with the C++ wrapper. openvino:
its CPU plugin, from the exported program. Each takes a number of threads, and a folder for what
it compiles.
"""
