"""`gwp bench compilers`: is the hand-written code of acting worth having beside a compiler?

Each engine lives in a process of its own, with its own threads. They take turns: in each round every
one of them runs every case, so that a slow moment of the machine meets all of them, and each round
gives a ratio to ours. Outputs are compared before anything is timed.
"""

import multiprocessing
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwp.errors import GwpError
from gwp.model.config import Family
from pipelines.bench.act import hardware

CASES = ("prefix", "step", "act")
TOLERANCE = 1e-4
"""Largest difference of actions of a size of 1 that ten steps in another order of sums may make."""
CALLS = 3
"""Timed calls of a case in a round, after one that is not timed: weights of the others fill the cache."""
_BUILD_LIMIT_S = 3600.0
_RUN_LIMIT_S = 120.0


@dataclass(frozen=True)
class _Worker:
    """An engine in its process. built: what it said of itself when it was ready."""

    engine: str
    process: multiprocessing.process.BaseProcess
    connection: Connection
    built: dict[str, Any]


def bench_compilers(
    sizes: Sequence[str], families: Sequence[Family], engines: Sequence[str], repeats: int, threads: int,
    artefacts: Path,
) -> dict[str, Any]:
    """Times of every engine, `repeats` rounds per size and family. The first engine is what others are compared with.

    artefacts: folder for what compilers make; GwpError when an engine is missing or gives other actions
    """
    artefacts.mkdir(parents=True, exist_ok=True)
    began, load = time.time(), os.getloadavg()
    tables = [
        _table(size, family, engines, repeats, threads, artefacts) for size in sizes for family in families
    ]
    return {
        "hardware": hardware(torch.device("cpu")), "threads": threads, "torch": torch.__version__,
        "commit": _commit(), "began": time.strftime("%Y-%m-%d %H:%M", time.localtime(began)),
        "seconds": time.time() - began, "load_before": load, "load_after": os.getloadavg(),
        "repeats": repeats, "calls": CALLS, "tables": tables,
    }


def _table(
    size: str, family: Family, engines: Sequence[str], repeats: int, threads: int, artefacts: Path
) -> dict[str, Any]:
    workers: list[_Worker] = []
    try:
        for engine in engines:
            # One after another: compilers take the whole machine.
            workers.append(_start(engine, size, family, threads, artefacts))
        wanted = workers[0].built["actions"]
        rows = {w.engine: _row(w, wanted, f"{size} {family}") for w in workers}
        times = _rounds(workers, repeats)
    finally:
        for worker in workers:
            worker.connection.close()
            worker.process.join(10)
            worker.process.kill()
    first = times[workers[0].engine]
    for engine, row in rows.items():
        row["ms"] = {case: _summary(times[engine][case]) for case in CASES}
        row["ratio"] = {
            case: float(np.median(np.array(times[engine][case]) / np.array(first[case]))) for case in CASES
        }
    return {"size": size, "family": family, "engines": rows}


def _rounds(workers: Sequence[_Worker], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of a call, per engine and case: of each round the fastest."""
    times: dict[str, dict[str, list[float]]] = {w.engine: {case: [] for case in CASES} for w in workers}
    for turn in range(repeats):
        for case in CASES:
            # Who comes first changes, so that nobody always follows the same neighbour.
            shift = turn % len(workers)
            for worker in [*workers[shift:], *workers[:shift]]:
                times[worker.engine][case].append(min(_ask(worker, case)))
    return times


def _ask(worker: _Worker, case: str) -> list[float]:
    worker.connection.send(case)
    if not worker.connection.poll(_RUN_LIMIT_S):
        raise GwpError(f"{worker.engine}: no answer in {_RUN_LIMIT_S:.0f} s")
    answer: list[float] = worker.connection.recv()
    return answer


def _start(engine: str, size: str, family: Family, threads: int, artefacts: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, engine, size, family, threads, str(artefacts)))
    process.start()
    theirs.close()
    if not ours.poll(_BUILD_LIMIT_S):
        process.kill()
        raise GwpError(f"{engine}: not ready after {_BUILD_LIMIT_S:.0f} s")
    try:
        built = ours.recv()
    except EOFError:
        process.join()
        raise GwpError(f"{engine}: its process ended with exit code {process.exitcode}") from None
    if "error" in built:
        process.join(10)
        raise GwpError(f"{engine}: {built['error']}")
    return _Worker(engine, process, ours, built)


def _serve(connection: Connection, engine: str, size: str, family: Family, threads: int, artefacts: str) -> None:
    """One engine: builds its passes, then times the cases that it is asked for."""
    # Before torch looks at them: where TorchInductor keeps what it has compiled and measured.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(artefacts) / "inductor")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from pipelines.bench.compiler_engines import Problem, build, key, seconds

    torch.set_num_threads(threads)
    problem = Problem.draw(size, family)
    before, begin = _memory("VmRSS"), time.perf_counter()
    try:
        runs = build(engine, problem, threads, Path(artefacts), key(size, family, threads))
        for run in runs.cases.values():
            run()
    except ModuleNotFoundError as error:
        connection.send({"error": f"{error.name} is not installed; run: pip install 'gwp[bench]', or leave it out with --engines"})
        return
    except GwpError as error:
        connection.send({"error": str(error)})
        return
    connection.send({
        "build_s": time.perf_counter() - begin, "memory_mb": _memory("VmRSS") - before,
        "peak_mb": _memory("VmHWM"), "actions": runs.actions().numpy(),
    })
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        runs.cases[case]()
        connection.send([seconds(runs.cases[case]) * 1e3 for _ in range(CALLS)])


def _memory(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(name))


def _row(worker: _Worker, wanted: np.ndarray, what: str) -> dict[str, Any]:
    difference = float(abs(worker.built["actions"] - wanted).max())
    if not difference <= TOLERANCE:
        raise GwpError(f"{worker.engine}, {what}: actions differ by {difference:.1e}; there is nothing to compare")
    return {name: worker.built[name] for name in ("build_s", "memory_mb", "peak_mb")} | {"difference": difference}


def _summary(ms: Sequence[float]) -> dict[str, float]:
    return {"min": float(min(ms)), "median": float(np.median(ms))}


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def markdown(result: dict[str, Any]) -> str:
    """The tables, with what they were measured with."""
    lines = [
        f"{result['hardware']}, {result['threads']} threads, torch {result['torch']}, commit {result['commit']}, "
        f"{result['began']}; {result['repeats']} rounds; load {result['load_before'][0]:.1f} before, "
        f"{result['load_after'][0]:.1f} after.", "",
        "| size | family | engine | prefix ms | step ms | acting ms | acting, ratio | build s | memory MB | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for table in result["tables"]:
        for engine, row in table["engines"].items():
            times = [f"{row['ms'][case]['median']:.2f} ({row['ms'][case]['min']:.2f})" for case in CASES]
            cells = [
                table["size"], table["family"], engine, *times, f"{row['ratio']['act']:.2f}", f"{row['build_s']:.0f}",
                f"{row['memory_mb']:.0f}", f"{row['difference']:.0e}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
