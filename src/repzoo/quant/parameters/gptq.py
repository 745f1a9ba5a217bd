"""GPTQ: round weights so that a layer's outputs stay close, not its weights.

For each row w of a layer's weights, with scale s and H = E[x x'] over the layer's inputs x, find
integers q that minimize the expected squared error of the output:

    (w - s q)' H (w - s q)

Columns are rounded one by one, and each one's error is compensated by those not yet rounded:

    e = (w_k - s q_k) / U_kk,   w_j -= e U_kj for j > k,   U'U = inverse(H), U upper triangular

Source: E. Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1 (the closed form of OBQ,
arXiv:2208.11580). Layers with few columns are then refined by coordinate descent on the same error
(K. Behdin et al., "QuantEase", arXiv:2309.01885, equation 9).

In shapes, G are groups, O rows of a group and K columns of a row, as in network/layers.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.statistics import Moments
from repzoo.quant.parameters.scales import INT8_MAX

Float = npt.NDArray[np.float64]
Gram = npt.NDArray[np.floating[Any]]
Order = npt.NDArray[np.int64]

DAMPING = 0.01  # times the mean of H's diagonal, added to it: H may be singular
BLOCK = 64  # columns whose compensation of later columns is done in one matrix product
DESCENT_SWEEPS = 2
# In wider layers a sweep costs more time than it gains accuracy.
MAX_DESCENT_COLUMNS = 64


def round_to_nearest(
    rows: Float,
    scale: Float,
    limit: int = INT8_MAX,
) -> Float:
    """The nearest integers in -limit..limit, of the shape of `rows`; `scale` broadcasts to it."""
    nearest = np.round(rows / scale)
    return np.asarray(np.clip(nearest, -limit, limit))


def round_rows(
    rows: Float,
    moments: Moments,
    scale: Float,
    limit: int,
    gptq: bool,
) -> Float:
    """Integers [G, O, K] for a layer's weights `rows`, by GPTQ or to nearest.

    Args:
        rows: weights [G, O, K].
        moments: of the layer's input.
        scale: [G, O, 1].
        limit: largest integer.
        gptq: whether to use GPTQ.
    """
    if not gptq:
        return round_to_nearest(rows, scale, limit)
    parts: list[Float] = []
    # a wide layer has its Gram matrix in blocks, which are rounded on their own
    for gram, (start, end) in zip(moments.grams, moments.blocks, strict=True):
        block = rows[:, :, start:end]
        parts.append(gptq_round(block, gram, scale, limit))
    return np.concatenate(parts, axis=2)


def gptq_round(
    rows: Float,
    gram: Gram,
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
    input_power = np.einsum("gkk->gk", gram).astype(np.float64)
    mean_power = input_power.mean(axis=1)
    is_active = mean_power > 0
    if not is_active.any():
        return round_to_nearest(rows, scale, limit)

    # the columns with the largest inputs first, while all others can still compensate
    order = np.argsort(-input_power, axis=1, kind="stable")
    divisor = np.where(is_active, mean_power, 1.0)
    sorted_gram = _sorted_and_damped(gram, order, divisor, damping)
    row_order = np.broadcast_to(order[:, None, :], rows.shape)
    sorted_rows = np.take_along_axis(rows, row_order, axis=2)
    integers = _round_sorted(sorted_rows, sorted_gram, scale, limit)
    result = np.empty_like(integers)
    np.put_along_axis(result, row_order, integers, axis=2)
    if is_active.all():
        return result
    nearest = round_to_nearest(rows, scale, limit)
    return np.where(is_active[:, None, None], result, nearest)


def _round_sorted(
    rows: Float,
    gram: Float,
    scale: Float,
    limit: int,
) -> Float:
    """Integers [G, O, K] for sorted columns, refined where that is cheap."""
    integers = _round_column_by_column(rows, gram, scale, limit)
    if rows.shape[2] > MAX_DESCENT_COLUMNS:
        return integers
    return _coordinate_descent(rows, gram, scale, integers, limit)


def _sorted_and_damped(
    gram: Gram,
    order: Order,
    divisor: Float,
    damping: float,
) -> Float:
    """H / `divisor` [G] in float64, with rows and columns in `order` [G, K] and damping added."""
    # group by group into one array: a Gram matrix is the largest thing in memory here
    result = np.empty(gram.shape)
    for group, columns in enumerate(order):
        target = result[group]
        sorted_rows = gram[group].take(columns, axis=0)
        target[:] = sorted_rows.take(columns, axis=1)
        target /= divisor[group]
        diagonal = np.diag_indices(len(target))
        target[diagonal] += damping
    return result


def _round_column_by_column(
    rows: Float,
    gram: Float,
    scale: Float,
    limit: int = INT8_MAX,
) -> Float:
    """Algorithm 1 of the paper: integers [G, O, K]."""
    upper = _inverse_factor(gram)
    remaining = rows.copy()  # the weights with the compensation so far
    integers = np.empty_like(rows)
    columns = rows.shape[2]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        own_factors = upper[:, start:end, start:end]
        later_factors = upper[:, start:end, end:]
        rounded, errors = _round_block(
            remaining[:, :, start:end], own_factors, scale, limit
        )
        integers[:, :, start:end] = rounded
        remaining[:, :, end:] -= errors @ later_factors
    return integers


def _round_block(
    rows: Float,
    upper: Float,
    scale: Float,
    limit: int,
) -> tuple[Float, Float]:
    """Round some columns one by one: (their integers, their errors e), [G, O, k] both.

    `upper` [G, k, k] is the part of U between these columns.
    """
    row_scale = scale[:, :, 0]
    # transposed to [G, k, O], so that the numbers of a column are contiguous
    remaining = np.ascontiguousarray(rows.transpose(0, 2, 1))
    integers = np.empty_like(remaining)
    errors = np.empty_like(remaining)
    for k in range(remaining.shape[1]):
        column = remaining[:, k]
        integers[:, k] = round_to_nearest(column, row_scale, limit)
        difference = column - integers[:, k] * row_scale
        errors[:, k] = difference / upper[:, k, k, None]
        factors = upper[:, k, k + 1 :]  # U_kj for j > k
        remaining[:, k + 1 :] -= factors[:, :, None] * errors[:, None, k]
    return integers.transpose(0, 2, 1), errors.transpose(0, 2, 1)


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
            # the error is quadratic in each column: this step leads to its minimum
            step = gradient[:, :, k] / gram[:, None, k, k]
            current = result[:, :, k] * row_scale
            rounded = round_to_nearest(current - step, row_scale, limit)
            change = rounded * row_scale - current
            gradient += change[:, :, None] * gram[:, None, k, :]
            result[:, :, k] = rounded
    return result


def _inverse_factor(gram: Float) -> Float:
    """Upper triangular U [G, K, K] with U'U = inverse(gram)."""
    # Cholesky of the matrix in reverse order gives gram = V V' with V upper triangular; U = 1 / V
    reversed_gram = gram[:, ::-1, ::-1]
    lower = np.linalg.cholesky(reversed_gram)
    upper = np.asarray(lower[:, ::-1, ::-1], np.float64)
    return _inverse_upper(upper)


def _inverse_upper(upper: Float) -> Float:
    """The inverse of upper triangular matrices [G, K, K].

    By halves, in which A and B are triangular too:

        inverse of  A  C   is   1/A  -1/A C 1/B
                    0  B         0      1/B
    """
    # nearly all of it is then matrix products, the fastest operation of BLAS
    size = upper.shape[1]
    if size <= BLOCK:
        return np.asarray(np.linalg.inv(upper))
    half = size // 2
    first = _inverse_upper(upper[:, :half, :half])
    last = _inverse_upper(upper[:, half:, half:])
    product = first @ upper[:, :half, half:]
    inverse = np.zeros_like(upper)
    inverse[:, :half, :half] = first
    inverse[:, half:, half:] = last
    inverse[:, :half, half:] = -product @ last
    return inverse
