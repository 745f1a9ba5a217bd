"""From histograms to ranges, scales and zero points. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.observers import BINS, Histogram
from repzoo.quant.network.functions import Function, identity

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Range = tuple[float, float]
PEAK_16 = 32767
WIDEST, WIDTHS, CLEARLY = (
    1.04,
    41,
    0.8,
)  # ranges that are tried for values in steps of their own, and what they must save
SMALLEST_SCALE = (
    2.0**-63
)  # the square root of float32's smallest normal: a bias's scale, a product of two, stays normal


@dataclass(frozen=True)
class ActivationParameters:
    """Asymmetric uint8: real = scale * (q - zero_point). Zero is represented exactly. 16 bits are symmetric: int16 about 0."""

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def steps(self) -> int:
        """Between the lowest and the highest value."""
        return 255 if self.bits == 8 else 2 * PEAK_16

    @property
    def bounds(self) -> Range:
        """The lowest and the highest value, which are up to half a step beside those asked for, so that 0 is a step."""
        least = PEAK_16 if self.bits == 16 else self.zero_point
        return -least * self.scale, (self.steps - least) * self.scale


@dataclass(frozen=True)
class QuantizedWeight:
    """Symmetric int8 weights: real = scale * q, one scale for each slice along axis 0 or one for all."""

    scale: Float
    values: npt.NDArray[np.int8]


def uint8_parameters(low: float, high: float, symmetric: bool = False) -> ActivationParameters:
    """Cover low..high, stretched to hold 0, with 255 steps; `symmetric` with 127 on either side of a zero point of 128."""
    if symmetric:
        reach = max(-low, high, 0.0)
        return ActivationParameters(
            max(float(np.float32(reach / 127)), SMALLEST_SCALE) if reach > 0 else 1.0, 128
        )
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(float(np.float32((high - low) / 255)), SMALLEST_SCALE)
    if high == low:
        scale = 1.0
    return ActivationParameters(scale, int(np.clip(round(-low / scale), 0, 255)))


def int16_parameters(low: float, high: float) -> ActivationParameters:
    """Cover low..high with int16: 32,767 steps on either side of 0."""
    reach = max(-low, high, 0.0)
    return ActivationParameters(
        max(float(np.float32(reach / PEAK_16)), SMALLEST_SCALE) if reach > 0 else 1.0, 0, 16
    )


def minmax(seen: Histogram) -> Range:
    """All that was seen."""
    return float(seen.low.min()), float(seen.high.max())


@dataclass(frozen=True)
class Pooled:
    """All channels' values as one: value, count and width of every filled bin, in the order of the values; zeros are one more bin.

    low, high   extremes
    """

    low: float
    high: float
    values: Float
    counts: Float
    widths: Float

    @classmethod
    def of(cls, seen: Histogram) -> Pooled:
        """What `seen` counted."""
        kept = seen.counts > 0
        widths = np.broadcast_to(seen.edge[:, None] * (2 / BINS), kept.shape)[kept]
        values, counts = (
            np.append(seen.centers[kept], 0.0),
            np.append(seen.counts[kept], seen.zeros.sum()).astype(np.float64),
        )
        order = np.argsort(values, kind="stable")
        return cls(*minmax(seen), values[order], counts[order], np.append(widths, 0.0)[order])


def percentile(seen: Pooled, share: float = 0.99999) -> Range:
    """The central range that leaves (1 - share) / 2 of the values out on each side."""
    if not len(seen.values):
        return seen.low, seen.high
    cumulative = np.cumsum(seen.counts) / seen.counts.sum()
    ends = np.searchsorted(cumulative, [(1 - share) / 2, (1 + share) / 2])
    left, right = (min(int(at), len(cumulative) - 1) for at in ends)
    low, high = (
        seen.values[left] - seen.widths[left] / 2,
        seen.values[right] + seen.widths[right] / 2,
    )
    return max(seen.low, float(low)), min(seen.high, float(high))


def entropy(seen: Pooled, candidates: int = 32) -> Range:
    """The range low*s..high*s whose quantized histogram says least falsely of the values: least Kullback-Leibler divergence.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017; on 2048 bins of the pooled values, zeros left out.
    """
    reach = max(-seen.low, seen.high)
    if not len(seen.values) or reach <= 0:
        return seen.low, seen.high
    pooled = np.histogram(
        np.minimum(np.abs(seen.values), reach), 2048, (0.0, reach), weights=seen.counts
    )[0]
    ends = np.linspace(256, 2048, candidates).astype(int)
    best = ends[int(np.argmin([_divergence(pooled, end) for end in ends]))] / 2048
    return max(seen.low, -reach * best), min(seen.high, reach * best)


def _divergence(pooled: Float, end: int, levels: int = 128) -> float:
    """Of the histogram clipped at bin `end` from the same with `levels` levels."""
    clipped = pooled[:end].copy()
    clipped[-1] += pooled[end:].sum()
    edges = np.linspace(0, end, levels + 1).astype(int)
    filled = np.add.reduceat((pooled[:end] > 0).astype(float), edges[:-1])
    sums = np.add.reduceat(pooled[:end], edges[:-1])
    spread = np.repeat(sums / np.maximum(filled, 1), np.diff(edges)) * (pooled[:end] > 0)
    true, told = clipped / clipped.sum(), (spread + 1e-12) / (spread + 1e-12).sum()
    return float((true * np.log(np.maximum(true, 1e-300) / told)).sum())


def quantization_noise(
    seen: Histogram, low: float, high: float, steps: int = 255, of: Function = identity
) -> Float:
    """Expected squared error of each channel, [C], when `steps` cover low..high; of what the function `of` makes of its values.

    A value outside errs by its distance; one inside by step^2 / 12, or by itself where it is smaller than that; 0 is exact. Under
    a function distances are those of its values, and a step is as long as its slope makes it.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / steps
    centers, values = seen.centers, of(seen.centers)
    clipped = of(np.clip(centers, low, high)) - values
    zeroed = (centers > -step / np.sqrt(12)) & (centers < step / np.sqrt(12))
    inside = np.where(
        zeroed, (values - of(np.zeros(1))) ** 2, slopes(seen, of) ** 2 * step * step / 12
    )
    errors = np.where((centers < low) | (centers > high), clipped**2, inside)
    return np.asarray((seen.counts * errors).sum(1) / np.maximum(1, seen.numbers))


