"""Stages one after another in one process: each starts when the one before is finished, and what was
finished by an earlier call is not trained again.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from pipelines.console import event, warn
from pipelines.jobs.ray_start import ensure_ray
from pipelines.jobs.sequence import require_sequence
from pipelines.jobs.train_job import TrainJob
from pipelines.training.control.failures import interruptible
from pipelines.training.screen.shown import shown
from pipelines.training.screen.summary import tell
from pipelines.training.train import StageResult, train


def train_sequence(
    jobs: Sequence[TrainJob],
    allowed: tuple[str, ...] = (),
    from_step: int | None = None,
    plain: bool = False,
) -> list[StageResult]:
    """Run stages in their order; raises what the one that fails raises, and the rest is not begun.
    The same call goes on there.

    allowed, from_step: as in `train`; from_step is for a single stage; plain: lines on a terminal,
    too, in place of the picture
    """
    require_sequence(jobs)
    # Before the handlers of signals, for it has its own.
    ensure_ray(*jobs)
    results = []
    with interruptible():
        for number, job in enumerate(jobs):
            if len(jobs) > 1:
                place = f"{number + 1} of {len(jobs)}"
                event("stage", stage=job.stage, run=job.run.name, number=place)
            left = [later.run.name for later in jobs[number + 1 :]]
            with _told_what_is_left(job.run.name, left), shown(job, plain):
                result = train(job, allowed, from_step)
            # On a terminal the lines of `tell` say all of it.
            if plain or not sys.stderr.isatty():
                event("finished", stage=job.stage, run=job.run.name, **asdict(result))
            results.append(result)
            tell(job, result, last=not left)
    return results


@contextmanager
def _told_what_is_left(name: str, left: Sequence[str]) -> Iterator[None]:
    """Say which stages are not begun when this one ends early."""
    try:
        yield
    except BaseException:
        if left:
            warn(
                f"{name} is not finished, so {', '.join(left)} is not begun; the same command goes "
                "on here"
            )
        raise
