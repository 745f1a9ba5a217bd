"""Facts of the machine and the software that a measurement depends on."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repzoo import __version__, processor
from repzoo.remark import Remark

# Environment variables that overrule a session's number of threads, move its threads, or keep
# OpenVINO from instructions that the processor has.
OVERRULING = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "MKL_NUM_THREADS",
    processor.ISA_LIMIT,
)


@functools.cache
def host() -> dict[str, Any]:
    """Facts that do not change while the process runs.

    int8      the CPU's features that INT8 kernels are chosen by
    affinity  how many CPUs this process may use
    cpus      which CPUs; empty where the system does not say
    threads   environment variables that overrule how engines run
    """
    info = processor.cpuinfo()
    name = info.get("model name") or info.get("Model")  # x86, Arm
    cores = os.cpu_count() or 1
    cpus = _usable_cpus()
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    threads = {}
    for variable in OVERRULING:
        if variable in os.environ:
            threads[variable] = os.environ[variable]
    return {
        "cpu": name or platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "int8": processor.int8_features(),
        "cores": cores,
        "affinity": len(cpus) or cores,
        "cpus": cpus,
        "governor": governor or "unknown",
        "threads": threads,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "repzoo": __version__,
    }


def describe(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a Record's host as a person reads them, by topic.

    The topics are processor, int8, system, software, threads and load; those of which `facts`
    says nothing are absent.
    """
    described = {"processor": _processor(facts)}
    if "int8" in facts:
        described["int8"] = ", ".join(facts["int8"]) or Remark(
            "none of those that are known"
        )
    if "system" in facts:
        described["system"] = f"{facts['system']}, {facts.get('machine', '')}"
    versions = []
    for key, name in (("repzoo", "repzoo"), ("python", "Python"), ("numpy", "NumPy")):
        if key in facts:
            versions.append(f"{name} {facts[key]}")
    described["software"] = ", ".join(versions)
    threads = facts.get("threads") or {}
    described["threads"] = ", ".join(f"{key}={value}" for key, value in threads.items())
    described["load"] = _load(facts)
    return {topic: text for topic, text in described.items() if text}


def load() -> float | None:
    """Processes ready to run, averaged over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor(facts: Mapping[str, Any]) -> str:
    """Name, cores and clock governor, such as "AMD EPYC, 2 of 4 cores"."""
    text = str(facts.get("cpu", ""))
    cores = facts.get("cores")
    if cores:
        text = _with_cores(text, facts.get("affinity", cores), cores)
    governor = facts.get("governor", "unknown")
    if governor == "unknown":
        return text
    return Remark("{processor}, governor {governor}", processor=text, governor=governor)


def _with_cores(processor: str, usable: int, cores: int) -> str:
    if usable != cores:
        return Remark(
            "{processor}, {usable} of {cores} cores",
            processor=processor,
            usable=usable,
            cores=cores,
        )
    if cores == 1:
        return Remark("{processor}, 1 core", processor=processor)
    return Remark("{processor}, {cores} cores", processor=processor, cores=cores)


def _load(facts: Mapping[str, Any]) -> str:
    """How busy the machine was, such as "1.2 before, 2.0 after"."""
    before = facts.get("load_before")
    after = facts.get("load_after")
    if before is None or after is None:
        return ""
    text = Remark("{before:.1f} before, {after:.1f} after", before=before, after=after)
    others = facts.get("used_by_others")
    if others is None:
        return text
    return Remark(
        "{load}; other processes used {share:.0%} of the processors' time",
        load=text,
        share=others,
    )


def _usable_cpus() -> list[int]:
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
