"""Choosing the range that an activation's quantization covers, from its histogram. Pure functions.

A narrow range gives small steps but clips outliers. Candidates are min-max, percentiles, the range
of least Kullback-Leibler divergence, and min-max shrunk on either side. The one chosen has the
least loss downstream:

    min over (low, high) of  sum_c cost[c] noise[c](low, high)

where noise[c] is the expected squared error of channel c (noise.py), and cost[c] is what a unit of
it costs the layers that read the activation (sensitivity.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.calibration.sensitivity import Sensitivity
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.noise import range_losses
from repzoo.quant.parameters.scales import Range

Float = npt.NDArray[np.float64]

# Fractions of min-max that "mse" tries: finely where the best range usually lies, then by halves,
# for outliers in channels that no layer depends on.
SHRINK_FACTORS = (
    *(float(factor) for factor in np.linspace(0.95, 0.3, 14)),
    *(0.3 / 2**halvings for halvings in range(1, 9)),
)
ENTROPY_BINS = 2048
ENTROPY_LEVELS = 128
ENTROPY_CANDIDATES = 32


class ChosenRange(NamedTuple):
    """The range of an activation.

    Attributes:
        method: how it was chosen, for reports.
        bounds: (low, high).
    """

    method: str
    bounds: Range


def minmax(histogram: Histogram) -> Range:
    """The extremes of all values."""
    return float(histogram.low.min()), float(histogram.high.max())


@dataclass(frozen=True)
class PooledHistogram:
    """The values of all channels in one sorted list of bins. Zeros are one more bin of width 0.

    Attributes:
        low, high: extremes of all values.
        values: center of each bin that is not empty, ascending.
        counts: number of values in each.
        widths: width of each.
    """

    low: float
    high: float
    values: Float
    counts: Float
    widths: Float

    @classmethod
    def extremes_of(cls, histogram: Histogram) -> PooledHistogram:
        """The extremes of `histogram` without its values."""
        low, high = minmax(histogram)
        nothing = np.zeros(0)
        return cls(low, high, nothing, nothing, nothing)

    @classmethod
    def of(cls, histogram: Histogram) -> PooledHistogram:
        """Pool the channels of `histogram`."""
        filled = histogram.counts > 0
        bin_widths = np.broadcast_to(histogram.bin_widths[:, None], filled.shape)
        # the last one is for the zeros
        values = np.append(histogram.centers[filled], 0.0)
        counts = np.append(histogram.counts[filled], histogram.zeros.sum())
        widths = np.append(bin_widths[filled], 0.0)
        order = np.argsort(values, kind="stable")
        low, high = minmax(histogram)
        return cls(
            low,
            high,
            values=values[order],
            counts=counts[order].astype(np.float64),
            widths=widths[order],
        )


def full_range(pooled: PooledHistogram) -> Range:
    """The extremes of all values."""
    return pooled.low, pooled.high


def percentile(pooled: PooledHistogram, share: float = 0.99999) -> Range:
    """The central range that leaves out (1 - share) / 2 of the values on each side."""
    if not len(pooled.values):
        return full_range(pooled)
    cumulative = np.cumsum(pooled.counts) / pooled.counts.sum()
    left_end = (1 - share) / 2
    right_end = (1 + share) / 2
    positions = np.searchsorted(cumulative, [left_end, right_end])
    # rounding may leave the last cumulative share just below the end
    left, right = np.minimum(positions, len(cumulative) - 1)
    low = pooled.values[left] - pooled.widths[left] / 2
    high = pooled.values[right] + pooled.widths[right] / 2
    return max(pooled.low, float(low)), min(pooled.high, float(high))


def narrow_percentile(pooled: PooledHistogram) -> Range:
    """The percentile that leaves out ten times as many values as the usual one."""
    return percentile(pooled, share=0.9999)


def entropy(pooled: PooledHistogram) -> Range:
    """The range -r..r whose quantized histogram has the least Kullback-Leibler divergence.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, without zeros.
    """
    largest = max(-pooled.low, pooled.high)
    if not len(pooled.values) or largest <= 0:
        return full_range(pooled)
    counts = _magnitude_counts(pooled, largest)
    # two bins per level at least: with fewer, most levels would have a bin of their own
    least = 2 * ENTROPY_LEVELS
    ends = np.linspace(least, ENTROPY_BINS, ENTROPY_CANDIDATES).astype(int)
    divergences = [_divergence(counts, end) for end in ends]
    best = ends[int(np.argmin(divergences))]
    reach = largest * (best / ENTROPY_BINS)
    return max(pooled.low, -reach), min(pooled.high, reach)


def _magnitude_counts(pooled: PooledHistogram, largest: float) -> Float:
    """How many values have magnitudes in each of ENTROPY_BINS bins over 0..`largest`."""
    # a bin's center may lie beyond the largest value, outside of np.histogram's range
    magnitudes = np.minimum(np.abs(pooled.values), largest)
    counts, _ = np.histogram(
        magnitudes,
        bins=ENTROPY_BINS,
        range=(0.0, largest),
        weights=pooled.counts,
    )
    return np.asarray(counts, np.float64)


def _divergence(counts: Float, end: int) -> float:
    """KL divergence of a histogram clipped at bin `end` from itself with ENTROPY_LEVELS levels."""
    inside = counts[:end]
    clipped = inside.copy()
    clipped[-1] += counts[end:].sum()
    quantized = _quantized_histogram(inside)
    # KL(p || q) = sum p log(p / q), where 0 log 0 = 0
    reference = clipped / clipped.sum()
    quantized = quantized / quantized.sum()
    log_ratio = np.log(np.maximum(reference, 1e-300) / quantized)
    return float((reference * log_ratio).sum())


def _quantized_histogram(counts: Float) -> Float:
    """`counts` as ENTROPY_LEVELS levels represent them: each spreads its values over its bins."""
    filled = counts > 0
    edges = np.linspace(0, len(counts), ENTROPY_LEVELS + 1).astype(int)
    level_sums = np.add.reduceat(counts, edges[:-1])
    level_bins = np.add.reduceat(filled.astype(float), edges[:-1])
    level_means = level_sums / np.maximum(level_bins, 1)
    # empty bins stay empty, but for a little that keeps the logarithm finite
    spread = np.repeat(level_means, np.diff(edges))
    return np.asarray(spread * filled + 1e-12)


# By name in reports. The first word is the method's name in a scheme.
METHODS: dict[str, Callable[[PooledHistogram], Range]] = {
    "minmax": full_range,
    "percentile 99.999": percentile,
    "percentile 99.99": narrow_percentile,
    "entropy": entropy,
}
# Those that look at more than the extremes.
POOLED_METHODS = frozenset({"percentile", "entropy"})


def choose_range(
    histogram: Histogram,
    sensitivity: Sensitivity,
    method: str,
    scheme: QuantScheme,
) -> ChosenRange:
    """The range of least downstream loss among the candidates of `method`.

    Args:
        histogram: of the activation.
        sensitivity: cost of a unit of squared error in each of its channels.
        method: "auto" for all `range_methods` of the scheme that the loss can judge, or one of
            minmax, percentile, entropy, mse (min-max and its shrunk versions), and typical (the
            mean of each image's extremes).
        scheme: where it is symmetric, each range is extended to -r..r.
    """
    lowest, _ = minmax(histogram)
    symmetric = scheme.is_symmetric(lowest)
    if method == "typical":
        chosen = ChosenRange(method, histogram.typical_extremes)
        return _symmetric_range(chosen) if symmetric else chosen
    if method not in ("auto", "mse"):
        # of the two percentiles, the wider one
        return _candidate_ranges(histogram, (method,), symmetric)[0]
    methods = scheme.range_methods if method == "auto" else ("minmax", "mse")
    candidates = _candidate_ranges(histogram, methods, symmetric)
    bounds = np.array([candidate.bounds for candidate in candidates])
    losses = range_losses(histogram, sensitivity.cost, bounds, sensitivity.function)
    return candidates[int(np.argmin(losses))]


def _candidate_ranges(
    histogram: Histogram,
    methods: Sequence[str],
    symmetric: bool,
) -> list[ChosenRange]:
    """Everything that `methods` propose."""
    candidates: list[ChosenRange] = []
    # the extremes need no pooled bins, whose sorting takes most of the time
    pooled = PooledHistogram.extremes_of(histogram)
    if not POOLED_METHODS.isdisjoint(methods):
        pooled = PooledHistogram.of(histogram)
    for name, range_of in METHODS.items():
        method = name.split()[0]
        if method in methods:
            candidates.append(ChosenRange(name, range_of(pooled)))
    if "mse" in methods:
        for bounds in _shrunk_ranges(pooled.low, pooled.high, symmetric):
            candidates.append(ChosenRange("mse", bounds))
    if symmetric:
        return [_symmetric_range(candidate) for candidate in candidates]
    return candidates


def _shrunk_ranges(
    low: float,
    high: float,
    symmetric: bool,
) -> list[Range]:
    """low..high, then with both sides shrunk alike, then with each side alone."""
    both: list[Range] = []
    lower: list[Range] = []
    upper: list[Range] = []
    for factor in SHRINK_FACTORS:
        both.append((low * factor, high * factor))
        lower.append((low * factor, high))
        upper.append((low, high * factor))
    if low >= 0 or symmetric:
        lower = []  # it would change nothing, or no more than `both` does
    return [(low, high), *both, *lower, *upper]


def _symmetric_range(chosen: ChosenRange) -> ChosenRange:
    """The range -r..r that holds `chosen`."""
    low, high = chosen.bounds
    largest = max(-low, high)
    return ChosenRange(chosen.method, (-largest, largest))