def slopes(seen: Histogram, of: Function) -> Float:
    """Of the function `of`, in each bin: [C, BINS]."""
    if of is identity:
        return np.ones(seen.counts.shape)
    width = np.where(seen.edge > 0, seen.edge, 1.0)[:, None] * (2 / BINS)
    return np.asarray((of(seen.centers + width / 2) - of(seen.centers - width / 2)) / width)


def clipping_shift(seen: Histogram, low: float, high: float) -> Float:
    """Expected change of each channel's values by cutting them to low..high, [C]."""
    centers = seen.centers
    moved = np.clip(centers, min(low, 0.0), max(high, 0.0)) - centers
    return np.asarray((seen.counts * moved).sum(1) / np.maximum(1, seen.numbers))


def rounding_shift(seen: Histogram, numbers: ActivationParameters) -> Float:
    """Expected change of each channel's values by rounding them to the steps of `numbers`, [C]; values beyond its ends left out.

    It is not nothing where values gather within a step or two of 0, as those that GELU and its kind leave of negative ones do.
    """
    if not seen.kept.shape[1]:
        return np.zeros(len(seen.low))
    low, high = numbers.bounds
    inside = (seen.kept >= low) & (seen.kept <= high)
    rounded = np.round(seen.kept / numbers.scale) * numbers.scale
    return np.asarray(np.where(inside, rounded - seen.kept, 0.0).mean(1), np.float64)


