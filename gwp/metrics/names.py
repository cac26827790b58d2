"""The table of all metrics: names, labels, units. `docs/metrics.md` is made from it.

Whoever adds one adds it here, to `TABLE` by its group, and emits it through a `Meter`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


# Known by identity: they are keys of what is counted.
@dataclass(frozen=True, eq=False)
class Metric:
    """One metric.

    name:    as it is counted; Ray puts `ray_` in front, and behind a counter `_total`
    unit:    of its value; "" for a count
    labels:  whose values tell its series apart; each has few values, and no robot's name is one
    help:    one sentence
    buckets: upper bounds of a histogram
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """The name that Prometheus knows; of a histogram the common beginning of its three."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"

    @property
    def series(self) -> tuple[str, ...]:
        """All names of it that Prometheus knows."""
        if self.kind != "histogram":
            return (self.exported,)
        return tuple(f"{self.exported}_{part}" for part in ("bucket", "sum", "count"))


_RUN = ("run",)
_APP = ("app",)
_OF_PROCESS = ("app", "process")

# Requests take milliseconds on a GPU and seconds where a queue is long; the bounds hold for both.
_LATENCY_S = (0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
_STEP_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 60, 120, 300)
_CHECKPOINT_S = (1, 2, 5, 10, 20, 40, 60, 120, 300, 600, 1200, 3600)

DATA_SAMPLES = Metric(
    "gwp_data_samples", "counter", "samples", _RUN, "Samples that were decoded whole."
)
DATA_FAILURES = Metric(
    "gwp_data_failures",
    "counter",
    "samples",
    _RUN,
    "Samples that could not be read; the run's quarantine names each with its reason.",
)
DATA_SECONDS = Metric(
    "gwp_data_decode_seconds",
    "counter",
    "seconds",
    _RUN,
    "Time that decoding processes spent on samples, all together.",
)
DATA_BYTES = Metric(
    "gwp_data_bytes",
    "counter",
    "bytes",
    _RUN,
    "Arrays that decoding processes gave to the workers, uncompressed.",
)

TRAIN_PHASE = Metric(
    "gwp_train_phase_seconds",
    "counter",
    "seconds",
    ("run", "rank", "phase"),
    "Time of a rank by what it did: the phases of its reports, e.g. `waiting for data`.",
)
TRAIN_STEP_SECONDS = Metric(
    "gwp_train_step_seconds",
    "histogram",
    "seconds",
    _RUN,
    "From one optimiser step to the next, without checkpoints.",
    _STEP_S,
)
TRAIN_STEP = Metric("gwp_train_step", "gauge", "steps", _RUN, "Optimiser steps done.")
TRAIN_STEPS_PLANNED = Metric(
    "gwp_train_steps_planned", "gauge", "steps", _RUN, "Optimiser steps of the whole run."
)
TRAIN_SAMPLES = Metric(
    "gwp_train_samples", "counter", "samples", _RUN, "Samples trained on, of all ranks."
)
TRAIN_FLOP = Metric(
    "gwp_train_flop",
    "counter",
    "FLOP",
    _RUN,
    "Arithmetic of the model for those samples, forward and backward, of all ranks; what "
    "gradient checkpointing computes again is not counted.",
)
TRAIN_LOSS = Metric(
    "gwp_train_loss",
    "gauge",
    "",
    ("run", "part"),
    "Newest loss of the global batch: `loss`, `loss_action`, `loss_video`, and the same in "
    "validation; since the last logging by group: `mode/wam`, `source/NAME`, `noise/video/0.2` "
    "(levels from there on).",
)
TRAIN_STEP_PHASE = Metric(
    "gwp_train_step_phase_seconds",
    "counter",
    "seconds",
    ("run", "phase"),
    "Time of rank 0 by part of a step: `data`, `transfer`, `encode`, `forward`, `backward`, "
    "`optimiser`, `exchange` between ranks, `validation`, `checkpoint`, `rest`; together all of it.",
)
TRAIN_TOKENS = Metric(
    "gwp_train_tokens",
    "counter",
    "tokens",
    _RUN,
    "Tokens of states, pictures and actions that the model was trained on, of all ranks.",
)
TRAIN_MFU = Metric(
    "gwp_train_mfu",
    "gauge",
    "",
    _RUN,
    "Share of a device's peak that the model's arithmetic was since the last logging, checkpoints "
    "included: the published bf16 peak of a GPU, on a CPU that of measured products.",
)
TRAIN_ENCODER_FLOP = Metric(
    "gwp_train_encoder_flop",
    "counter",
    "FLOP",
    _RUN,
    "Arithmetic of the video codec for the samples trained on, of all ranks; no part of the MFU.",
)
TRAIN_DATA_BOUND = Metric(
    "gwp_train_data_bound",
    "gauge",
    "",
    _RUN,
    "Share of their time that ranks waited for data since the last logging, their mean.",
)
TRAIN_GRADIENT = Metric(
    "gwp_train_gradient_norm", "gauge", "", _RUN, "Of the newest logged step, before clipping."
)
TRAIN_EMA = Metric(
    "gwp_train_ema_distance",
    "gauge",
    "",
    _RUN,
    "Distance of the weights from their moving average, in lengths of that.",
)
TRAIN_MEMORY = Metric(
    "gwp_train_memory_bytes",
    "gauge",
    "bytes",
    ("run", "where"),
    "The most that rank 0 has had: `process`, and `device` on a GPU.",
)
TRAIN_START = Metric(
    "gwp_train_start_seconds",
    "gauge",
    "seconds",
    ("run", "part"),
    "From the command, or from what made workers start again, to the end of the first step, by "
    "part; `total` is their sum.",
)
TRAIN_WORKERS = Metric("gwp_train_workers", "gauge", "workers", _RUN, "Ranks that train.")
TRAIN_SKIPPED = Metric(
    "gwp_train_steps_skipped",
    "counter",
    "steps",
    _RUN,
    "Steps that were not taken, because a loss or gradient was no finite number.",
)
TRAIN_CHECKPOINT = Metric(
    "gwp_train_checkpoint_timestamp_seconds",
    "gauge",
    "seconds",
    _RUN,
    "When the newest checkpoint became whole in storage, Unix time; the start of the workers "
    "before the first.",
)
TRAIN_UNSAVED = Metric(
    "gwp_train_unsaved_steps",
    "gauge",
    "steps",
    _RUN,
    "Steps behind the newest whole checkpoint: what a loss of the workers would cost.",
)
TRAIN_CHECKPOINT_EVERY = Metric(
    "gwp_train_checkpoint_every_steps", "gauge", "steps", _RUN, "`run.checkpoint_every`."
)
TRAIN_CHECKPOINT_SECONDS = Metric(
    "gwp_train_checkpoint_seconds",
    "histogram",
    "seconds",
    _RUN,
    "From the moment when a checkpoint was taken until it was whole in storage.",
    _CHECKPOINT_S,
)
TRAIN_LOST = Metric(
    "gwp_train_worker_losses",
    "counter",
    "starts",
    ("run", "kind"),
    "Times that the workers ended early: `killed`, `memory`, `error`, or `machine` when one was "
    "taken away with notice.",
)

SERVE_REQUESTS = Metric(
    "gwp_serve_requests",
    "counter",
    "requests",
    ("app", "outcome"),
    "Observations answered, by outcome: `ok` or the code of the refusal.",
)
SERVE_FLAGS = Metric(
    "gwp_serve_flags",
    "counter",
    "flags",
    ("app", "kind"),
    "Flags of answers without the name of the action: what the safety envelope changed "
    "(`clipped`, `slowed`, `eased`, `held`), `out-of-range`, `untrained`, `stale`, `future`.",
)
SERVE_LATENCY = Metric(
    "gwp_serve_latency_seconds",
    "histogram",
    "seconds",
    _APP,
    "Time of an answer, from the arrival of its observation on.",
    _LATENCY_S,
)
SERVE_PHASE = Metric(
    "gwp_serve_phase_seconds",
    "counter",
    "seconds",
    ("app", "phase"),
    "Time of answers by what was done: the phases of the policy, and `outside` of it: decoding, "
    "network and queues of gateways.",
)
SERVE_SLACK = Metric(
    "gwp_serve_slack_seconds",
    "histogram",
    "seconds",
    _APP,
    "What was left until the robot's deadline when its chunk was ready.",
    _LATENCY_S,
)
SERVE_AGE = Metric(
    "gwp_serve_observation_age_seconds",
    "histogram",
    "seconds",
    _APP,
    "Age of the observation when its chunk was ready, where robots say when they observed.",
    _LATENCY_S,
)
SERVE_ROBOTS = Metric(
    "gwp_serve_robots", "gauge", "robots", _OF_PROCESS, "Open websockets of a gateway."
)
SERVE_WAIT = Metric(
    "gwp_serve_wait_seconds",
    "gauge",
    "seconds",
    _OF_PROCESS,
    "How long a request that came now would wait, as the gateway reckons.",
)
SERVE_READY = Metric(
    "gwp_serve_ready",
    "gauge",
    "",
    ("app", "policy", "version", "process"),
    "1 while a gateway has a replica that can answer, else 0. `policy` is the first digits of its "
    "id, `version` that of the registry.",
)
SERVE_REPLICAS = Metric(
    "gwp_serve_replicas",
    "gauge",
    "replicas",
    ("app", "policy", "version", "process"),
    "1 for each replica that lives, by what it serves.",
)
SERVE_STEPS = Metric(
    "gwp_serve_solver_steps", "counter", "steps", _APP, "Solver steps that replicas have taken."
)
SERVE_ROWS = Metric(
    "gwp_serve_solver_rows",
    "counter",
    "robots",
    _APP,
    "Robots in those steps; divided by the steps, the batch size.",
)
SERVE_LOAD = Metric(
    "gwp_serve_load",
    "gauge",
    "requests",
    _OF_PROCESS,
    "Requests of a replica that wait or are computed.",
)

CLIENT_STEPS = Metric(
    "gwp_client_steps",
    "counter",
    "steps",
    ("app", "embodiment", "kind"),
    "Control steps of robots that report of themselves: `executed` a row of a chunk, of those "
    "`blended` while one took over from another, `held` without a row, `skipped` because their "
    "loop was late.",
)
CLIENT_TROUBLE = Metric(
    "gwp_client_trouble",
    "counter",
    "times",
    ("app", "embodiment", "kind"),
    "What befell robots that report of themselves: their rows ran `dry`, a reply was `late`, a "
    "request `failed`.",
)
CLIENT_AGE = Metric(
    "gwp_client_age_seconds",
    "histogram",
    "seconds",
    ("app", "embodiment"),
    "Age of the oldest observation behind a row that was executed, by report.",
    _LATENCY_S,
)

TABLE: dict[str, tuple[Metric, ...]] = {
    "Data": (DATA_SAMPLES, DATA_FAILURES, DATA_SECONDS, DATA_BYTES),
    "Training": (
        TRAIN_PHASE,
        TRAIN_STEP_SECONDS,
        TRAIN_STEP_PHASE,
        TRAIN_STEP,
        TRAIN_STEPS_PLANNED,
        TRAIN_SAMPLES,
        TRAIN_TOKENS,
        TRAIN_FLOP,
        TRAIN_ENCODER_FLOP,
        TRAIN_MFU,
        TRAIN_DATA_BOUND,
        TRAIN_LOSS,
        TRAIN_GRADIENT,
        TRAIN_EMA,
        TRAIN_MEMORY,
        TRAIN_START,
        TRAIN_WORKERS,
        TRAIN_SKIPPED,
        TRAIN_CHECKPOINT,
        TRAIN_UNSAVED,
        TRAIN_CHECKPOINT_EVERY,
        TRAIN_CHECKPOINT_SECONDS,
        TRAIN_LOST,
    ),
    "Serving": (
        SERVE_REQUESTS,
        SERVE_FLAGS,
        SERVE_LATENCY,
        SERVE_PHASE,
        SERVE_SLACK,
        SERVE_AGE,
        SERVE_ROBOTS,
        SERVE_WAIT,
        SERVE_READY,
        SERVE_REPLICAS,
        SERVE_STEPS,
        SERVE_ROWS,
        SERVE_LOAD,
    ),
    "Robots": (CLIENT_STEPS, CLIENT_TROUBLE, CLIENT_AGE),
}
"""Subject -> its metrics."""


def all_metrics() -> tuple[Metric, ...]:
    """The whole table, in its order."""
    return tuple(metric for group in TABLE.values() for metric in group)
