"""Plausible results of measurements for tests; a test gives only the values that it is about."""

from __future__ import annotations

from typing import Any

from repzoo.measure.comparison_results import EngineComparison
from repzoo.measure.results import (
    ExpectedDrop,
    Latency,
    LatencyRatio,
    PairedAccuracy,
    Setting,
)


def latency_ratio(
    ratio: float, low: float | None = None, high: float | None = None
) -> LatencyRatio:
    """`ratio` with its interval, in the usual setting."""
    return LatencyRatio(
        setting=Setting(),
        ratio=ratio,
        ratio_low=ratio if low is None else low,
        ratio_high=ratio if high is None else high,
        faster=None,
        rounds=24,
    )


def paired_accuracy(drop: float = 0.0, **values: Any) -> PairedAccuracy:
    """A paired comparison; its interval reaches one point to either side of `drop`."""
    defaults: dict[str, Any] = {
        "n": 100,
        "drop": drop,
        "drop_low": drop - 1,
        "drop_high": drop + 1,
        "p_value": 0.5,
        "same_prediction": 99.0,
        "lost": 0,
        "gained": 0,
        "labeled": True,
    }
    return PairedAccuracy(**(defaults | values))


def latency(p50_ms: float = 1.0, **values: Any) -> Latency:
    """A latency in the usual setting, unless `setting` is given."""
    defaults: dict[str, Any] = {
        "setting": Setting(),
        "p50_ms": p50_ms,
        "p50_low_ms": p50_ms,
        "p50_high_ms": p50_ms,
        "p90_ms": p50_ms,
        "p99_ms": p50_ms,
        "fps": 1000 / p50_ms,
        "fps_low": 1000 / p50_ms,
        "fps_high": 1000 / p50_ms,
        "samples": 1000,
        "rounds": 24,
        "steady": True,
        "spread": 0.01,
    }
    return Latency(**(defaults | values))


def engine_comparison(
    drop: float, n: int = 100, expected_drop: float | None = None
) -> EngineComparison:
    """A quantizer's model on one engine; `expected_drop` with a standard error of 0.1 points."""
    expected = None
    if expected_drop is not None:
        expected = ExpectedDrop(
            changed=1.0, changed_error=0.1, drop=expected_drop, drop_error=0.1
        )
    return EngineComparison(
        n=n,
        drop=drop,
        drop_low=drop - 1,
        drop_high=drop + 1,
        same_prediction=97.5,
        expected=expected,
        float_top1=90.0,
        latency_ratio=0.5,
        latency_ratio_low=0.4,
        latency_ratio_high=0.6,
    )
