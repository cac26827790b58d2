"""What this process may use of its machine."""

import os


def cores() -> int:
    """CPU cores: of those that the machine has, a container may be given a few."""
    # macOS cannot say.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
