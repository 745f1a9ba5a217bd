"""Facts of the machine and the software that a measurement depends on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from repzoo import __version__

# What INT8 kernels choose by, in the names of /proc/cpuinfo (x86, then Arm).
INT8_FLAGS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx_vnni",
    "avx512_vnni",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)

# What overrules the threads that a session is opened with, or moves them.
THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "MKL_NUM_THREADS",
)


@functools.cache
def host() -> dict[str, Any]:
    """What stays as it is while the process runs: CPU, instruction sets, cores, affinity,
    governor, threads, versions.

    int8      the CPU's instructions that INT8 kernels choose by
    affinity  how many CPUs this process may use; cpus: which (empty where the system does not say)
    threads   environment variables that overrule a session's threads
    """
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name")
        or info.get("Model")
        or platform.processor()
        or platform.machine(),
        "machine": platform.machine(),
        "int8": [flag for flag in INT8_FLAGS if flag in flags],
        "cores": os.cpu_count() or 1,
        "affinity": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "cpus": sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else [],
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        or "unknown",
        "threads": {
            name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ
        },
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "repzoo": __version__,
    }


def load() -> float | None:
    """Processes ready to run, averaged over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpuinfo() -> dict[str, str]:
    lines = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    found: dict[str, str] = {}
    for key, _, value in lines:
        found.setdefault(key.strip(), value.strip())
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
