"""The host's facts: JSON, on any system, and right where the system can be asked in another way."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import pytest

from repzoo import processor
from repzoo.measure import host
from repzoo.processor import INT8_FEATURES


def test_the_facts_are_json_and_agree_with_the_system() -> None:
    facts = host.host()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["cores"] == os.cpu_count()
    assert facts["python"] == platform.python_version()
    assert facts["cpu"]
    assert set(facts["int8"]) <= set(INT8_FEATURES)


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="this system has no /proc/cpuinfo"
)
def test_every_int8_flag_of_the_cpu_is_reported() -> None:
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert set(host.host()["int8"]) == words & set(INT8_FEATURES)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_affinity_is_what_this_process_may_use() -> None:
    assert host.host()["affinity"] == len(os.sched_getaffinity(0))
    assert set(host.host()["cpus"]) == os.sched_getaffinity(0)


def test_what_overrules_a_sessions_threads_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    host.host.cache_clear()
    try:
        threads = host.host()["threads"]
    finally:
        host.host.cache_clear()
    assert threads["OMP_NUM_THREADS"] == "3"
    assert threads["OMP_PROC_BIND"] == "close"


def test_a_system_without_these_files_and_calls_still_has_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "_read", lambda _: "")
    monkeypatch.setattr(processor, "cpuinfo", dict)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    host.host.cache_clear()
    try:
        facts = host.host()
    finally:
        monkeypatch.undo()
        host.host.cache_clear()
    assert facts["cpu"]
    assert facts["governor"] == "unknown"
    assert facts["int8"] == []


def test_load_is_none_where_the_system_does_not_report_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert host.load() is not None
    monkeypatch.delattr(os, "getloadavg")
    assert host.load() is None
