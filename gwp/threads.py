"""Where torch computes on the CPU matters: every thread that does keeps OpenMP workers of its
own, for the same cores.

More workers than cores make each of them sleep and wake at every small product, which costs an
acting policy more than half its speed, even when the others only idle. So a process that acts
lets one thread compute, and what has to be computed elsewhere is done in a thread that ends.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """The result of `work`, computed in a thread that ends, and its OpenMP workers with it."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
