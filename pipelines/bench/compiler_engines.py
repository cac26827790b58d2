"""The ways to run the passes of acting: ours, torch's operators, and compilers.

Every one gets what helps it: static shapes, weights that it may pack and fold, its own threads, and
buffers that are reused from call to call.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.block import Block
from gwp.model.config import Family
from gwp.model.eager import EagerLayers
from gwp.model.flow import solver_sigmas
from gwp.model.fused import FusedTransformer
from gwp.model.native import NativeLayers
from gwp.model.transformer import WorldActionTransformer
from gwp.policy.engine.solver import Shapes, Solver
from pipelines.bench.act import hardware
from pipelines.bench.compiler_passes import PrefixPass, StepPass, packed_text
from pipelines.bench.sizes import SIZES, random_model

STEPS = 10
SHIFT = 5.0
REVISION = 1
"""To be raised when modules or options change: what was compiled before is then compiled anew."""


@dataclass(frozen=True)
class Problem:
    """One model of a size, and one observation of it; all random, all from one seed."""

    model: WorldActionTransformer
    solver: Solver
    state: Tensor
    reference: Tensor
    text: Tensor
    noise: Tensor
    deltas: list[float]

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
                # A compiler drops a bias of zeros and a norm of ones; those of a trained model stay.
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        C, (rows, columns), channels = shape.channels, shape.latent, config.action_channels
        solver = Solver(FusedTransformer(model), Shapes(shape.chunk, (C, rows, columns), 1), STEPS, SHIFT)
        sigmas = solver_sigmas(STEPS, SHIFT)
        return cls(
            model, solver, randn(1, channels), randn(C, 1, rows, columns),
            randn(shape.text[0], config.text_dim), randn(shape.chunk, channels),
            (sigmas[1:] - sigmas[:-1]).tolist(),
        )


@dataclass(frozen=True)
class Runs:
    """The passes of one engine. actions: of the last `act`, fp32 `[1, p, d]`."""

    cases: dict[str, Callable[[], object]]
    actions: Callable[[], Tensor]


def build(engine: str, problem: Problem, threads: int, artefacts: Path, key: str) -> Runs:
    """The passes by one of `ENGINES`; what it compiles is kept in `artefacts` under names with `key`.

    GwpError when an engine is missing.
    """
    torch.set_num_threads(threads)
    return ENGINES[engine](problem, threads, artefacts, key)


def key(size: str, family: Family, threads: int) -> str:
    """What compiled passes depend on, as part of a file name."""
    parts = (REVISION, torch.__version__, hardware(torch.device("cpu")), threads)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    return f"{size}-{family}-{digest}"


def _ours(problem: Problem, *_: object) -> Runs:
    if not isinstance(problem.solver.model.layers, NativeLayers):
        raise GwpError("there is no compiled code to compare with; see `gwp doctor`")
    return _solver(problem)


def _eager(problem: Problem, *_: object) -> Runs:
    blocks = [block for block in problem.model.blocks if isinstance(block, Block)]
    problem.solver.model.layers = EagerLayers(blocks, problem.model.config)
    return _solver(problem)


def _solver(problem: Problem) -> Runs:
    solver, noise = problem.solver, problem.noise
    given = (problem.state, problem.reference)
    with torch.inference_mode():
        text, ids = solver.model.text_keys(problem.text), torch.zeros(1, dtype=torch.long)
        prefix = solver.observe(*given, text, ids)
        through = solver.acting(prefix)
    last = [noise]

    @torch.inference_mode()
    def observe() -> object:
        return solver.observe(*given, text, ids, prefix.cache)

    @torch.inference_mode()
    def step() -> object:
        return noise + problem.deltas[0] * solver.velocity(through, noise, solver.level(0))

    @torch.inference_mode()
    def act() -> None:
        observe()
        last[0] = solver.act(prefix, noise)

    return Runs({"prefix": observe, "step": step, "act": act}, lambda: last[0].clone())


@dataclass(frozen=True)
class _Inputs:
    """What the modules are called with."""

    prefix: tuple[Tensor, ...]
    text: Tensor
    steps: list[tuple[Tensor, Tensor, Tensor]]


def _modules(problem: Problem) -> tuple[PrefixPass, StepPass, _Inputs]:
    solver = problem.solver
    with torch.no_grad():
        first, step = PrefixPass(problem.model, solver), StepPass(problem.model, solver)
        text = solver.model.text_keys(problem.text)
        levels = solver.level(0).levels
        inputs = _Inputs(
            (problem.state, problem.reference, *(packed_text(text, e) for e in first.experts)),
            packed_text(text, step.expert),
            [(levels.blocks[step.expert][:, i].clone(), levels.out[step.expert][i].clone(),
              torch.tensor([delta])) for i, delta in enumerate(problem.deltas)],
        )
    # Made in inference mode, tensors cannot be traced; copies can.
    return first.eval(), step.eval(), _Inputs(
        tuple(t.clone() for t in inputs.prefix), inputs.text.clone(), inputs.steps
    )


def _callables(problem: Problem, inputs: _Inputs, prefix: Callable[..., Tensor], step: Callable[..., Tensor]) -> Runs:
    noise, last = problem.noise, [problem.noise]

    @torch.no_grad()
    def observe() -> Tensor:
        return prefix(*inputs.prefix)

    cache = observe()

    @torch.no_grad()
    def one_step() -> object:
        return step(noise, *inputs.steps[0], cache, inputs.text)

    @torch.no_grad()
    def act() -> None:
        seen, x = observe(), noise
        for level in inputs.steps:
            x = step(x, *level, seen, inputs.text)
        last[0] = x

    return Runs({"prefix": observe, "step": one_step, "act": act}, lambda: last[0].clone())


def _inductor_options(threads: int, tuned: bool = True) -> dict[str, Any]:
    return {
        "max_autotune": tuned, "max_autotune_gemm_backends": "CPP,ATEN", "freezing": True,
        "cpp.threads": threads, "cpp.enable_floating_point_contract_flag": "fast",
    }


def _compile(problem: Problem, threads: int, *_: object) -> Runs:
    options = _inductor_options(threads) | {
        "cpp_wrapper": True, "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    }
    prefix, step, inputs = _modules(problem)
    compiled = [torch.compile(m, dynamic=False, fullgraph=True, options=options) for m in (prefix, step)]
    return _callables(problem, inputs, compiled[0], compiled[1])


def _aoti(problem: Problem, threads: int, artefacts: Path, key: str, tuned: bool = True) -> Runs:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    prefix, step, inputs = _modules(problem)
    options, kind = _inductor_options(threads, tuned), "aoti" if tuned else "aoti-aten"

    def load(module: torch.nn.Module, name: str, given: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        package = artefacts / f"{name}-{key}.pt2"
        if not package.exists():
            with torch.no_grad():
                program = torch.export.export(module, given)
                fresh = str(package.with_suffix(".new.pt2"))
                aoti_compile_and_package(program, package_path=fresh, inductor_configs=options)
            Path(fresh).replace(package)
        return aoti_load_package(str(package))

    observe = load(prefix, f"{kind}-prefix", inputs.prefix)
    cache = observe(*inputs.prefix)
    advance = load(step, f"{kind}-step", (problem.noise, *inputs.steps[0], cache, inputs.text))
    return _callables(problem, inputs, observe, advance)


def _openvino(problem: Problem, threads: int, artefacts: Path, key: str) -> Runs:
    import openvino as ov

    prefix, step, inputs = _modules(problem)
    with torch.no_grad():
        cache = prefix(*inputs.prefix)
    core = ov.Core()
    core.set_property({"CACHE_DIR": str(artefacts / "openvino")})
    how = {
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }

    def load(module: torch.nn.Module, name: str, given: tuple[Tensor, ...]) -> Any:
        file = artefacts / f"openvino-{name}-{ov.__version__.partition('-')[0]}-{key}.xml"
        if not file.exists():
            with torch.no_grad():
                program = torch.export.export(module, given)
            ov.save_model(ov.convert_model(program), file, compress_to_fp16=False)
        return core.compile_model(file, "CPU", how).create_infer_request()

    def shared(x: Tensor) -> Any:
        return ov.Tensor(x.numpy(), shared_memory=True)

    observing = load(prefix, "prefix", inputs.prefix)
    stepping = load(step, "step", (problem.noise, *inputs.steps[0], cache, inputs.text))
    for i, x in enumerate(inputs.prefix):
        observing.set_input_tensor(i, shared(x))
    stepping.set_input_tensor(4, observing.get_output_tensor(0))
    stepping.set_input_tensor(5, shared(inputs.text))
    levels = [tuple(map(shared, level)) for level in inputs.steps]
    noise, actions = shared(problem.noise), [torch.zeros_like(problem.noise) for _ in range(2)]
    turns = [shared(x) for x in actions]

    def one_step(i: int = 0) -> None:
        # Actions go to and fro between two buffers.
        stepping.set_input_tensor(0, turns[(i + 1) % 2] if i else noise)
        for port, x in enumerate(levels[i], 1):
            stepping.set_input_tensor(port, x)
        stepping.set_output_tensor(0, turns[i % 2])
        stepping.infer()

    def act() -> None:
        observing.infer()
        # `inputs` stays alive by this: OpenVINO shares its memory and does not own it.
        for i in range(len(inputs.steps)):
            one_step(i)

    observing.infer()
    last = (len(levels) - 1) % 2
    return Runs({"prefix": observing.infer, "step": one_step, "act": act}, lambda: actions[last].clone())


ENGINES: dict[str, Callable[..., Runs]] = {
    "ours": _ours, "eager": _eager, "compile": _compile, "aoti": _aoti,
    "aoti-aten": partial(_aoti, tuned=False), "openvino": _openvino,
}
"""ours: `gwp.model.native`. eager: torch's operators. compile, aoti: TorchInductor with max-autotune,
as `torch.compile` (C++ wrapper) and as an AOTInductor package. aoti-aten: the latter with packed
library products alone, which needs no quiet machine to choose by. openvino: its CPU plugin, from the
exported program."""


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
