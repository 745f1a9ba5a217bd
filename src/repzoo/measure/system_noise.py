"""What disturbed a measurement: load before and after, processors that others used or that were
stolen, clocks that changed.

What cannot be asked on a system is None, and nothing is said of it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo.measure.host import load

# Above these the figures are still right for what happened, but what happened was not only the
# model.
OTHERS = 0.10  # share of the processors' time that other processes used
STOLEN = 0.01  # share that the hypervisor gave to other machines
CLOCK = 0.05  # change of the mean clock
_STAT, _CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
_FREQUENCIES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Counters:
    """Counters at one time.

    total, busy, stolen: seconds of the processors that this process may use; own: of this
    process.
    """

    load: float | None
    total: float
    busy: float
    stolen: float
    own: float
    mhz: float | None


def read_counters() -> Counters:
    """The counters as they stand."""
    ticks = [values for name, values in _processors() if name in _own_processors()]
    total, busy, stolen = (
        (
            sum(column) / _ticks_a_second()
            for column in zip(*map(_times, ticks), strict=True)
        )
        if ticks
        else (0.0,) * 3
    )
    return Counters(load(), total, busy, stolen, time.process_time(), _mhz())


def between(before: Counters, after: Counters) -> dict[str, Any]:
    """Facts for a Record: load averages, and the shares of the processors' time that others
    used and that was stolen.
    """
    total = after.total - before.total
    others = after.busy - before.busy - (after.own - before.own)
    return {
        "load_before": before.load,
        "load_after": after.load,
        "used_by_others": round(max(0.0, others) / total, 4) if total > 0 else None,
        "stolen": round((after.stolen - before.stolen) / total, 4)
        if total > 0
        else None,
        "mhz_before": before.mhz,
        "mhz_after": after.mhz,
    }


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What of `facts` is above its threshold, for a person."""
    said = []
    others, stolen, before, after = (
        facts.get(key)
        for key in ("used_by_others", "stolen", "mhz_before", "mhz_after")
    )
    if others is not None and others > OTHERS:
        said.append(
            f"other processes used {others:.0%} of the processors' time (more than {OTHERS:.0%} "
            "is too much); stop them"
        )
    if stolen is not None and stolen > STOLEN:
        said.append(
            f"the hypervisor gave {stolen:.0%} of the processors' time to other machines (more "
            f"than {STOLEN:.0%} is too much)"
        )
    if before and after and abs(after / before - 1) > CLOCK:
        said.append(
            f"the clock went from {before:.0f} to {after:.0f} MHz; fix it (governor "
            "performance, no turbo)"
        )
    return said


def loads() -> dict[str, Any]:
    """The load averages as this process began and now, for a Record that knows no closer before
    and after.
    """
    return {"load_before": STARTED.load, "load_after": load()}


def worst(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the facts of several measurements the most disturbing ones, for `sentences`."""
    shares = {
        key: max(
            (one[key] for one in measured if one.get(key) is not None), default=None
        )
        for key in ("used_by_others", "stolen")
    }
    clocks = [
        (one["mhz_before"], one["mhz_after"])
        for one in measured
        if one.get("mhz_before") and one.get("mhz_after")
    ]
    before, after = max(
        clocks, key=lambda pair: abs(pair[1] / pair[0] - 1), default=(None, None)
    )
    return {**shares, "mhz_before": before, "mhz_after": after}


def _processors() -> list[tuple[str, list[int]]]:
    lines = [
        line.split() for line in _text(_STAT).splitlines() if line.startswith("cpu")
    ]
    return [(words[0], [int(word) for word in words[1:]]) for words in lines]


def _own_processors() -> set[str]:
    if not hasattr(os, "sched_getaffinity"):
        return set()
    return {f"cpu{index}" for index in os.sched_getaffinity(0)}


def _times(ticks: list[int]) -> tuple[int, int, int]:
    """(total, busy, stolen) of a line of /proc/stat: user, nice, system, idle, iowait, irq,
    softirq, steal (proc(5)).
    """
    user, nice, system, idle, waiting, irq, softirq, steal = (*ticks, *[0] * 8)[:8]
    busy = user + nice + system + irq + softirq
    return busy + idle + waiting + steal, busy, steal


def _ticks_a_second() -> int:
    return os.sysconf("SC_CLK_TCK")


def _mhz() -> float | None:
    """Mean clock of all processors."""
    exact = [
        _text(path) for path in _FREQUENCIES.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    ]
    if found := [int(text) / 1000 for text in exact if text.isdecimal()]:
        return round(statistics.mean(found), 1)
    lines = [
        line.partition(":")[2]
        for line in _text(_CPUINFO).splitlines()
        if line.startswith("cpu MHz")
    ]
    return round(statistics.mean(map(float, lines)), 1) if lines else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


STARTED = read_counters()  # about when this process began
