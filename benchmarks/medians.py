"""Medians of interleaved rounds, as the benchmarks print them."""

from __future__ import annotations

from repzoo.measure import stats


def print_median(title: str, values: list[float]) -> None:
    """Print the median with its interval."""
    median = stats.median_interval(values)
    interval = f"95 % interval {median.low:.3f} .. {median.high:.3f}"
    print(f"{title}: {median.value:.3f} ({interval}, {len(values)} rounds)", flush=True)
