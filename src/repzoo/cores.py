"""The processor cores of this process."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        # A container or taskset may leave fewer than the machine has.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
