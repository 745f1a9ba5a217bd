"""A measured result in one line, for those kinds of result that people compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repzoo.measure.results import Accuracy, Latency, LatencyRatio, PairedAccuracy
from repzoo.printable import signed, significant


def sentence(values: Any, *names: str) -> str:
    """`values` in one line; "" for a kind of result that has no line.

    names  of the model, or of the first and the second
    """
    line = _LINES.get(type(values))
    return line(values, *names) if line else ""


def drop_clause(values: PairedAccuracy) -> str:
    """The drop with its interval and p-value."""
    return (
        f"drop {signed(values.drop)} points (95 % interval {signed(values.drop_low)} to "
        f"{signed(values.drop_high)}, p = {values.p_value:.3g})"
    )


def gate_sentence(values: PairedAccuracy, precision: str) -> str:
    """Accuracy in float and in `precision` on the gate images, as far as it is known."""
    if values.top1 is not None and values.first_top1 is not None:
        return (
            f"Top-1 on the {values.n} gate images: float {values.first_top1:.2f} %, "
            f"{precision} {values.top1:.2f} %, drop {signed(values.drop)} points (95 % interval "
            f"{signed(values.drop_low)} to {signed(values.drop_high)})"
        )
    what = "labels" if values.multi_label else "predictions"
    return (
        f"no labels, so no Top-1; {values.same_prediction:.2f} % of the {what} on the {values.n} "
        "gate images are the float model's"
    )


def _accuracy(values: Accuracy, name: str) -> str:
    return (
        f"{name}: Top-1 {values.top1:.2f} % (95 % interval {values.top1_low:.2f} to "
        f"{values.top1_high:.2f}), {values.n} images"
    )


def _paired(values: PairedAccuracy, first: str, second: str) -> str:
    return f"{second} against {first}: {drop_clause(values)}, {values.n} images"


def _latency(values: Latency, name: str) -> str:
    p50, p90 = significant(values.p50_ms, 3), significant(values.p90_ms, 3)
    return f"{name}, {values.setting}: p50 {p50} ms, p90 {p90} ms"


def ratio_sentence(values: LatencyRatio, first: str, second: str) -> str:
    """The ratio of times, or for offline of images a second, with its interval."""
    # Offline has no latency of its own: all images are there at the start.
    if values.setting.scenario == "offline":
        claim = (
            f"{first} does {values.fps_ratio:.3f} times the images a second of {second}"
        )
        interval = f"{values.fps_ratio_low:.3f} .. {values.fps_ratio_high:.3f}"
    else:
        claim = f"{first} takes {values.ratio:.3f} times as long as {second}"
        interval = f"{values.ratio_low:.3f} .. {values.ratio_high:.3f}"
    return f"{claim} (95 % interval {interval}): {_verdict(values)}"


def _verdict(values: LatencyRatio) -> str:
    """Which side is faster, where the interval excludes 1."""
    if values.faster is not None:
        return "faster" if values.faster == "first" else "slower"
    if values.busy:
        return "the machine was too busy to say which engine is faster"
    return "which is faster is not decided"


_LINES: dict[type, Callable[..., str]] = {
    Accuracy: _accuracy,
    PairedAccuracy: _paired,
    Latency: _latency,
    LatencyRatio: ratio_sentence,
}
