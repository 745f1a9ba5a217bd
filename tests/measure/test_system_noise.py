"""Noise: the counters of Linux as written in proc(5), and a busy process beside this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repzoo.measure import system_noise as noise

STAT = """cpu  9 9 9 9 9 9 9 9 9 9
cpu0 100 10 20 300 5 1 4 60 7 0
cpu1 1000 0 0 0 0 0 0 0 0 0
intr 1
"""


def test_the_lines_of_the_own_processors_are_added_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    stat.write_text(STAT)
    monkeypatch.setattr(noise, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    counters = noise.read_counters()
    assert (counters.total, counters.busy, counters.stolen) == (
        5.0,
        1.35,
        0.6,
    )  # user, nice, system, irq and softirq are busy


def moment(**changes: float | None) -> noise.Counters:
    usual = {
        "load": 1.0,
        "total": 0.0,
        "busy": 0.0,
        "stolen": 0.0,
        "own": 0.0,
        "mhz": None,
    }
    return noise.Counters(**{**usual, **changes})  # type: ignore[arg-type]


def test_time_of_this_process_is_not_counted_as_used_by_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise, "OTHERS", 0.1)
    facts = noise.between(
        moment(), moment(load=3.0, total=10.0, busy=6.0, own=4.0, stolen=0.5)
    )
    assert (facts["load_before"], facts["load_after"]) == (1.0, 3.0)
    assert (facts["used_by_others"], facts["stolen"]) == (0.2, 0.05)
    lines = noise.sentences(facts)
    assert len(lines) == 2
    assert "20%" in lines[0]
    assert "5%" in lines[1]


def test_there_is_no_remark_below_the_thresholds_or_without_counters() -> None:
    calm = moment(total=10.0, busy=4.5, own=4.0, stolen=0.05, mhz=2040.0)
    assert noise.sentences(noise.between(moment(mhz=2000.0), calm)) == []
    unknown = noise.between(moment(load=None), moment(load=None))
    assert set(unknown.values()) == {None}
    assert noise.sentences(unknown) == []
    assert (
        "2000 to 1500 MHz"
        in noise.sentences(noise.between(moment(mhz=2000.0), moment(mhz=1500.0)))[0]
    )


def test_the_worst_of_several_measurements_is_reported() -> None:
    first = noise.between(
        moment(mhz=2000.0),
        moment(total=10.0, busy=1.0, own=0.0, stolen=0.5, mhz=2000.0),
    )
    second = noise.between(
        moment(mhz=2000.0), moment(total=10.0, busy=3.0, own=0.0, mhz=1000.0)
    )
    assert noise.worst([first, second]) == {
        "used_by_others": 0.3,
        "stolen": 0.05,
        "mhz_before": 2000.0,
        "mhz_after": 1000.0,
    }
    assert noise.worst([])["stolen"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="the counters are Linux's")
def test_another_process_at_work_is_seen() -> None:
    """A child that spins for half a second of its processor time is seen as at least most of
    that, in the kernel's own count.
    """
    before = noise.read_counters()
    began = time.process_time()
    spin = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    facts, own = (
        noise.between(before, noise.read_counters()),
        time.process_time() - began,
    )
    total = noise.read_counters().total - before.total
    assert facts["used_by_others"] * total >= 0.4 - own
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_system_without_counters_knows_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_STAT", "_CPUINFO", "_FREQUENCIES"):
        monkeypatch.setattr(noise, name, tmp_path / "absent")
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert set(
        noise.between(noise.read_counters(), noise.read_counters()).values()
    ) == {None}
