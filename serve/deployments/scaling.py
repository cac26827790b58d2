"""How many replicas a load needs: the policy that Serve's autoscaler asks."""

from typing import Any

from ray.serve.config import AutoscalingContext

LOAD = "load"
"""What replicas report: their requests that wait or are computed."""


def by_load(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Replicas for the requests that there are now, `target_ongoing_requests` each. Delays and
    bounds are Serve's business.
    """
    loads = context.aggregated_metrics.get(LOAD, {}) if context.aggregated_metrics else {}
    config = context.config
    if not loads or config is None:
        return context.current_num_replicas, {}
    # Those that still start have reported nothing.
    total = sum(loads.values())
    return total / config.get_target_ongoing_requests(), {}
