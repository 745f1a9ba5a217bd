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

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.network.functions import Function, identity
from repzoo.quant.parameters.noise import range_losses
from repzoo.quant.parameters.scales import UINT8_STEPS, Range

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Fractions of min-max that "mse" tries: finely where the best range usually lies, then by halves,
# for outliers in channels that no layer depends on.
SHRINK_FACTORS = (
    *(float(factor) for factor in np.linspace(0.95, 0.3, 14)),
    *(0.3 / 2**halvings for halvings in range(1, 9)),
)
ENTROPY_BINS = 2048
ENTROPY_LEVELS = 128
ENTROPY_CANDIDATES = 32

# Aligning a range with pixel values: steps up to so much wider are tried, so many of them, and the
# error must fall to this fraction. A smaller gain may be due to the particular samples.
MAX_ALIGNMENT_STRETCH = 1.04
ALIGNMENT_CANDIDATES = 41
REQUIRED_ALIGNMENT_GAIN = 0.8


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


def percentile(pooled: PooledHistogram, share: float = 0.99999) -> Range:
    """The central range that leaves out (1 - share) / 2 of the values on each side."""
    if not len(pooled.values):
        return pooled.low, pooled.high
    cumulative = np.cumsum(pooled.counts) / pooled.counts.sum()
    ends = [(1 - share) / 2, (1 + share) / 2]
    # rounding may leave the last cumulative share just below the end
    last = len(cumulative) - 1
    left, right = np.minimum(np.searchsorted(cumulative, ends), last)
    low = pooled.values[left] - pooled.widths[left] / 2
    high = pooled.values[right] + pooled.widths[right] / 2
    return max(pooled.low, float(low)), min(pooled.high, float(high))


def entropy(pooled: PooledHistogram) -> Range:
    """The range -r..r whose quantized histogram has the least Kullback-Leibler divergence.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, without zeros.
    """
    largest = max(-pooled.low, pooled.high)
    if not len(pooled.values) or largest <= 0:
        return pooled.low, pooled.high
    # a bin's center may lie beyond the largest value, outside of np.histogram's range
    magnitudes = np.minimum(np.abs(pooled.values), largest)
    counts, _ = np.histogram(
        magnitudes,
        bins=ENTROPY_BINS,
        range=(0.0, largest),
        weights=pooled.counts,
    )
    # two bins per level at least: with fewer, most levels would have a bin of their own
    ends = np.linspace(2 * ENTROPY_LEVELS, ENTROPY_BINS, ENTROPY_CANDIDATES)
    ends = ends.astype(int)
    divergences = [_divergence(counts, end) for end in ends]
    best = int(np.argmin(divergences))
    reach = largest * (ends[best] / ENTROPY_BINS)
    return max(pooled.low, -reach), min(pooled.high, reach)


def _divergence(counts: Float, end: int) -> float:
    """KL divergence of a histogram clipped at bin `end` from itself with ENTROPY_LEVELS levels."""
    clipped = counts[:end].copy()
    clipped[-1] += counts[end:].sum()
    filled = counts[:end] > 0

    edges = np.linspace(0, end, ENTROPY_LEVELS + 1).astype(int)
    level_sums = np.add.reduceat(counts[:end], edges[:-1])
    level_bins = np.add.reduceat(filled.astype(float), edges[:-1])
    # empty bins stay empty: each level spreads its values over the bins that have any
    level_means = level_sums / np.maximum(level_bins, 1)
    quantized = np.repeat(level_means, np.diff(edges)) * filled + 1e-12

    # KL(p || q) = sum p log(p / q), where 0 log 0 = 0
    reference = clipped / clipped.sum()
    quantized = quantized / quantized.sum()
    log_ratio = np.log(np.maximum(reference, 1e-300) / quantized)
    return float((reference * log_ratio).sum())


METHODS: dict[str, Callable[[PooledHistogram], Range]] = {
    "minmax": lambda pooled: (pooled.low, pooled.high),
    "percentile 99.999": percentile,
    "percentile 99.99": lambda pooled: percentile(pooled, 0.9999),
    "entropy": entropy,
}
ALL_METHODS = ("minmax", "percentile", "mse", "entropy")


