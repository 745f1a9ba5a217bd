"""Scales, zero points and integer weights. Pure functions.

    real = scale * (q - zero_point)

Activations are uint8 or int8 with a zero point, or int16 without one. Weights are symmetric int8,
with one scale per output channel or one per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from repzoo.quant.network.scheme import QuantScheme

Float = npt.NDArray[np.float64]
Range = tuple[float, float]

INT16_MAX = 32767
UINT8_STEPS = 255
INT8_MAX = 127  # without -128, the negative of every weight can be represented
# The square root of float32's smallest normal number. A bias has the product of two scales as its
# scale, which then stays normal.
SMALLEST_SCALE = 2.0**-63


@dataclass(frozen=True)
class ActivationParameters:
    """Scale and zero point of one activation, of 8 bits or symmetric int16.

    Attributes:
        scale: real numbers per integer step, a float32 value.
        zero_point: the integer that represents 0 exactly, of 0..255; 0 for int16.
        bits: 8 or 16.
        signed: 8 bits are stored as int8, every integer lower by 128, and not as uint8.
    """

    scale: float
    zero_point: int
    bits: int = 8
    signed: bool = False

    @property
    def steps(self) -> int:
        """Number of steps from the lowest to the highest integer."""
        return UINT8_STEPS if self.bits == 8 else 2 * INT16_MAX

    @property
    def bounds(self) -> Range:
        """The lowest and the highest real number that can be represented.

        They differ from the range that was asked for by up to half a step, since 0 is a step.
        """
        steps_below_zero = INT16_MAX if self.bits == 16 else self.zero_point
        steps_above_zero = self.steps - steps_below_zero
        low = -steps_below_zero * self.scale
        high = steps_above_zero * self.scale
        return low, high


@dataclass(frozen=True)
class QuantizedWeight:
    """Symmetric int8 weights: real = scale * values.

    Attributes:
        scale: one for each slice along the output axis [O], or one for all [1].
        values: integers of the weight's shape; int16 where a grid has a zero point, which they are
            without.
    """

    scale: Float
    values: npt.NDArray[np.int8] | npt.NDArray[np.int16]


def parameters_of(low: float, high: float, scheme: QuantScheme) -> ActivationParameters:
    """Cover low..high with 8 bits as `scheme` stores them."""
    symmetric = scheme.is_symmetric(low)
    is_int8 = scheme.activation_type == "int8"
    signed = is_int8 or (scheme.signed_activations and symmetric)
    return replace(uint8_parameters(low, high, symmetric), signed=signed)


def uint8_parameters(
    low: float,
    high: float,
    symmetric: bool = False,
) -> ActivationParameters:
    """Cover low..high, extended to include 0, with 255 steps.

    `symmetric` gives 127 steps on either side of a zero point of 128.
    """
    if symmetric:
        symmetric_scale = _symmetric_scale(low, high, INT8_MAX)
        return ActivationParameters(symmetric_scale, 128)
    low = min(low, 0.0)
    high = max(high, 0.0)
    if high == low:
        return ActivationParameters(1.0, 0)
    # float32, since that is what the file stores and runtimes compute with
    step = np.float32((high - low) / UINT8_STEPS)
    scale = max(float(step), SMALLEST_SCALE)
    steps_below_zero = round(-low / scale)
    zero_point = min(max(steps_below_zero, 0), UINT8_STEPS)
    return ActivationParameters(scale, zero_point)


def int16_parameters(low: float, high: float) -> ActivationParameters:
    """Cover low..high with int16: 32,767 steps on either side of 0."""
    return ActivationParameters(_symmetric_scale(low, high, INT16_MAX), 0, 16)


def _symmetric_scale(
    low: float,
    high: float,
    steps: int,
) -> float:
    """The scale for which `steps` on either side of 0 cover low..high; 1 for 0..0."""
    largest = max(-low, high, 0.0)
    if largest == 0:
        return 1.0
    step = np.float32(largest / steps)
    return max(float(step), SMALLEST_SCALE)


def quantize_weight(
    values: npt.NDArray[np.float32],
    axis: int | None,
    min_scale: Float | float = 0.0,
    limit: int = INT8_MAX,
) -> QuantizedWeight:
    """Round `values` to the nearest symmetric int8, with the smallest scales that do not clip.

    Args:
        values: weights of any shape.
        axis: one scale for each slice along it; None for one scale in all.
        min_scale: no scale is smaller. A slice of zeros gets it, or 1 if it is 0.
        limit: the largest magnitude of an integer.
    """
    # the slices along the first axis, then as rows
    slices = values[None]
    if axis is not None:
        slices = np.moveaxis(values, axis, 0)
    rows = slices.reshape(len(slices), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    scale = usable_scale(np.maximum(largest / limit, min_scale))
    codes = np.round(rows / scale[:, None])
    integers = np.clip(codes, -limit, limit).astype(np.int8)
    shaped = integers.reshape(slices.shape)
    if axis is None:
        return QuantizedWeight(scale, shaped[0])
    return QuantizedWeight(scale, np.moveaxis(shaped, 0, axis))


def usable_scale(scale: Float) -> Float:
    """`scale` as float32 values, none below SMALLEST_SCALE; 1 in place of 0."""
    bounded = np.maximum(scale, SMALLEST_SCALE)
    positive = np.where(scale > 0, bounded, 1.0)
    return np.asarray(positive.astype(np.float32), np.float64)