def align_to_pixel_values(seen: Histogram, importance: Float, span: Range) -> Range:
    """`span`, or one up to WIDEST of it, or all that was seen in steps of its own, where the values kept lie best: least
    sum_c importance[c] error[c]^2.

    For values that come in steps, as the bytes of images do: scaled to -1..1 all of them lie in the middle between two of 255 steps,
    where each errs by half a step; on steps a little wider they err by a third of that squared.
    """
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    least, (lowest, highest) = (high - low) / 255, minmax(seen)
    if not seen.kept.shape[1] or least <= 0:
        return span
    gaps = np.diff(np.unique(seen.kept.astype(np.float64)))
    own = gaps[gaps * 255.5 >= max(highest, 0.0) - min(lowest, 0.0)][
        :1
    ]  # of steps that reach from end to end the first, if any
    found = [
        (step, round(-low / step)) for step in (least * np.linspace(1.0, WIDEST, WIDTHS)).tolist()
    ]
    found += [(step, round(-min(lowest, 0.0) / step)) for step in own.tolist()]
    errors = [float(importance @ _missed(seen.kept, step, zero)) for step, zero in found]
    best = int(np.argmin(errors))
    if errors[best] > CLEARLY * errors[0]:  # by less, the kept values may just happen to
        return span
    step, zero = found[best]
    return -zero * step, (255 - zero) * step


def _missed(values: npt.NDArray[np.float32], step: float, zero: int) -> Float:
    """Mean squared error of each row of `values` [C, n], rounded to 255 steps."""
    rounded = np.clip(np.round(values / step), -zero, 255 - zero) * step
    return np.asarray(np.square(rounded - values).mean(1), np.float64)


METHODS: dict[str, Callable[[Pooled], Range]] = {
    "minmax": lambda seen: (seen.low, seen.high),
    "percentile 99.999": percentile,
    "percentile 99.99": lambda seen: percentile(seen, 0.9999),
    "entropy": entropy,
}
ALL = ("minmax", "percentile", "mse", "entropy")
# Of min-max: finely where most ranges end, then by halves, for outliers that nothing important reads.
SHRINKS = (
    *(float(share) for share in np.linspace(0.95, 0.3, 14)),
    *(0.3 / 2**halvings for halvings in range(1, 9)),
)


def choose_range(
    seen: Histogram,
    importance: Float,
    method: str = "auto",
    methods: Sequence[str] = ALL,
    symmetric: bool = False,
    of: Function = identity,
) -> tuple[str, Range]:
    """(method, range) of least downstream loss sum_c importance[c] noise[c]; or the range of the one `method`.

    importance  [C]: what a unit of squared error in a channel costs the layers that read it, or what `of` makes of it (see
                importance.py)
    methods     what `auto` may take the best of: minmax, percentile, entropy, and as "mse" min-max shrunk on either side
    symmetric   ranges are widened to -reach..reach first
    """
    if method not in ("auto", "mse"):
        name = next(one for one in METHODS if one.startswith(method))
        return name, _mirrored(METHODS[name](Pooled.of(seen)), symmetric)
    wanted = methods if method == "auto" else ("minmax", "mse")
    pooled = Pooled.of(seen)
    found = [(name, made(pooled)) for name, made in METHODS.items() if name.split()[0] in wanted]
    if "mse" in wanted:
        low, high = minmax(seen)
        lows = SHRINKS if low < 0 and not symmetric else (1.0,)
        found += [
            ("mse", (low * one, high * two)) for one, two in _pairs((1.0, *lows), (1.0, *SHRINKS))
        ]
    spans = [(name, _mirrored(one, symmetric)) for name, one in found]
    return spans[
        int(np.argmin(range_losses(seen, importance, np.array([span for _, span in spans]), of)))
    ]


def range_losses(
    seen: Histogram, importance: Float, spans: Float, of: Function = identity
) -> Float:
    """importance @ noise(seen, low, high, of=of) for each (low, high) of `spans` [R, 2]: [R].

    From sums over the bins up to each, made once: a range then costs a look at six places of a channel and not at all its bins.
    """
    sums = _Sums.made(seen, of)
    low, high = np.minimum(spans[:, :1], 0.0), np.maximum(spans[:, 1:], 0.0)  # [R, 1]
    step = (high - low) / 255
    below, above = sums.places(low), sums.places(high, including=True)
    fine = step / np.sqrt(12)  # what lies nearer to 0 than this is better off as 0
    first, last = sums.places(-fine), sums.places(fine, including=True)
    outside = sums.squares(0, below, of(low)) + sums.squares(above, BINS, of(high))
    near = sums.squares(np.maximum(first, below), np.minimum(last, above), of(np.zeros_like(low)))
    far = sums.slopes(below, above) - sums.slopes(np.maximum(first, below), np.minimum(last, above))
    return np.asarray(
        (outside + near + far * step**2 / 12) @ (importance / np.maximum(1, sums.total))
    )


