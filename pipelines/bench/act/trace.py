"""Where the time of a request goes: a profile of whole requests, as a Chrome trace and as the
operations that take most.
"""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gwp.policy.policy import Policy
from pipelines.bench.act.sizes import Size, observation

_REQUESTS = 3
_MOST = 12


def trace(policy: Policy, size: Size, file: str | Path) -> list[dict[str, Any]]:
    """Writes a trace for chrome://tracing or Perfetto; returns operations with their own
    milliseconds and calls per request.
    """
    cuda = policy.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    seen = observation(size, 0)
    for _ in range(_REQUESTS):
        policy.act(seen)
    with profile(activities=activities) as profiler:
        for _ in range(_REQUESTS):
            policy.act(seen)
        if cuda:
            torch.cuda.synchronize(policy.device)
    profiler.export_chrome_trace(str(file))
    rows = [
        {
            "name": row.key,
            "ms": (row.self_device_time_total if cuda else row.self_cpu_time_total)
            / 1e3
            / _REQUESTS,
            "calls": row.count / _REQUESTS,
        }
        for row in profiler.key_averages()
    ]
    return sorted(rows, key=lambda row: -row["ms"])[:_MOST]
