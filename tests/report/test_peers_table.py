"""The tables of benchmarks/peers.py: the newest runs, narrow, with the geometric mean."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repzoo.errors import InputError
from repzoo.measure import record
from repzoo.measure.peer_latency import PeerLatency
from repzoo.measure.record import Record
from repzoo.measure.results import Latency, LatencyRatio, Setting
from repzoo.report import peers, tables

HOST = {"cpu": "some", "vnni": False, "clock_ghz": 3.1, "macs_per_cycle": 16.1}


def latency(ms: float, setting: Setting) -> Latency:
    return Latency(
        setting=setting,
        p50_ms=ms,
        p50_low_ms=ms,
        p50_high_ms=ms,
        p90_ms=ms,
        p99_ms=ms,
        fps=1000 / ms,
        fps_low=1000 / ms,
        fps_high=1000 / ms,
        samples=100,
        steady=True,
    )


def over(value: float, setting: Setting) -> LatencyRatio:
    return LatencyRatio(
        setting=setting,
        ratio=value,
        ratio_low=value - 0.01,
        ratio_high=value + 0.01,
        faster=None,
        rounds=24,
    )


def row(
    model: str, contender: str, ms: float | None, ratio: float | None, **changes: Any
) -> Record[PeerLatency]:
    """A row of `contender`; `changes` are fields of PeerLatency, `job`, `engine` and `vnni`."""
    setting = changes.pop("setting", Setting())
    job = changes.pop("job", "1")
    engine = changes.pop("engine", {"name": "openvino"})
    host = {**HOST, "peak": "FMA", "vnni": changes.pop("vnni", False)}
    values = PeerLatency(
        setting=setting,
        contender=contender,
        own=contender.startswith("repzoo"),
        macs=10**9,
        peak_share=0.5,
        ms=ms,
        latency=None if ms is None else latency(ms, setting),
        ratio=None if ratio is None else over(ratio, setting),
        exact_ratio=None if ratio is None else over(ratio - 0.1, setting),
    )
    values = replace(values, **changes)
    return Record({"name": model}, values, engine, host=host, job=job)


def lines_of(*rows: Record[Any]) -> list[str]:
    return peers.table(rows, "en")


def test_own_best_over_the_best_peer_and_its_geometric_mean() -> None:
    lines = lines_of(
        row("a", "NNCF", 10.0, None),
        row("a", "repzoo float", 12.0, 1.2),
        row("a", "repzoo INT8", 9.0, 0.9),
        row("b", "float", 5.0, None, job="2"),
        row("b", "repzoo INT8", 2.0, 0.4, job="2"),
    )
    assert "| a | 1, 1 | 0.90 (0.89 to 0.91) | 0.80 (0.79 to 0.81) |" in lines
    assert "| b | 1, 1 | 0.40 (0.39 to 0.41) | 0.30 (0.29 to 0.31) |" in lines
    mean, exact = math.sqrt(0.9 * 0.4), math.sqrt(0.8 * 0.3)
    assert f"| geometric mean | 1, 1 | {mean:.2f} | {exact:.2f} |" in lines


def test_rows_are_sorted_by_latency_and_say_which_peer_is_the_best() -> None:
    lines = lines_of(
        row("a", "float", 12.0, 1.2),
        row("a", "NNCF", 10.0, None, exact=False),
    )
    first = lines.index("| NNCF | openvino, clips | 10.0 | best peer | 50 % | – |")
    assert lines[first + 1].startswith("| float | openvino | 12.0 | 1.20 (1.19 to")


def test_files_of_our_own_count_where_they_are_exact_and_pass_the_gate() -> None:
    lines = lines_of(
        row("a", "NNCF", 10.0, None, same=97.25),
        row("a", "repzoo INT8", 7.0, 0.7, same=65.2, refused=True),
        row("a", "repzoo INT8", 8.0, 0.8, exact=False),
        row("a", "repzoo INT8", 9.0, 0.9, same=100.0, refused=False),
        row("a", "repzoo float", 12.0, 1.2),
    )
    assert any(line.startswith("| a | 1, 1 | 0.90") for line in lines)
    shown = [line.split(" | ")[-1] for line in lines if "50 %" in line]
    assert shown == ["✗ 65 |", "– |", "100 |", "97.2 |", "– |"]


def test_the_newest_run_of_each_host_and_setting_is_shown() -> None:
    two = Setting(threads=2, batch=8)
    lines = lines_of(
        row("a", "repzoo INT8", 10.0, 1.5),
        row("a", "repzoo INT8", 10.0, 0.7, job="2"),
        row("a", "repzoo INT8", 10.0, 0.6, job="3", setting=two),
        row("a", "repzoo INT8", 10.0, 0.5, job="4", vnni=True),
    )
    text = "\n".join(lines)
    assert "1.50" not in text
    assert "| a | 1, 1 | 0.70" in text
    assert "| a | 2, 8 | 0.60" in text
    assert text.index("without VNNI") < text.index("with VNNI")
    # Row by row, only one thread and a batch of 1.
    assert text.count("**a**") == 2


def test_what_was_not_timed_is_said_with_the_reason() -> None:
    reason = "torch.compile needs a C++ compiler; there is none"
    lines = lines_of(
        row("a", "NNCF", 10.0, None),
        row("a", "timm", None, None, reason=reason),
    )
    assert f"Not timed: timm, openvino: {reason}" in lines
    with pytest.raises(InputError, match="nothing was timed yet"):
        lines_of(row("a", "timm", None, None, reason=reason))


def test_the_table_has_at_most_80_columns(tmp_path: Path) -> None:
    longest = {"name": "onnxruntime", "session": "exact"}
    rows = [
        row(
            "mobilenetv4_conv_small", "repzoo INT8", 12.3, 1.02, exact=False, same=99.5
        ),
        row("mobilenetv4_conv_small", "repzoo INT8", 9.9, 1.02, same=9.5, refused=True),
        row(
            "mobilenetv4_conv_small",
            "repzoo float",
            12.3,
            1.02,
            engine=longest,
            same=100.0,
        ),
        row("mobilenetv4_conv_small", "ORT static", 12.3, 1.02, engine=longest),
        row("mobilenetv4_conv_small", "timm", None, None, reason="x " * 90),
    ]
    record.append(tmp_path / "peers.jsonl", rows)
    page = "<!-- table: peers -->\n<!-- end -->\n"
    for language in ("en", "zh"):
        document = tables.render(page, tmp_path, language)
        assert max(map(len, document.splitlines())) <= 80


def test_names_cannot_break_the_table() -> None:
    lines = lines_of(row("a|b", "NNCF|x", 10.0, None, engine={"name": "c|d"}))
    rows = [line for line in lines if line.startswith("|") and "50 %" in line]
    assert rows == [r"| NNCF\|x | c\|d | 10.0 | best peer | 50 % | – |"]