def choose_range(
    histogram: Histogram,
    cost: Float,
    method: str = "auto",
    methods: Sequence[str] = ALL_METHODS,
    symmetric: bool = False,
    function: Function = identity,
) -> tuple[str, Range]:
    """The range of least downstream loss among the candidates of `method`: (its name, range).

    Args:
        histogram: of the activation.
        cost: [C], cost of a unit of squared error in each channel, behind `function`.
        method: "auto" for all `methods`, or one of minmax, percentile, entropy, and mse (min-max
            and its shrunk versions).
        methods: the methods that "auto" may choose from.
        symmetric: extend each range to -r..r.
        function: the activation function behind which errors count.
    """
    if method not in ("auto", "mse"):
        # "percentile" means the first of its two variants
        name = next(name for name in METHODS if name.startswith(method))
        single = METHODS[name](PooledHistogram.of(histogram))
        return name, _symmetric_range(*single) if symmetric else single
    allowed = methods if method == "auto" else ("minmax", "mse")
    candidates = _candidate_ranges(histogram, allowed, symmetric)
    bounds = np.array([candidate for _, candidate in candidates])
    losses = range_losses(histogram, cost, bounds, function)
    return candidates[int(np.argmin(losses))]


def _candidate_ranges(
    histogram: Histogram,
    methods: Sequence[str],
    symmetric: bool,
) -> list[tuple[str, Range]]:
    """(method, range) of everything that `methods` propose."""
    pooled = PooledHistogram.of(histogram)
    candidates: list[tuple[str, Range]] = []
    for name, range_of in METHODS.items():
        method = name.split()[0]
        if method in methods:
            candidates.append((name, range_of(pooled)))
    if "mse" in methods:
        for bounds in _shrunk_ranges(pooled.low, pooled.high, symmetric):
            candidates.append(("mse", bounds))
    if not symmetric:
        return candidates
    return [(name, _symmetric_range(*bounds)) for name, bounds in candidates]


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


def _symmetric_range(low: float, high: float) -> Range:
    """The range -r..r that holds low..high."""
    largest = max(-low, high)
    return -largest, largest


def align_to_pixel_values(
    histogram: Histogram,
    cost: Float,
    bounds: Range,
) -> Range:
    """A range near `bounds` on whose steps the sampled values lie best; else `bounds` as they are.

    For the model's input, whose values come in steps of their own since pixels are bytes. Scaled to
    -1..1, all of them lie halfway between two of 255 steps that include 0, and each errs by half a
    step. With steps a little wider, the mean squared error is a third of that. Tried are steps up
    to MAX_ALIGNMENT_STRETCH wider, and the spacing of the values themselves.

    Least is sum_c cost[c] error[c]^2.
    """
    samples = histogram.samples
    grids = _grids_near(histogram, bounds)
    if not samples.shape[1] or not grids:
        return bounds
    errors = []
    for grid in grids:
        errors.append(float(cost @ grid.squared_error(samples)))
    best = int(np.argmin(errors))
    if errors[best] > REQUIRED_ALIGNMENT_GAIN * errors[0]:
        return bounds
    return grids[best].bounds


@dataclass(frozen=True)
class _Grid:
    """255 steps that include 0.

    Attributes:
        step: size of a step.
        zero_point: number of steps below 0.
    """

    step: float
    zero_point: int

    @classmethod
    def from_low(cls, low: float, step: float) -> _Grid:
        """The grid of this step that begins nearest to `low`."""
        return cls(step, round(-low / step))

    @property
    def bounds(self) -> Range:
        """The lowest and the highest real number on the grid."""
        low = -self.zero_point * self.step
        return low, (UINT8_STEPS - self.zero_point) * self.step

    def squared_error(self, values: Float32) -> Float:
        """Mean squared error of each row of `values` [C, n], rounded to the grid: [C]."""
        codes = np.round(values / self.step)
        codes = np.clip(codes, -self.zero_point, UINT8_STEPS - self.zero_point)
        errors = np.square(codes * self.step - values)
        return np.asarray(errors.mean(1), np.float64)


def _grids_near(histogram: Histogram, bounds: Range) -> list[_Grid]:
    """The grids to try: that of `bounds` first, then wider ones, then that of the values."""
    low = min(bounds[0], 0.0)
    high = max(bounds[1], 0.0)
    min_step = (high - low) / UINT8_STEPS
    if min_step <= 0:
        return []
    grids: list[_Grid] = []
    for stretch in np.linspace(1.0, MAX_ALIGNMENT_STRETCH, ALIGNMENT_CANDIDATES):
        grids.append(_Grid.from_low(low, float(min_step * stretch)))
    spacing = _value_spacing(histogram)
    if spacing is not None:
        lowest, _ = minmax(histogram)
        grids.append(_Grid.from_low(min(lowest, 0.0), spacing))
    return grids


def _value_spacing(histogram: Histogram) -> float | None:
    """The first gap between neighboring samples of which 255 span all values; None if none does."""
    lowest, highest = minmax(histogram)
    extent = max(highest, 0.0) - min(lowest, 0.0)
    values = np.unique(histogram.samples.astype(np.float64))
    gaps = np.diff(values)
    # half a step more, for rounding errors of the samples
    wide_enough = gaps[gaps * (UINT8_STEPS + 0.5) >= extent]
    return float(wide_enough[0]) if len(wide_enough) else None
