"""Scales of a layer's weights: one for each output channel, or one that all of them share.

`shared_scale` weighs the error of clipping the largest weights against the smaller rounding error
of all others, as R. Banner et al., arXiv:1810.05723, section 2, do for weights of a known
distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.statistics import Moments, squared_output
from repzoo.quant.network.layers import Layer
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.scales import INT8_MAX, usable_scale

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Clipping thresholds tried for a shared scale, as fractions of the largest weight.
CLIPPING_FRACTIONS = tuple(2 ** (-eighths / 8) for eighths in range(13))
# Fraction of the noise of rounding to nearest that remains after GPTQ. Clipping noise remains
# nearly whole.
REMAINING_ROUNDING_NOISE = 0.5


def weight_scales(
    layer: Layer,
    rows: Float,
    scheme: QuantScheme,
    min_scale: Float,
    moments: Moments,
) -> Float:
    """Scales of a layer's weights, [G, O/G, 1].

    Per channel, they are the smallest that clip nothing. Per tensor, all are the shared scale of
    least output error. None is below `min_scale` [O], which the bias needs to fit into int32.

    Args:
        layer: the layer.
        rows: its weights [G, O/G, K].
        scheme: granularity and largest integer of weights.
        min_scale: [O].
        moments: of the layer's input.
    """
    min_scale = min_scale.reshape(layer.groups, -1, 1)
    if scheme.per_channel:
        largest = np.abs(rows).max(axis=2, keepdims=True)
        scale = np.maximum(largest / scheme.weight_max, min_scale)
    else:
        # the largest weight of a whole tensor is often an outlier, so the shared scale may clip it
        shared = shared_scale(rows, moments.grams, moments.blocks, scheme.weight_max)
        scale = np.full_like(min_scale, max(shared, min_scale.max()))
    return usable_scale(scale)


def shared_scale(
    rows: Float,
    grams: Sequence[Float32],
    blocks: Sequence[tuple[int, int]],
    limit: int = INT8_MAX,
) -> float:
    """The one scale for all `rows` [G, O, K] that changes the outputs least; 0.0 for zero weights.

    Rounding errors of different weights are taken to be independent. Clipping errors are not: they
    are measured with the whole of `grams`, [G, k, k] for each of the column `blocks`.
    """
    largest = float(np.abs(rows).max(initial=0))
    if not largest:
        return 0.0
    # relative to the largest weight, so that float32 holds weights of any magnitude
    weights = (rows / largest).astype(np.float32)
    diagonals = [np.einsum("gkk->gk", gram) for gram in grams]
    input_power = np.concatenate(diagonals, axis=1)[:, None, :]
    errors: list[float] = []
    for fraction in CLIPPING_FRACTIONS:
        clipped = np.clip(weights, -fraction, fraction)
        rounding_error = _rounding_error(clipped, fraction / limit, input_power)
        clipping_error = _clipping_error(weights - clipped, grams, blocks)
        errors.append(REMAINING_ROUNDING_NOISE * rounding_error + clipping_error)
    best = int(np.argmin(errors))
    return CLIPPING_FRACTIONS[best] * largest / limit


def _rounding_error(
    weights: Float32,
    scale: float,
    input_power: Float32,
) -> float:
    """Squared change of the outputs if each weight [G, O, K] is rounded to a multiple of `scale`.

    `input_power` [G, 1, K] is E[x^2] of each column.
    """
    errors = np.round(weights / scale) * scale - weights
    powers = errors * errors * input_power
    return float(powers.sum(dtype=np.float64))


def _clipping_error(
    difference: Float32,
    grams: Sequence[Float32],
    blocks: Sequence[tuple[int, int]],
) -> float:
    """Squared change of the outputs if `difference` [G, O, K] is clipped off the weights."""
    if len(difference) == 1:
        # few rows are clipped at all; with many groups each is small already
        is_clipped = difference.any(axis=(0, 2))
        difference = difference[:, is_clipped]
    errors: list[float] = []
    for gram, (start, end) in zip(grams, blocks, strict=True):
        powers = squared_output(difference[:, :, start:end], gram)
        errors.append(float(powers.sum()))
    return math.fsum(errors)
