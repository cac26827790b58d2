"""Sides that take turns, each in a process of its own: a slow moment of the machine meets all."""

import multiprocessing
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from gwp.errors import GwpError
from pipelines.bench.train.problem import Problem

_BUILD_S = 900.0
_STEP_S = 300.0
"""Seconds that a step may take before its side is given up."""


@dataclass
class Side:
    """One side and what it took.

    wall, cpu: seconds a step of each round: on the clock, and of the cores
    """

    name: str
    process: BaseProcess
    connection: Connection
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def ask(self, steps: int, limit_s: float) -> tuple[float, float]:
        """Seconds a step of so many. GwpError when the side does not answer."""
        try:
            self.connection.send(steps)
            if self.connection.poll(limit_s):
                answer = self.connection.recv()
                if isinstance(answer, tuple):
                    return answer
                raise GwpError(f"{self.name}: {answer}")
        except (EOFError, OSError) as error:
            raise GwpError(f"{self.name}: its process ended") from error
        raise GwpError(f"{self.name}: no answer in {limit_s:g} s; take a smaller size or batch")


@contextmanager
def sides(names: Sequence[str], problem: Problem, warm: int) -> Iterator[dict[str, Side]]:
    """These sides, each warm after so many steps, until the block ends."""
    context = multiprocessing.get_context("spawn")
    started: dict[str, Side] = {}
    try:
        for name in names:
            ours, theirs = context.Pipe()
            # No daemon: compilers that a side asks may start processes of their own.
            process = context.Process(target=_serve, args=(theirs, name, problem))
            process.start()
            theirs.close()
            started[name] = Side(name, process, ours)
            # One after another: starting takes the whole machine.
            started[name].ask(warm, _BUILD_S)
        yield started
    finally:
        for side in started.values():
            side.connection.close()
            side.process.join(10)
            side.process.kill()


def take_turns(started: dict[str, Side], rounds: int, steps: int) -> None:
    """Let each side take so many steps in each round."""
    for _ in range(rounds):
        for side in started.values():
            wall, cpu = side.ask(steps, _STEP_S * steps)
            side.wall.append(wall)
            side.cpu.append(cpu)


def _serve(connection: Connection, name: str, problem: Problem) -> None:
    from pipelines.bench.train.sides import side

    torch.set_num_threads(problem.threads)
    # DeepSpeed calls by names that torch is about to drop.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        step = side(name, problem)
        while True:
            connection.send(_timed(step, connection.recv(), problem.device))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  told by the process that asked
        connection.send(f"{type(error).__name__}: {error}")


def _timed(step: object, count: int, device: str) -> tuple[float, float]:
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()  # type: ignore[operator]
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count, (time.process_time() - cpu) / count
