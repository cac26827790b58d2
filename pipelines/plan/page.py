"""The recipes for cards and numbers of GPUs as a page of Markdown: what each of them comes to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.machines import CARDS, NETWORK_GB, Assumed
from pipelines.plan.memory import USABLE
from pipelines.plan.show import figure, interval
from pipelines.plan.stage import StagePlan, plan_stage
from pipelines.plan.time import step_time

FULL = Path(__file__).parents[1] / "stages" / "full"
COMMAND = "python -m pipelines.plan > docs/recipes.md"
_HEAD = f"""\
# Recipes

<!-- Written by `{COMMAND}`; a test fails when it is out of step. Do not edit it by hand. -->

Stages at the released shapes, for one card or for many. Each is a few lines over a stage of
`pipelines/stages/full`: say where data and weights are, and it is yours. **All figures are computed, none
is measured**: they are what `gwp train --plan` says of the file, and [clusters](clusters.md#sizing) says what
they stand on.

```sh
gwp train --plan pipelines/stages/full/cards/24gb-lora.yaml --gpu rtx4090
gwp train pipelines/stages/full/cards/24gb-lora.yaml --dry-run --set run.storage=runs/train \\
    --set 'data.sources=[{{uri: path/to/my-robot, embodiment: agilex}}]'
gwp submit pipelines/stages/full/scale/policy-32.yaml --address http://head:8265
```

GB: what a GPU holds at its fullest; *left*: of the {USABLE:.0%} that are usable. *Again*: blocks that are
computed again. Step and GPU-hours: from the least to the most. Cores: for decoding, for each GPU.
Checkpoint: one, and the room for those that are kept.
"""
_COLUMNS = (
    "file",
    "batch",
    "ZeRO",
    "samples x passes",
    "again",
    "GB (left)",
    "step, s",
    "GPU-hours",
    "cores",
    "checkpoint, GB",
)
_CARDS = """
## One GPU

A machine with one GPU: the pools are left out, so `gwp train` runs them on this machine. GWP-0.5 has an
action expert that can be trained alone; GWP-0 has one expert for all tokens, and takes adapters. A full
fine-tuning of either needs more than one GPU of 80 GB: 2 + 2 + 12 + 4 bytes a parameter (weights, gradients,
optimiser, average) are 120 and 100 GB.
"""
_SCALE = """
## Many GPUs

H100 of 80 GB, eight to a machine, and a network of {network:g} GB/s for each machine (a port of 400 Gbit/s;
`--network-gb`). 32 and 256 see as many samples as 8 do, in fewer and larger steps; the learning rate is that
of the batch of 128, and not tuned for more. Gradients and weights that are sent between machines can take
longer than the arithmetic: the last column is the same step where each GPU has a port of its own
(`--network-gb {wide:g}`).
"""
_WIDE_GB = 400.0


def recipe_files(folder: str) -> list[Path]:
    """Of `cards` or `scale`, small ones first."""

    def size(path: Path) -> tuple[str, int]:
        """Kind, then GB or GPUs."""
        if folder == "cards":
            return "", card_of(path)
        kind, _, workers = path.stem.rpartition("-")
        return kind, int(workers)

    return sorted((FULL / folder).glob("*.yaml"), key=lambda path: (*size(path), path.stem))


def card_of(path: Path) -> int:
    """GB of the GPU that a recipe is for: it begins the name of one in `cards`."""
    return int(path.stem.partition("gb")[0]) if path.parent.name == "cards" else 80


def recipe_plan(path: Path) -> tuple[StagePlan, Assumed]:
    """Of a recipe on the GPU that it is for, with what was taken for granted."""
    assumed = Assumed(gpu=CARDS[card_of(path)])
    return plan_stage(load_config(path, TrainJob), assumed), assumed


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD.rstrip(), *_sections()]) + "\n"


def _sections() -> Iterator[str]:
    for folder, head in (("cards", _CARDS), ("scale", _SCALE)):
        columns = [*_COLUMNS, *([f"step, s, at {_WIDE_GB:g} GB/s"] if folder == "scale" else [])]
        yield head.format(network=NETWORK_GB, wide=_WIDE_GB).rstrip()
        yield ""
        yield f"| {' | '.join(columns)} |"
        yield "|" + "---|" * len(columns)
        for path in recipe_files(folder):
            yield f"| {' | '.join(_cells(path)[: len(columns)])} |"


def _cells(path: Path) -> list[str]:
    plan, assumed = recipe_plan(path)
    wide = step_time(
        load_config(path, TrainJob),
        replace(assumed, network_gb=_WIDE_GB),
        assumed.found,
        plan.workers,
    )
    peak = plan.memory.peak / 1e9
    left = USABLE * assumed.found.memory_gb - peak
    return [
        f"`{path.parent.name}/{path.name}`",
        str(plan.global_batch),
        str(plan.zero_stage),
        f"{plan.micro_batch} x {plan.passes}",
        f"{plan.recomputed:.0f}",
        f"{peak:.1f} ({left:.1f})",
        interval(plan.step_s),
        interval(plan.gpu_hours),
        interval(plan.decode_cores),
        f"{figure(plan.checkpoint_gb)}, {figure(plan.kept_gb)}",
        interval(wide.range),
    ]