@dataclass(frozen=True)
class _Sums:
    """Of each channel, over the bins before each: counts, sums of a function's values, of their squares and of its squared slopes, all
    [C, BINS + 1]; edge [C].
    """

    count: Float
    first: Float
    second: Float
    slope: Float
    edge: Float
    total: Index

    @classmethod
    def made(cls, seen: Histogram, of: Function) -> _Sums:
        values, counts = of(seen.centers), seen.counts.astype(np.float64)
        count, first, second = (_summed(counts * values**power) for power in range(3))
        slope = count if of is identity else _summed(counts * slopes(seen, of) ** 2)
        return cls(count, first, second, slope, seen.edge, seen.numbers)

    def places(self, values: Float, including: bool = False) -> Index:
        """How many bins of each channel have their centers below `values` [R, 1] (or at them): [R, C]."""
        usable = np.where(self.edge > 0, self.edge, 1.0)
        at = (values / usable + 1) * (
            BINS / 2
        ) - 0.5  # as a number of bins, centers lying at 0, 1, 2 and so on
        return np.asarray(
            np.clip(np.floor(at) + 1 if including else np.ceil(at), 0, BINS), np.int64
        )

    def slopes(self, start: Index, end: Index) -> Float:
        """Sum of squared slopes over the bins from `start` up to, not including, `end`: [R, C]."""
        return _between(self.slope, start, end)

    def squares(self, start: Index | int, end: Index | int, away: Float) -> Float:
        """Sum of (value of the function - away)^2 over those bins: [R, C]."""
        count, first, second = (
            _between(one, start, end) for one in (self.count, self.first, self.second)
        )
        return np.maximum(second - 2 * away * first + away**2 * count, 0.0)


def _summed(values: Float) -> Float:
    """[C, BINS] -> [C, BINS + 1]: what comes before each bin."""
    return np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))


def _between(sums: Float, start: Index | int, end: Index | int) -> Float:
    channels = np.arange(len(sums))
    return np.asarray(
        np.where(np.less(start, end), sums[channels, end] - sums[channels, start], 0.0)
    )


def _mirrored(span: Range, symmetric: bool) -> Range:
    reach = max(-span[0], span[1])
    return (-reach, reach) if symmetric else span


def _pairs(lows: Sequence[float], highs: Sequence[float]) -> list[tuple[float, float]]:
    """Both sides shrunk alike, and each alone."""
    return [
        *zip(highs, highs, strict=True),
        *((one, 1.0) for one in lows),
        *((1.0, two) for two in highs),
    ]


def quantize_weight(
    values: npt.NDArray[np.float32], axis: int | None, least_scale: Float | float = 0.0
) -> QuantizedWeight:
    """Symmetric int8 for `values`, one scale a slice of `axis` (None: one for all), none below `least_scale`.

    A slice of zeros gets `least_scale`, or 1 where that is 0.
    """
    rows = (
        values.astype(np.float64)
        if axis in (0, None)
        else np.moveaxis(values.astype(np.float64), axis or 0, 0)
    )
    peaks = (
        np.abs(rows).max(keepdims=True)
        if axis is None
        else np.abs(rows).reshape(len(rows), -1).max(1)
    )
    wanted = np.maximum(peaks.reshape(-1) / 127, least_scale)
    scale = (
        np.where(wanted > 0, np.maximum(wanted, SMALLEST_SCALE), 1.0)
        .astype(np.float32)
        .astype(np.float64)
    )
    shaped = scale.reshape(-1, *([1] * (rows.ndim - 1))) if axis is not None else scale
    quantized = np.clip(np.round(rows / shaped), -127, 127).astype(np.int8)
    return QuantizedWeight(
        scale, quantized if axis in (0, None) else np.moveaxis(quantized, 0, axis or 0)
    )
