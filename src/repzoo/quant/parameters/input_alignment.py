"""Aligning the range of the model's input with the values that pixels can take. Pure functions.

Pixels are bytes, so the input's values come in steps of their own. Scaled to -1..1, all of them lie
halfway between two of 255 steps that include 0, and each errs by half a step. With steps a little
wider, the mean squared error is a third of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.parameters.ranges import minmax
from repzoo.quant.parameters.scales import UINT8_STEPS, Range

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Steps up to so much wider are tried, so many of them, and the error must fall to this fraction.
# A smaller gain may be due to the particular samples.
MAX_STRETCH = 1.04
CANDIDATES = 41
REQUIRED_GAIN = 0.8


def align_to_pixel_values(
    histogram: Histogram,
    cost: Float,
    bounds: Range,
) -> Range:
    """A range near `bounds` on whose steps the sampled values lie best; else `bounds` as they are.

    Tried are steps up to MAX_STRETCH wider, and the spacing of the values themselves. The best has
    the least sum_c cost[c] error[c]^2, for the `cost` [C] of a unit of squared error.
    """
    samples = histogram.samples
    grids = _grids_near(histogram, bounds)
    if not samples.shape[1] or not grids:
        return bounds
    errors: list[float] = []
    for grid in grids:
        errors.append(float(cost @ grid.squared_error(samples)))
    best = int(np.argmin(errors))
    if errors[best] > REQUIRED_GAIN * errors[0]:
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
        steps_below_zero = round(-low / step)
        return cls(step, steps_below_zero)

    @property
    def steps_above_zero(self) -> int:
        """Number of steps above 0."""
        return UINT8_STEPS - self.zero_point

    @property
    def bounds(self) -> Range:
        """The lowest and the highest real number on the grid."""
        return -self.zero_point * self.step, self.steps_above_zero * self.step

    def squared_error(self, values: Float32) -> Float:
        """Mean squared error of each row of `values` [C, n], rounded to the grid: [C]."""
        codes = np.round(values / self.step)
        codes = np.clip(codes, -self.zero_point, self.steps_above_zero)
        errors = np.square(codes * self.step - values)
        return np.asarray(errors.mean(axis=1), np.float64)


def _grids_near(histogram: Histogram, bounds: Range) -> list[_Grid]:
    """The grids to try: that of `bounds` first, then wider ones, then that of the values."""
    low = min(bounds[0], 0.0)
    high = max(bounds[1], 0.0)
    min_step = (high - low) / UINT8_STEPS
    if min_step <= 0:
        return []
    grids: list[_Grid] = []
    for stretch in np.linspace(1.0, MAX_STRETCH, CANDIDATES):
        step = float(min_step * stretch)
        grids.append(_Grid.from_low(low, step))
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
    spans = gaps * (UINT8_STEPS + 0.5)
    wide_enough = gaps[spans >= extent]
    if not len(wide_enough):
        return None
    return float(wide_enough[0])
