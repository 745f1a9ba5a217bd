"""GPTQ: round weights so that a layer's outputs stay close, not its weights.

For each row w of a layer's weights, with scale s and H = E[x x'] over the layer's inputs x, find
integers q that minimize the expected squared error of the output:

    (w - s q)' H (w - s q)

Columns are rounded one by one, and each one's error is compensated by those not yet rounded:

    e = (w_k - s q_k) / U_kk,   w_j -= e U_kj for j > k,   U'U = inverse(H), U upper triangular

Source: E. Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1 (the closed form of OBQ,
arXiv:2208.11580). Layers with few columns are then refined by coordinate descent on the same error
(K. Behdin et al., "QuantEase", arXiv:2309.01885, equation 9).

`shared_scale` chooses the scale of a layer whose rows all share one: it weighs the error of
clipping the largest weights against the smaller rounding error of all others, as R. Banner et al.,
arXiv:1810.05723, section 2, do for weights of a known distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.statistics import squared_output
from repzoo.quant.parameters.scales import INT8_MAX

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]

DAMPING = 0.01  # times the mean of H's diagonal, added to it: H may be singular
BLOCK = 64  # columns whose compensation of later columns is done in one matrix product
DESCENT_SWEEPS = 2
MAX_DESCENT_COLUMNS = (
    64  # in wider layers a sweep costs more time than it gains accuracy
)
# Clipping thresholds tried for a shared scale, as fractions of the largest weight.
CLIPPING_FRACTIONS = tuple(2 ** (-eighths / 8) for eighths in range(13))
# Fraction of the noise of rounding to nearest that remains after GPTQ. Clipping noise remains
# nearly whole.
REMAINING_ROUNDING_NOISE = 0.5


def round_to_nearest(
    rows: Float,
    scale: Float,
    limit: int = INT8_MAX,
) -> Float:
    """The nearest integers in -limit..limit, of the shape of `rows`; `scale` broadcasts to it."""
    return np.asarray(np.clip(np.round(rows / scale), -limit, limit))


def gptq_round(
    rows: Float,
    gram: npt.NDArray[np.floating[Any]],
    scale: Float,
    limit: int = INT8_MAX,
    damping: float = DAMPING,
) -> Float:
    """Integers in -limit..limit, [G, O, K], that minimize the output error.

    A group whose inputs are all 0 is rounded to nearest.

    Args:
        rows: weights [G, O, K].
        gram: H = E[x x'], [G, K, K].
        scale: [G, O, 1].
        limit: largest integer.
        damping: added to the diagonal of H, relative to its mean.
    """
    diagonal = np.einsum("gkk->gk", gram).astype(np.float64)
    mean = diagonal.mean(1)
    is_active = mean > 0
    if not is_active.any():
        return round_to_nearest(rows, scale, limit)
    # the columns with the largest inputs first, while all others can still compensate
    order = np.argsort(-diagonal, axis=1, kind="stable")
    row_order = np.broadcast_to(order[:, None, :], rows.shape)
    sorted_rows = np.take_along_axis(rows, row_order, 2)
    divisor = np.where(is_active, mean, 1.0)
    sorted_gram = _sorted_and_damped(gram, order, divisor, damping)

    integers = _round_column_by_column(sorted_rows, sorted_gram, scale, limit)
    if rows.shape[2] <= MAX_DESCENT_COLUMNS:
        integers = _coordinate_descent(sorted_rows, sorted_gram, scale, integers, limit)

    result = np.empty_like(integers)
    np.put_along_axis(result, row_order, integers, 2)
    if is_active.all():
        return result
    nearest = round_to_nearest(rows, scale, limit)
    return np.where(is_active[:, None, None], result, nearest)


def _sorted_and_damped(
    gram: npt.NDArray[np.floating[Any]],
    order: Order,
    mean: Float,
    damping: float,
) -> Float:
    """H / mean in float64 with rows and columns in `order` [G, K], and the damping added."""
    # group by group into one array: a Gram matrix is the largest thing in memory here
    result = np.empty(gram.shape)
    for group, columns in enumerate(order):
        target = result[group]
        target[:] = gram[group].take(columns, axis=0).take(columns, axis=1)
        target /= mean[group]
        target[np.diag_indices(len(target))] += damping
    return result


def _round_column_by_column(
    rows: Float,
    gram: Float,
    scale: Float,
    limit: int = INT8_MAX,
) -> Float:
    """Algorithm 1 of the paper, in blocks of columns: integers [G, O, K]."""
    upper = _inverse_factor(gram)
    remaining = rows.copy()  # the weights with the compensation so far
    integers = np.empty_like(rows)
    columns = rows.shape[2]
    row_scale = scale[:, :, 0]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        # transposed, so that the numbers of a column are contiguous
        block = np.ascontiguousarray(remaining[:, :, start:end].transpose(0, 2, 1))
        errors = np.empty_like(block)
        for k in range(end - start):
            current = block[:, k]  # [G, O]
            factors = upper[:, start + k, start + k : end]  # U_kj for j from k, [G, j]
            rounded = round_to_nearest(current, row_scale, limit)
            integers[:, :, start + k] = rounded
            difference = current - rounded * row_scale
            errors[:, k] = difference / factors[:, :1]
            block[:, k + 1 :] -= factors[:, 1:, None] * errors[:, None, k]
        # the later columns get the compensation for the whole block in one product
        compensation = errors.transpose(0, 2, 1) @ upper[:, start:end, end:]
        remaining[:, :, end:] -= compensation
    return integers


def _coordinate_descent(
    rows: Float,
    gram: Float,
    scale: Float,
    integers: Float,
    limit: int,
) -> Float:
    """Improve `integers` one column at a time. The error never grows."""
    result = integers.copy()
    row_scale = scale[:, :, 0]
    for _ in range(DESCENT_SWEEPS):
        # half the gradient of (w - s q)' H (w - s q) in s q
        gradient = (result * scale - rows) @ gram
        for k in range(rows.shape[2]):
            current = result[:, :, k] * row_scale
            step = gradient[:, :, k] / gram[:, None, k, k]
            rounded = round_to_nearest(current - step, row_scale, limit)
            change = rounded * row_scale - current
            gradient += change[:, :, None] * gram[:, None, k, :]
            result[:, :, k] = rounded
    return result


def _inverse_factor(gram: Float) -> Float:
    """Upper triangular U [G, K, K] with U'U = inverse(gram)."""
    # Cholesky of the matrix in reverse order gives gram = V V' with V upper triangular; U = 1 / V
    upper = np.linalg.cholesky(gram[:, ::-1, ::-1])[:, ::-1, ::-1]
    return _inverse_upper(np.asarray(upper, np.float64))


def _inverse_upper(upper: Float) -> Float:
    """The inverse of upper triangular matrices [G, K, K]."""
    # by halves: nearly all of it is matrix products, the fastest operation of BLAS
    size = upper.shape[1]
    if size <= BLOCK:
        return np.asarray(np.linalg.inv(upper))
    half = size // 2
    first = _inverse_upper(upper[:, :half, :half])
    last = _inverse_upper(upper[:, half:, half:])
    inverse = np.zeros_like(upper)
    inverse[:, :half, :half] = first
    inverse[:, half:, half:] = last
    corner = first @ upper[:, :half, half:]
    inverse[:, :half, half:] = -corner @ last
    return inverse


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
    input_power = np.concatenate(diagonals, 1)[:, None, :]
    best_fraction = 1.0
    least_error = math.inf
    for fraction in CLIPPING_FRACTIONS:
        clipped = np.clip(weights, -fraction, fraction)
        scale = fraction / limit
        rounding = np.round(clipped / scale) * scale - clipped
        powers = rounding * rounding * input_power
        rounding_error = float(powers.sum(dtype=np.float64))
        clipping_error = _clipping_error(weights - clipped, grams, blocks)
        error = REMAINING_ROUNDING_NOISE * rounding_error + clipping_error
        if error < least_error:
            best_fraction = fraction
            least_error = error
    return best_fraction * largest / limit


def _clipping_error(
    difference: Float32,
    grams: Sequence[Float32],
    blocks: Sequence[tuple[int, int]],
) -> float:
    """Squared change of the outputs if `difference` [G, O, K] is clipped off the weights."""
    if len(difference) == 1:
        # few rows are clipped at all; with many groups each is small already
        difference = difference[:, difference.any((0, 2))]
    errors = []
    for gram, (start, end) in zip(grams, blocks, strict=True):
        block = squared_output(difference[:, :, start:end], gram)
        errors.append(float(block.sum()))
    return math.fsum(errors)
