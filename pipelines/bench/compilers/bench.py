"""`gwp bench compilers`: is the hand-written code of acting worth having beside a compiler?

Each engine lives in a process of its own, with its own threads. They take turns: in each round every
one of them runs every case, so that a slow moment of the machine meets all of them, and each round
gives a ratio to the first. Outputs are compared before anything is timed.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwp.errors import GwpError
from gwp.model.config import Family
from pipelines.bench.act.bench import hardware

CASES = ("prefix", "step", "act", "joint")
TOLERANCE = 2e-5
"""Largest difference that another order of sums may make, as a share of the largest number."""
CALLS = 3
"""Timed calls of a case in a round, after one that is not: others have filled the cores' caches."""
_BUILD_LIMIT_S = 3600.0
_RUN_LIMIT_S = 120.0


@dataclass
class _Worker:
    """An engine in its process. problem: why it is not measured, one line; times: ms by case, of
    each round the fastest.
    """

    engine: str
    process: multiprocessing.process.BaseProcess
    connection: Connection
    problem: str | None = None
    build_s: float = 0.0
    outputs: list[np.ndarray] = field(default_factory=list)
    difference: float = 0.0
    times: dict[str, list[float]] = field(default_factory=lambda: {case: [] for case in CASES})

    def ask(self, what: str, limit_s: float) -> Any:
        """The answer of the process; a string when it failed."""
        try:
            self.connection.send(what)
            # A compiler may hang; nobody waits for it for ever.
            if not self.connection.poll(limit_s):
                return f"no answer in {limit_s:.0f} s"
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(10)
            return f"its process ended with exit code {self.process.exitcode}"


def bench_compilers(
    size: str, family: Family, engines: Sequence[str], rounds: int, threads: int, cache: Path
) -> dict[str, Any]:
    """Times of every engine. The first one is what others are compared with.

    cache: folder for what TorchInductor makes; GwpError when the first engine cannot run
    """
    began, load = time.strftime("%Y-%m-%d %H:%M"), os.getloadavg()[0]
    workers: list[_Worker] = []
    cache.mkdir(parents=True, exist_ok=True)
    try:
        for engine in engines:
            # One after another: compilers take the whole machine.
            workers.append(_start(engine, size, family, threads, cache))
            _check(workers[-1], workers[0])
            print(f"{engine}: {workers[-1].problem or 'ready'}", file=sys.stderr, flush=True)
        _measure([w for w in workers if not w.problem], rounds)
    finally:
        # Closed pipes end the loops of those that listen; the others are killed.
        for worker in workers:
            worker.connection.close()
            worker.process.join(10)
            worker.process.kill()
    return {
        "size": size,
        "family": family,
        "hardware": hardware(torch.device("cpu")),
        "threads": threads,
        "torch": torch.__version__,
        "commit": _commit(),
        "began": began,
        "rounds": rounds,
        "calls": CALLS,
        "tolerance": TOLERANCE,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "engines": {w.engine: _row(w, workers[0]) for w in workers},
    }


def _start(engine: str, size: str, family: Family, threads: int, cache: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    given = (theirs, engine, size, family, threads, str(cache))
    process = context.Process(target=_serve, args=given, daemon=True)
    process.start()
    # Only the process holds that end now, so its death is the end of the pipe.
    theirs.close()
    worker, begin = _Worker(engine, process, ours), time.perf_counter()
    answer = worker.ask("build", _BUILD_LIMIT_S)
    if isinstance(answer, str):
        worker.problem = answer
    else:
        worker.outputs, worker.build_s = answer, time.perf_counter() - begin
    return worker


def _serve(
    connection: Connection, engine: str, size: str, family: Family, threads: int, cache: str
) -> None:
    """One engine: builds its passes, then times the cases that it is asked for."""
    # What TorchInductor has compiled and measured is kept.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    # torch is imported already and takes `set_num_threads`; libraries loaded later read this.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from pipelines.bench.compilers.engines import ENGINES, Problem

    torch.set_num_threads(threads)
    # The request to build: the clock of the other side starts with it.
    connection.recv()
    try:
        cases = ENGINES[engine](Problem.draw(size, family), threads, Path(cache))
        outputs = [cases["act"](), *cases["joint"]()]
        # Copies, because an engine may give buffers that it writes to again.
        connection.send([x.numpy().copy() for x in outputs])
    except ModuleNotFoundError as error:
        connection.send(f"{error.name} is not installed (pip install {error.name})")
        return
    except Exception as error:  # noqa: BLE001  compilers fail in ways of their own
        lines = str(error).strip().splitlines() or [""]
        connection.send(f"{type(error).__name__}: {lines[0][:200]}")
        return
    while True:
        try:
            run = cases[connection.recv()]
        except EOFError:
            return
        run()
        connection.send([_milliseconds(run) for _ in range(CALLS)])


def _milliseconds(run: Any) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def _check(worker: _Worker, first: _Worker) -> None:
    """Whether it gives the numbers of the first."""
    if first.problem:
        raise GwpError(f"{first.engine}: {first.problem}")
    if worker.problem:
        return
    pairs = list(zip(worker.outputs, first.outputs, strict=True))
    worker.difference = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
    # Written so that NaN counts as another number.
    if not worker.difference <= TOLERANCE:
        worker.problem = f"gives other numbers, {worker.difference:.0e} of the largest away"


def _measure(workers: Sequence[_Worker], rounds: int) -> None:
    for turn in range(rounds):
        # Who comes first changes, so that nobody always follows the same neighbour.
        shift = turn % len(workers)
        order = [*workers[shift:], *workers[:shift]]
        for case in CASES:
            for worker in order:
                answer = worker.ask(case, _RUN_LIMIT_S)
                if isinstance(answer, str):
                    raise GwpError(f"{worker.engine}, {case}: {answer}")
                # The fastest: what else the machine does only makes a call slower.
                worker.times[case].append(min(answer))


def _row(worker: _Worker, first: _Worker) -> dict[str, Any]:
    if worker.problem:
        return {"problem": worker.problem}
    ms, ratio = {}, {}
    for case in CASES:
        ms[case] = _quartiles(worker.times[case])
        # Round by round: a slow moment is in both numbers, and not in their ratio.
        shares = np.array(worker.times[case]) / np.array(first.times[case])
        ratio[case] = _quartiles(shares.tolist())
    return {
        "build_s": worker.build_s,
        "difference": worker.difference,
        "ms": ms,
        "ratio": ratio,
    }


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "low": low, "high": high}


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def markdown(result: dict[str, Any]) -> str:
    """The table, with what it was measured with."""
    what = (
        f"{result['size']}, {result['family']}: {result['hardware']}, {result['threads']} threads, "
        f"torch {result['torch']}, commit {result['commit']}, {result['began']}, "
        f"{result['rounds']} rounds, load {result['load_before']:.1f} before, "
        f"{result['load_after']:.1f} after. Median in ms; ratio to the first, with quartiles."
    )
    head = f"| engine | {' | '.join(CASES)} | build s | difference |"
    lines = [what, "", head, f"|---|{'---|' * (len(CASES) + 2)}"]
    for engine, row in result["engines"].items():
        if "problem" in row:
            lines.append(f"| {engine} | {row['problem']} |{' |' * (len(CASES) + 1)}")
            continue
        cells = [
            f"{row['ms'][case]['median']:.2f}, {row['ratio'][case]['median']:.2f} "
            f"({row['ratio'][case]['low']:.2f}-{row['ratio'][case]['high']:.2f})"
            for case in CASES
        ]
        cells += [f"{row['build_s']:.0f}", f"{row['difference']:.0e}"]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
