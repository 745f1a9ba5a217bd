"""Quantization noise expected from a histogram: rounding, clipping, and the shift of the mean.

The noise of one channel for a range low..high with step s = (high - low) / steps is

    E[e^2],  e = distance to the range     outside of it (clipping)
             e^2 = s^2 / 12                inside (rounding)
             e^2 = x^2                     inside, where |x| < s / sqrt(12): rounded to 0 or near it
             e = 0                         for x = 0

Where an activation function f reads the values, e is the error of f(x): distances are measured
between values of f, and a step is multiplied by its slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.histogram import BINS, HALF, Histogram
from repzoo.quant.network.functions import Function, identity
from repzoo.quant.parameters.scales import UINT8_STEPS, ActivationParameters

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def quantization_noise(
    histogram: Histogram,
    low: float,
    high: float,
    steps: int = UINT8_STEPS,
    function: Function = identity,
) -> Float:
    """Expected squared error of each channel, [C], if `steps` cover low..high.

    The error is that of `function` of the values.
    """
    low = min(low, 0.0)
    high = max(high, 0.0)
    step = (high - low) / steps
    centers = histogram.centers
    clipped = function(np.clip(centers, low, high))
    clipping = (clipped - function(centers)) ** 2
    is_clipped = (centers < low) | (centers > high)
    inside = _rounding_noise(histogram, step, function)
    errors = np.where(is_clipped, clipping, inside)
    return histogram.expectation(errors)


def _rounding_noise(
    histogram: Histogram,
    step: float,
    function: Function,
) -> Float:
    """Expected squared error of the values in each bin by rounding to a `step`, [C, BINS]."""
    centers = histogram.centers
    to_zero = (function(centers) - function(np.zeros(1))) ** 2
    # uniform error within a step, of variance step^2 / 12
    squared_slopes = histogram.slopes(function) ** 2
    rounding = squared_slopes * step * step / 12
    deviation = step / np.sqrt(12)
    is_near_zero = (centers > -deviation) & (centers < deviation)
    return np.where(is_near_zero, to_zero, rounding)


def clipping_shift(
    histogram: Histogram,
    low: float,
    high: float,
) -> Float:
    """Expected change of each channel's mean by clipping to low..high, [C]."""
    low = min(low, 0.0)
    high = max(high, 0.0)
    centers = histogram.centers
    return histogram.expectation(np.clip(centers, low, high) - centers)


def rounding_shift(histogram: Histogram, parameters: ActivationParameters) -> Float:
    """Expected change of each channel's mean by rounding, without the values that are clipped, [C].

    It matters where values gather within a step or two of 0, such as the negative outputs of GELU.
    """
    samples = histogram.samples
    if not samples.shape[1]:
        return np.zeros(len(histogram.low))
    low, high = parameters.bounds
    is_inside = (samples >= low) & (samples <= high)
    codes = np.round(samples / parameters.scale)
    errors = codes * parameters.scale - samples
    shifts = np.where(is_inside, errors, 0.0)
    return np.asarray(shifts.mean(axis=1), np.float64)


def range_losses(
    histogram: Histogram,
    cost: Float,
    bounds: Float,
    function: Function = identity,
) -> Float:
    """cost @ quantization_noise(histogram, low, high) for each (low, high) of `bounds` [R, 2]: [R].

    Sums over all bins up to each are computed once. A range then takes six lookups for each
    channel, where `quantization_noise` goes through all bins.
    """
    sums = _CumulativeSums.of(histogram, function)
    low = np.minimum(bounds[:, :1], 0.0)  # [R, 1]
    high = np.maximum(bounds[:, 1:], 0.0)
    step = (high - low) / UINT8_STEPS
    start = sums.bins_below(low)
    end = sums.bins_below(high, inclusive=True)
    clipped_low = sums.squared_distance(0, start, function(low))
    clipped_high = sums.squared_distance(end, BINS, function(high))

    # values nearer to 0 than this err least if they are rounded to 0
    near_zero = step / np.sqrt(12)
    zero_start = np.maximum(sums.bins_below(-near_zero), start)
    zero_end = np.minimum(sums.bins_below(near_zero, inclusive=True), end)
    zero = function(np.zeros_like(low))
    to_zero = sums.squared_distance(zero_start, zero_end, zero)

    all_inside = sums.squared_slopes(start, end)
    rounded = all_inside - sums.squared_slopes(zero_start, zero_end)
    rounding = rounded * step**2 / 12
    # this order of additions keeps the choice between nearly equal ranges reproducible
    errors = (clipped_low + clipped_high) + to_zero + rounding
    cost_of_value = cost / np.maximum(1, sums.total)
    return np.asarray(errors @ cost_of_value)


@dataclass(frozen=True)
class _CumulativeSums:
    """Sums over the bins before each bin, [C, BINS + 1], of a function f of the values.

    Attributes:
        count: number of values.
        first: sum of f.
        second: sum of f^2.
        slope: sum of f'^2.
        edge: of the histogram, [C]; 1 for a channel of zeros alone.
        total: number of values of each channel with zeros, [C].
    """

    count: Float
    first: Float
    second: Float
    slope: Float
    edge: Float
    total: Index

    @classmethod
    def of(cls, histogram: Histogram, function: Function) -> _CumulativeSums:
        """The sums of a histogram."""
        values = function(histogram.centers)
        counts = histogram.counts.astype(np.float64)
        squared_slopes = histogram.slopes(function) ** 2
        return cls(
            count=_cumulative(counts),
            first=_cumulative(counts * values),
            second=_cumulative(counts * values**2),
            slope=_cumulative(counts * squared_slopes),
            edge=histogram.nonzero_edge,
            total=histogram.channel_totals,
        )

    def bins_below(self, values: Float, inclusive: bool = False) -> Index:
        """How many bins of each channel have centers below `values` [R, 1]: [R, C].

        `inclusive` counts a center that equals the value too.
        """
        # in bins, whose centers lie at 0, 1, 2, ...
        position = (values / self.edge + 1) * HALF - 0.5
        count = np.ceil(position)
        if inclusive:
            count = np.floor(position) + 1
        return np.asarray(np.clip(count, 0, BINS), np.int64)

    def squared_slopes(self, start: Index, end: Index) -> Float:
        """Sum of f'^2 over the bins from `start` to `end`, exclusive: [R, C]."""
        return _difference(self.slope, start, end)

    def squared_distance(
        self,
        start: Index | int,
        end: Index | int,
        value: Float,
    ) -> Float:
        """Sum of (f - value)^2 over the bins from `start` to `end`, exclusive: [R, C]."""
        count = _difference(self.count, start, end)
        first = _difference(self.first, start, end)
        second = _difference(self.second, start, end)
        # sum (f - v)^2 = sum f^2 - 2 v sum f + v^2 n
        distance = second - 2 * value * first + value**2 * count
        # rounding errors of the large sums can make a small difference negative
        return np.maximum(distance, 0.0)


def _cumulative(values: Float) -> Float:
    """[C, BINS] -> [C, BINS + 1]: the sum of everything before each bin."""
    sums = np.cumsum(values, axis=1)
    # 0 before the first bin
    return np.pad(sums, ((0, 0), (1, 0)))


def _difference(
    sums: Float,
    start: Index | int,
    end: Index | int,
) -> Float:
    """The sum from `start` to `end` for each channel; 0 where they are reversed."""
    channels = np.arange(len(sums))
    difference = sums[channels, end] - sums[channels, start]
    return np.asarray(np.where(np.less(start, end), difference, 0.0))
