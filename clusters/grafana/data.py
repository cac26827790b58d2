"""The dashboard of decoding: whether it keeps up, and what cannot be read."""

from clusters.grafana.panels import OF_RUN, Dashboard, Panel, Query, rate
from gwp.metrics import names as m


def _phase_share(phase: str) -> str:
    """Share of the workers' time, by run."""
    chosen = f'{{run=~"$run", phase="{phase}"}}'
    return f"{rate(m.TRAIN_PHASE, 'run', chosen)} / {rate(m.TRAIN_PHASE, 'run', OF_RUN)}"


_BROKEN = (
    f"{rate(m.DATA_FAILURES, 'run', OF_RUN)} / "
    f"({rate(m.DATA_FAILURES, 'run', OF_RUN)} + {rate(m.DATA_SAMPLES, 'run', OF_RUN)})"
)

DATA = Dashboard(
    "data",
    "gwp: data",
    "run",
    m.DATA_SAMPLES,
    (
        Panel(
            "Decoded samples per second",
            "short",
            "By all decoding processes.",
            (Query(rate(m.DATA_SAMPLES, "run", OF_RUN), "{{run}}"),),
        ),
        Panel(
            "Waiting for data",
            "percentunit",
            "Share of the workers' time. Near 0 the accelerators are busy.",
            (Query(_phase_share("waiting for data"), "{{run}}"),),
        ),
        Panel(
            "Busy decoding processes",
            "short",
            "As many as `cluster.decode_tasks` when decoding is what a run waits for.",
            (Query(rate(m.DATA_SECONDS, "run", OF_RUN), "{{run}}"),),
        ),
        Panel(
            "Decoding time of a sample",
            "s",
            "Of one process. What `gwp plan` takes as `--decode-rate` is one divided by it.",
            (
                Query(
                    f"{rate(m.DATA_SECONDS, 'run', OF_RUN)} / {rate(m.DATA_SAMPLES, 'run', OF_RUN)}",
                    "{{run}}",
                ),
            ),
        ),
        Panel(
            "Broken samples",
            "percentunit",
            "Share of samples that could not be read. Above `data.max_broken` the run stops.",
            (Query(_BROKEN, "{{run}}"),),
        ),
        Panel(
            "Arrays to the workers",
            "Bps",
            "What decoders put into the object store: pictures or latents, states, actions.",
            (Query(rate(m.DATA_BYTES, "run", OF_RUN), "{{run}}"),),
        ),
        Panel(
            "Object store of Ray",
            "bytes",
            "In memory on each node. What does not fit is spilled to disk.",
            (
                Query(
                    "sum by (NodeAddress, Location) (ray_object_store_memory)",
                    "{{NodeAddress}} {{Location}}",
                ),
            ),
        ),
    ),
)
