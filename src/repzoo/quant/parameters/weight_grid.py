"""The grids on which a target's own tool rounds the weights of a float file. Pure functions.

Such a tool knows nothing of the scales that were chosen here: it computes its own from the weights
that it finds. Weights that lie on its grid already, and reach the ends of that grid, come out as
the same integers. The rules (`QuantScheme.weight_rule`), for the weights w of one output channel or
of one tensor, with bits = 8 and limit = 127:

    largest        scale = max|w| / limit
    power-of-two   scale = the smallest power of two that is at least max|w| / limit
    minmax         scale = (high - low) / (2^bits - 1), low = min(w, 0), high = max(w, 0);
                   zero point = round(-low / scale)

`codes` are integers without the zero point: weight = scale * code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.scales import usable_scale

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
# Bits of a scale's significand. Times a code of 8 bits they make the 24 of a float32, so that every
# weight on the grid is stored exactly.
SCALE_BITS = 16


@dataclass(frozen=True)
class WeightGrid:
    """The grid of one layer, for rows [G, O/G, K] (see layers.py).

    Attributes:
        scale: [G, O/G, 1]; all alike where the whole tensor has one.
        low, high: smallest and largest code, [G, O/G, 1].
        per_channel: whether each output channel has a grid of its own.
        ends: what must be reached, or the tool would choose another scale. Of each element at least
            one code, [G, O/G, 1], must be reached by a weight of the channel (or tensor).
    """

    scale: Float
    low: Float
    high: Float
    per_channel: bool
    ends: tuple[tuple[Float, ...], ...]

    def reaches(self, codes: Float, end: tuple[Float, ...]) -> Mask:
        """Which of `codes` [G, O/G, K] reach one of the codes of `end`."""
        reached = np.zeros(codes.shape, bool)
        for code in end:
            reached |= np.where(code > 0, codes >= code, codes <= code) & (code != 0)
        return reached

    def unreached(self, codes: Float, end: tuple[Float, ...]) -> Mask:
        """Which grids have an `end` that no weight reaches: [channels], or [1] for the tensor."""
        is_end = self.by_unit(np.broadcast_to(end[0] != 0, codes.shape)).any(1)
        is_reached = self.by_unit(self.reaches(codes, end)).any(1)
        return np.asarray(is_end & ~is_reached)

    def by_unit(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`values` [G, O/G, K] with a row for each grid: [channels, K], or [1, all]."""
        units = values.shape[0] * values.shape[1] if self.per_channel else 1
        return values.reshape(units, -1)


def make_grid(
    rows: Float, scheme: QuantScheme, largest: float | None = None
) -> WeightGrid:
    """The grid for the float weights `rows` [G, O/G, K].

    Args:
        rows: the weights.
        scheme: how the target's tool rounds them.
        largest: magnitude from which on the weights of a whole tensor are clipped; None: nothing
            is.
    """
    if scheme.weight_rule == "minmax":
        return _minmax_grid(rows, scheme)
    limit = scheme.weight_max
    peak = _reduced(np.abs(rows), np.max, scheme.per_channel)
    if largest is not None:
        peak = np.minimum(peak, largest)
    scale = usable_scale(peak / limit)
    required = limit
    if scheme.weight_rule == "power-of-two":
        scale = np.exp2(np.ceil(np.log2(scale)))
        # above half the codes: with less, half the scale would do
        required = limit // 2 + 1
    else:
        scale = exact_scale(scale)
    end = np.where(peak > 0, float(required), 0.0)
    high = np.full_like(scale, limit)
    return WeightGrid(scale, -high, high, scheme.per_channel, ((end, -end),))


def _minmax_grid(rows: Float, scheme: QuantScheme) -> WeightGrid:
    low = np.minimum(_reduced(rows, np.min, scheme.per_channel), 0.0)
    high = np.maximum(_reduced(rows, np.max, scheme.per_channel), 0.0)
    steps = 2.0**scheme.weight_bits - 1
    scale = exact_scale(usable_scale((high - low) / steps))
    zero_point = np.clip(np.round(-low / scale), 0, steps)
    # a side without weights is not reached, and need not be
    first = np.where(low < 0, -zero_point, 0.0)
    last = np.where(high > 0, steps - zero_point, 0.0)
    ends = ((first,), (last,))
    return WeightGrid(scale, first, last, scheme.per_channel, ends)


def exact_scale(scale: Float) -> Float:
    """`scale` rounded up to SCALE_BITS bits."""
    significand, exponent = np.frexp(scale)
    whole = np.ceil(significand * 2.0**SCALE_BITS)
    return np.asarray(np.ldexp(whole, exponent - SCALE_BITS))


def requantize(rows: Float32, scheme: QuantScheme) -> tuple[Float, Float]:
    """(codes [G, O/G, K], scale [G, O/G, 1]) as the target's tool finds them in float `rows`.

    In float32, as such tools compute. It shares nothing with `make_grid` but the rules.
    """
    shape = (-1, rows.shape[2]) if scheme.per_channel else (1, -1)
    units = np.asarray(rows, np.float32).reshape(shape)
    requantize_units = _requantize_symmetric
    if scheme.weight_rule == "minmax":
        requantize_units = _requantize_minmax
    codes, scale = requantize_units(units, scheme)
    # one scale for each weight, of which those of a row are alike
    scales = np.broadcast_to(scale, units.shape).reshape(rows.shape)
    codes = codes.reshape(rows.shape)
    return codes.astype(np.float64), scales[:, :, :1].astype(np.float64)


def _requantize_minmax(units: Float32, scheme: QuantScheme) -> tuple[Float32, Float32]:
    """(codes, scale [units, 1]) of `units` [units, K] with a zero point."""
    steps = np.float32(2**scheme.weight_bits - 1)
    low = np.minimum(units.min(axis=1, keepdims=True), np.float32(0))
    high = np.maximum(units.max(axis=1, keepdims=True), np.float32(0))
    scale = _nonzero((high - low) / steps)
    zero_point = np.round(-low / scale)
    stored = np.clip(np.round(units / scale) + zero_point, 0, steps)
    return stored - zero_point, scale


def _requantize_symmetric(
    units: Float32, scheme: QuantScheme
) -> tuple[Float32, Float32]:
    """(codes, scale [units, 1]) of `units` [units, K] without a zero point."""
    limit = np.float32(scheme.weight_max)
    largest = np.abs(units).max(axis=1, keepdims=True)
    scale = _nonzero(largest / limit)
    if scheme.weight_rule == "power-of-two":
        scale = np.exp2(np.ceil(np.log2(scale)))
    codes = np.round(units / scale)
    return np.clip(codes, -limit, limit), scale


def _nonzero(scale: Float32) -> Float32:
    """`scale` with 1 in place of 0: of weights that are all 0 any scale will do."""
    return np.where(scale > 0, scale, np.float32(1))


def _reduced(rows: Float, extreme: Any, per_channel: bool) -> Float:
    """An extreme of each channel, or of all, as [G, O/G, 1]."""
    if per_channel:
        return np.asarray(extreme(rows, axis=2, keepdims=True))
    return np.full((*rows.shape[:2], 1), extreme(rows))
