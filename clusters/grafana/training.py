"""The dashboard of training: progress, time, checkpoints, and what was lost."""

from clusters.grafana.panels import OF_RUN, Dashboard, Panel, Query, quantile, rate
from gwp.metrics import names as m


def _newest(metric: m.Metric, by: str = "run") -> str:
    """A gauge of a run: those of an earlier start of its workers may still be there."""
    return f"max by ({by}) ({metric.exported}{OF_RUN})"


def _losses(parts: str) -> str:
    """Those whose name has this form."""
    chosen = f'{{run=~"$run", part=~"{parts}"}}'
    return f"max by (run, part) ({m.TRAIN_LOSS.exported}{chosen})"


def _per_worker(expr: str) -> str:
    return f"{expr} / on (run) group_left max by (run) ({m.TRAIN_WORKERS.exported})"


TRAINING = Dashboard(
    "training",
    "gwp: training",
    "run",
    m.TRAIN_STEP,
    (
        Panel(
            "Loss",
            "short",
            "Newest loss of the global batch by part, and of what is not trained on.",
            (Query(_losses("(validation_)?loss.*"), "{{run}} {{part}}"),),
            from_zero=False,
        ),
        Panel(
            "Loss by mode and source",
            "short",
            "Which part of the mixture learns; means since the last logging.",
            (Query(_losses("(mode|source)/.*"), "{{run}} {{part}}"),),
            from_zero=False,
        ),
        Panel(
            "Loss by noise level",
            "short",
            "Of actions and of future pictures, from each level on to the next.",
            (Query(_losses("noise/.*"), "{{run}} {{part}}"),),
        ),
        Panel(
            "Progress",
            "percentunit",
            "Steps done of those planned.",
            (
                Query(
                    f"{_newest(m.TRAIN_STEP)} / {_newest(m.TRAIN_STEPS_PLANNED)}",
                    "{{run}}",
                ),
            ),
        ),
        Panel(
            "Time left",
            "s",
            "What the steps that are left take at the pace of the last minute.",
            (
                Query(
                    f"({_newest(m.TRAIN_STEPS_PLANNED)} - {_newest(m.TRAIN_STEP)}) / "
                    f"{rate(m.TRAIN_STEP_SECONDS, 'run', OF_RUN, '_count')}",
                    "{{run}}",
                ),
            ),
        ),
        Panel(
            "Samples per second",
            "short",
            "Trained on, over all workers.",
            (Query(rate(m.TRAIN_SAMPLES, "run", OF_RUN), "{{run}}"),),
        ),
        Panel(
            "MFU",
            "percentunit",
            "Share of a device's peak that the model's arithmetic is, checkpoints included.",
            (Query(_newest(m.TRAIN_MFU), "{{run}}"),),
        ),
        Panel(
            "Where a step's time goes",
            "percentunit",
            "Of rank 0, all of it. Much of `data`: add decoders; of `exchange`: another rank is slow.",
            (
                Query(
                    f"{rate(m.TRAIN_STEP_PHASE, 'run, phase', OF_RUN)} / on (run) group_left "
                    f"{rate(m.TRAIN_STEP_PHASE, 'run', OF_RUN)}",
                    "{{run}} {{phase}}",
                ),
            ),
        ),
        Panel(
            "Data-bound",
            "percentunit",
            "Share of their time that workers waited for data, since the last logging.",
            (Query(_newest(m.TRAIN_DATA_BOUND), "{{run}}"),),
        ),
        Panel(
            "Tokens per second",
            "short",
            "States, pictures and actions, over all workers.",
            (Query(rate(m.TRAIN_TOKENS, "run", OF_RUN), "{{run}}"),),
        ),
        Panel(
            "Step time",
            "s",
            "From one optimiser step to the next, without checkpoints.",
            (
                Query(quantile(0.5, m.TRAIN_STEP_SECONDS, "run", OF_RUN), "{{run}} half"),
                Query(quantile(0.95, m.TRAIN_STEP_SECONDS, "run", OF_RUN), "{{run}} 95 %"),
            ),
        ),
        Panel(
            "Where time goes",
            "percentunit",
            "Share of the workers' time by phase. Much of `waiting for data`: add decoders.",
            (
                Query(
                    _per_worker(rate(m.TRAIN_PHASE, "run, phase", OF_RUN)),
                    "{{run}} {{phase}}",
                ),
            ),
        ),
        Panel(
            "Arithmetic per worker",
            "FLOPS",
            "Of the model, forward and backward, and of the video codec, which is no part of the MFU.",
            (
                Query(_per_worker(rate(m.TRAIN_FLOP, "run", OF_RUN)), "{{run}}"),
                Query(_per_worker(rate(m.TRAIN_ENCODER_FLOP, "run", OF_RUN)), "{{run}} codec"),
            ),
        ),
        Panel(
            "Gradient norm",
            "short",
            "Before clipping.",
            (Query(_newest(m.TRAIN_GRADIENT), "{{run}}"),),
        ),
        Panel(
            "Distance from the average of weights",
            "short",
            "In lengths of that.",
            (Query(_newest(m.TRAIN_EMA), "{{run}}"),),
        ),
        Panel(
            "Memory of rank 0",
            "bytes",
            "The most that it has had.",
            (Query(_newest(m.TRAIN_MEMORY, "run, where"), "{{run}} {{where}}"),),
        ),
        Panel(
            "From the command to the first step",
            "s",
            "By part; of workers that start again, from what ended them.",
            (Query(_newest(m.TRAIN_START, "run, part"), "{{run}} {{part}}"),),
        ),
        Panel(
            "Steps that a loss of the workers would cost",
            "short",
            "Steps behind the newest whole checkpoint, and how many there are between two.",
            (
                Query(_newest(m.TRAIN_UNSAVED), "{{run}} unsaved"),
                Query(_newest(m.TRAIN_CHECKPOINT_EVERY), "{{run}} checkpoint_every"),
            ),
        ),
        Panel(
            "Age of the newest checkpoint",
            "s",
            "Since it was whole in storage.",
            (Query(f"time() - {_newest(m.TRAIN_CHECKPOINT)}", "{{run}}"),),
        ),
        Panel(
            "Time of a checkpoint",
            "s",
            "From the moment when it is taken until it is whole. Steps go on meanwhile.",
            (Query(quantile(0.95, m.TRAIN_CHECKPOINT_SECONDS, "run", OF_RUN), "{{run}} 95 %"),),
        ),
        Panel(
            "Workers",
            "short",
            "Ranks that train. With `[least, most]` they follow the machines that are there.",
            (Query(_newest(m.TRAIN_WORKERS), "{{run}}"),),
        ),
        Panel(
            "Workers lost, steps skipped",
            "short",
            "Times that all workers started again, by reason; steps without a finite loss.",
            (
                Query(f"sum by (run, kind) ({m.TRAIN_LOST.exported}{OF_RUN})", "{{run}} {{kind}}"),
                Query(f"sum by (run) ({m.TRAIN_SKIPPED.exported}{OF_RUN})", "{{run}} skipped"),
            ),
        ),
    ),
)
