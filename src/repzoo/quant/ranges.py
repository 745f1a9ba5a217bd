"""From a histogram to a scale and a zero point. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repzoo.quant.observe import Histogram

Float = npt.NDArray[np.float64]
SMALLEST_SCALE = 2.0**-63  # the square root of float32's smallest normal: a bias's scale, a product of two, stays normal


@dataclass(frozen=True)
class Affine:
    """Asymmetric uint8: real = scale * (q - zero_point). Zero is represented exactly."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Symmetric:
    """Symmetric int8 weights: real = scale * q, one scale for each slice along axis 0 or one for all."""

    scale: Float
    values: npt.NDArray[np.int8]


def activation(histogram: Histogram, method: str) -> Affine:
    """Scale and zero point for a tensor by `method`: minmax, percentile or mse."""
    low, high = METHODS[method](histogram)
    return affine(low, high)


def affine(low: float, high: float) -> Affine:
    """Cover low..high, stretched to hold 0, with 255 steps."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(float(np.float32((high - low) / 255)), SMALLEST_SCALE)
    if high == low:
        scale = 1.0
    return Affine(scale, int(np.clip(round(-low / scale), 0, 255)))


def minmax(histogram: Histogram) -> tuple[float, float]:
    """All that was seen."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, share: float = 0.99999) -> tuple[float, float]:
    """The central range that leaves (1 - share) / 2 of the values out on each side."""
    if histogram.edge == 0:
        return minmax(histogram)
    cumulative = np.cumsum(histogram.counts) / histogram.total
    left, right = np.searchsorted(cumulative, [(1 - share) / 2, (1 + share) / 2])
    step = 2 * histogram.edge / len(histogram.counts)
    low, high = -histogram.edge + left * step, -histogram.edge + (min(right, len(cumulative) - 1) + 1) * step
    return max(low, histogram.low), min(high, histogram.high)


def mse(histogram: Histogram, candidates: int = 48) -> tuple[float, float]:
    """The range low*s..high*s, s in (0, 1], of least expected squared error, rounding and clipping together.

    Source: the criterion of R. Banner et al., "Post training 4-bit quantization", arXiv:1810.05723, evaluated on a histogram.
    """
    if histogram.edge == 0:
        return minmax(histogram)
    kept = np.flatnonzero(histogram.counts)
    centres, counts = histogram.centres[kept], histogram.counts[kept]
    shrinks = np.linspace(1.0, 0.2, candidates)
    errors = [_error(centres, counts, histogram.low * s, histogram.high * s) for s in shrinks]
    best = shrinks[int(np.argmin(errors))]
    return histogram.low * float(best), histogram.high * float(best)


def _error(centres: Float, counts: npt.NDArray[np.int64], low: float, high: float) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    outside = np.maximum(0.0, np.maximum(low - centres, centres - high))
    return float((counts * (outside**2 + (outside == 0) * (step * step / 12))).sum())


METHODS: dict[str, Callable[[Histogram], tuple[float, float]]] = {"minmax": minmax, "percentile": percentile, "mse": mse}


def weight(values: npt.NDArray[np.float32], axis: int | None, least_scale: Float | float = 0.0) -> Symmetric:
    """Symmetric int8 for `values`, one scale a slice of `axis` (None: one for all), none below `least_scale`.

    A slice of zeros gets `least_scale`, or 1 where that is 0.
    """
    rows = values.astype(np.float64) if axis in (0, None) else np.moveaxis(values.astype(np.float64), axis or 0, 0)
    peaks = np.abs(rows).max(keepdims=True) if axis is None else np.abs(rows).reshape(len(rows), -1).max(1)
    wanted = np.maximum(peaks.reshape(-1) / 127, least_scale)
    scale = np.where(wanted > 0, np.maximum(wanted, SMALLEST_SCALE), 1.0).astype(np.float32).astype(np.float64)
    shaped = scale.reshape(-1, *([1] * (rows.ndim - 1))) if axis is not None else scale
    quantised = np.clip(np.round(rows / shaped), -127, 127).astype(np.int8)
    return Symmetric(scale, quantised if axis in (0, None) else np.moveaxis(quantised, 0, axis or 0))
