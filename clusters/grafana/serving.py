"""The dashboard of an endpoint: time, slack, ages, batches, versions and the safety envelope."""

from clusters.grafana.panels import OF_APP, Dashboard, Panel, Query, quantile, rate
from gwp.metrics import names as m

SERVING = Dashboard(
    "serving",
    "gwp: serving",
    "app",
    m.SERVE_REQUESTS,
    (
        Panel(
            "Requests by outcome",
            "reqps",
            "`ok`, or the code of the refusal.",
            (Query(rate(m.SERVE_REQUESTS, "app, outcome", OF_APP), "{{app}} {{outcome}}"),),
        ),
        Panel(
            "Robots",
            "short",
            "Open websockets.",
            (Query(f"sum by (app) ({m.SERVE_ROBOTS.exported}{OF_APP})", "{{app}}"),),
        ),
        Panel(
            "Time of an answer",
            "s",
            "From its arrival on.",
            tuple(
                Query(
                    quantile(share, m.SERVE_LATENCY, "app", OF_APP),
                    f"{{{{app}}}} {share:.0%}",
                )
                for share in (0.5, 0.95, 0.99)
            ),
        ),
        Panel(
            "Time by phase",
            "s",
            "Mean of the answers of a minute; `outside` is all that is not the policy.",
            (
                Query(
                    f"{rate(m.SERVE_PHASE, 'app, phase', OF_APP)} / on (app) group_left "
                    f"{rate(m.SERVE_LATENCY, 'app', OF_APP, '_count')}",
                    "{{app}} {{phase}}",
                ),
            ),
        ),
        Panel(
            "Slack",
            "s",
            "Left until the robot's deadline when its chunk was ready: half of the answers, and "
            "the tightest 5 %.",
            (
                Query(quantile(0.5, m.SERVE_SLACK, "app", OF_APP), "{{app}} half"),
                Query(quantile(0.05, m.SERVE_SLACK, "app", OF_APP), "{{app}} 5 %"),
            ),
        ),
        Panel(
            "Age of observations",
            "s",
            "When the chunk was ready: network, queue and model together.",
            (
                Query(quantile(0.5, m.SERVE_AGE, "app", OF_APP), "{{app}} half"),
                Query(quantile(0.99, m.SERVE_AGE, "app", OF_APP), "{{app}} 99 %"),
            ),
        ),
        Panel(
            "Batch size",
            "short",
            "Robots that a replica computes together in a solver step.",
            (
                Query(
                    f"{rate(m.SERVE_ROWS, 'app', OF_APP)} / {rate(m.SERVE_STEPS, 'app', OF_APP)}",
                    "{{app}}",
                ),
            ),
        ),
        Panel(
            "Load of a replica",
            "short",
            "Requests that wait or are computed. Scaling aims at `target_ongoing_requests`.",
            (Query(m.SERVE_LOAD.exported + OF_APP, "{{app}} {{process}}"),),
        ),
        Panel(
            "What a newcomer would wait",
            "s",
            "As each gateway reckons.",
            (Query(m.SERVE_WAIT.exported + OF_APP, "{{app}} {{process}}"),),
        ),
        Panel(
            "Replicas by policy",
            "short",
            "Two lines of one application: a new version is being rolled out.",
            (
                Query(
                    f"sum by (app, policy, version) ({m.SERVE_REPLICAS.exported}{OF_APP})",
                    "{{app}} {{policy}} v{{version}}",
                ),
            ),
        ),
        Panel(
            "Gateways that can answer",
            "short",
            "Those that have a replica.",
            (Query(f"sum by (app) ({m.SERVE_READY.exported}{OF_APP})", "{{app}}"),),
        ),
        Panel(
            "Flags of answers",
            "ops",
            "What the safety envelope changed, and other remarks, per second.",
            (Query(rate(m.SERVE_FLAGS, "app, kind", OF_APP), "{{app}} {{kind}}"),),
        ),
        Panel(
            "Steps of robots, as they report",
            "ops",
            "Per second, by make: rows executed, of those blended; held without a row; skipped.",
            (
                Query(
                    rate(m.CLIENT_STEPS, "app, embodiment, kind", OF_APP),
                    "{{app}} {{embodiment}} {{kind}}",
                ),
            ),
        ),
        Panel(
            "Trouble of robots, as they report",
            "ops",
            "Per second: rows ran dry, replies were late, requests failed.",
            (
                Query(
                    rate(m.CLIENT_TROUBLE, "app, embodiment, kind", OF_APP),
                    "{{app}} {{embodiment}} {{kind}}",
                ),
            ),
        ),
        Panel(
            "Age at execution, as robots report",
            "s",
            "Of the oldest observation behind a row, by report and make.",
            (
                Query(
                    quantile(0.95, m.CLIENT_AGE, "app, embodiment", OF_APP),
                    "{{app}} {{embodiment}} 95 %",
                ),
            ),
        ),
    ),
)
