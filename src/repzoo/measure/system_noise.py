"""What disturbed a measurement: other processes, other virtual machines, a clock that changed.

A value that the system does not tell is None, and nothing is said about it.
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
from repzoo.remark import Remark

# Above these a measurement still tells what happened, but the model was not its only cause.
OTHERS = 0.10  # share of the processors' time that other processes used
STOLEN = 0.01  # share that the hypervisor gave to other machines
CLOCK = 0.05  # relative change of the mean clock
# A ratio whose interval ends at so many times its beginning tells nothing, whatever the cause: what
# other virtual machines do to caches and memory is in no counter.
UNSTEADY = 2.0

COLUMNS = 8  # of a line of /proc/stat that are counted
_STAT = Path("/proc/stat")
_CPUINFO = Path("/proc/cpuinfo")
_FREQUENCIES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Counters:
    """The system's counters at one time, of the processors that this process may use.

    load    see `host.load`
    total   seconds of all these processors since the system began
    busy    of them, those that any process used
    stolen  of them, those that the hypervisor gave to other machines
    own     seconds that this process used
    mhz     mean clock
    """

    load: float | None
    total: float
    busy: float
    stolen: float
    own: float
    mhz: float | None


def read_counters() -> Counters:
    """The counters now."""
    usable = _usable_processors()
    total = busy = stolen = 0
    for name, ticks in _processors():
        if name in usable:
            own_total, own_busy, own_stolen = _times(ticks)
            total += own_total
            busy += own_busy
            stolen += own_stolen
    # Without /proc/stat there may be no clock ticks to ask for either.
    unit = _ticks_per_second() if total else 1
    return Counters(
        load=load(),
        total=total / unit,
        busy=busy / unit,
        stolen=stolen / unit,
        own=time.process_time(),
        mhz=_mhz(),
    )


def between(before: Counters, after: Counters) -> dict[str, Any]:
    """Facts for a Record: the load, and who else used the processors meanwhile (shares, 0..1)."""
    total = after.total - before.total
    own = after.own - before.own
    others = after.busy - before.busy - own
    stolen = after.stolen - before.stolen
    return {
        "load_before": before.load,
        "load_after": after.load,
        "used_by_others": _share(max(0.0, others), total),
        "stolen": _share(stolen, total),
        "mhz_before": before.mhz,
        "mhz_after": after.mhz,
    }


def _share(seconds: float, total: float) -> float | None:
    return round(seconds / total, 4) if total > 0 else None


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each of `facts` that is above its threshold."""
    warnings: list[str] = []
    others = facts.get("used_by_others")
    if others is not None and others > OTHERS:
        warnings.append(
            Remark(
                "the machine was busy: other processes used {share:.0%} of the processors' time "
                "(more than {limit:.0%} is too much); stop them and measure again",
                share=others,
                limit=OTHERS,
            )
        )
    stolen = facts.get("stolen")
    if stolen is not None and stolen > STOLEN:
        warnings.append(
            Remark(
                "the hypervisor gave {share:.0%} of the processors' time to other machines (more "
                "than {limit:.0%} is too much); measure at another time or on another machine",
                share=stolen,
                limit=STOLEN,
            )
        )
    before = facts.get("mhz_before")
    after = facts.get("mhz_after")
    if before and after and abs(after / before - 1) > CLOCK:
        warnings.append(
            Remark(
                "the clock went from {before:.0f} to {after:.0f} MHz; fix it (governor "
                "performance, no turbo)",
                before=before,
                after=after,
            )
        )
    return warnings


def loads() -> dict[str, Any]:
    """The load when this process began and now, for a Record with no measurement of its own."""
    return {"load_before": STARTED.load, "load_after": load()}


def worst(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The most disturbing facts of several measurements, for `sentences`."""
    facts: dict[str, Any] = {}
    for key in ("used_by_others", "stolen"):
        shares = [item[key] for item in measured if item.get(key) is not None]
        facts[key] = max(shares, default=None)
    facts |= {"mhz_before": None, "mhz_after": None}
    largest = 0.0
    for item in measured:
        before = item.get("mhz_before")
        after = item.get("mhz_after")
        if before and after and abs(after / before - 1) > largest:
            largest = abs(after / before - 1)
            facts |= {"mhz_before": before, "mhz_after": after}
    return facts


def _processors() -> list[tuple[str, list[int]]]:
    """(name, ticks by kind) of every processor in /proc/stat."""
    processors = []
    for line in _read(_STAT).splitlines():
        if line.startswith("cpu"):
            name, *ticks = line.split()
            processors.append((name, [int(text) for text in ticks]))
    return processors


def _usable_processors() -> set[str]:
    if not hasattr(os, "sched_getaffinity"):
        return set()
    return {f"cpu{index}" for index in os.sched_getaffinity(0)}


def _times(ticks: list[int]) -> tuple[int, int, int]:
    """(total, busy, stolen) of a line of /proc/stat.

    The columns are user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); old kernels
    lack the last ones.
    """
    padded = ticks + [0] * COLUMNS
    user, nice, system, idle, iowait, irq, softirq, steal = padded[:COLUMNS]
    busy = user + nice + system + irq + softirq
    total = busy + idle + iowait + steal
    return total, busy, steal


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK")


def _mhz() -> float | None:
    """Mean clock of all processors in MHz."""
    clocks = []
    for path in _FREQUENCIES.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        text = _read(path)
        if text.isdecimal():
            clocks.append(int(text) / 1000)  # the file is in kHz
    if not clocks:
        for line in _read(_CPUINFO).splitlines():
            if line.startswith("cpu MHz"):
                clocks.append(float(line.partition(":")[2]))
    return round(statistics.mean(clocks), 1) if clocks else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


STARTED = read_counters()  # about when this process began
