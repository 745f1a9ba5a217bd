"""This machine's processor: its cores, and the instructions that INT8 kernels are chosen by."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path

# In the names of /proc/cpuinfo (x86, then Arm).
INT8_FEATURES = (
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
# Of x86, those that add 8-bit products in 32 bits.
EXACT_FEATURES = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
# Environment variable that keeps OpenVINO from later instructions than it names.
ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
X86 = frozenset({"x86_64", "AMD64", "i686"})


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        # A container or taskset may leave fewer than the machine has.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def cpuinfo() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; {} where the system has none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.strip().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def int8_features() -> list[str]:
    """Those of INT8_FEATURES that this processor has, in their order."""
    # Arm names the field otherwise.
    listed = cpuinfo().get("flags") or cpuinfo().get("Features") or ""
    return [name for name in INT8_FEATURES if name in listed.split()]


def is_kept_from_bfloat16() -> bool:
    """Whether ISA_LIMIT names instructions without bfloat16, as AVX512_CORE_VNNI does."""
    limit = os.environ.get(ISA_LIMIT, "").upper()
    has_bfloat16 = any(part in limit for part in ("BF16", "FP16", "AMX", "DEFAULT"))
    return bool(limit) and not has_bfloat16


def sums_saturate(machine: str, features: Sequence[str]) -> bool:
    """Whether kernels that multiply uint8 by int8 saturate: on x86 without VNNI.

    machine   as platform.machine() says
    features  see `int8_features`
    """
    return machine in X86 and EXACT_FEATURES.isdisjoint(features)


def sums_saturate_here() -> bool:
    """`sums_saturate` of this machine."""
    return sums_saturate(platform.machine(), int8_features())
