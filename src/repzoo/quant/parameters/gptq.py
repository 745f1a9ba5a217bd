"""Second-order rounding: integer weights that keep a layer's outputs, not its weights.

Minimize over integers q the expected squared error of the layer's outputs, (w - s q)' H (w - s q) with H = E[x x'], for each
row w. Column by column, the error of rounding one weight is taken up by the weights not yet rounded:

    e = (w_k - s q_k) / U_kk,   w_j -= e U_kj for j > k,   U'U = inverse(H), U upper triangular.

Sources: E. Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1 (the closed form of OBQ, arXiv:2208.11580); the sweeps that
follow are coordinate descent on the same error (K. Behdin et al., "QuantEase", arXiv:2309.01885, equation 9).

A grid that all rows share need not reach the largest weight: `shared_step` weighs, by that same error, what is cut off the largest
weights against what all others gain by a finer step (as R. Banner et al., arXiv:1810.05723, section 2, who derive it for weights of a
known distribution).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
DAMPING = (
    0.01  # of the mean of H's diagonal, added to it: also what columns that are always 0 live by
)
BLOCK = 64
SWEEPS = 2
MOST_SWEPT = 64  # columns; beyond, a sweep costs more than it gains
SHORTER = tuple(
    2 ** (-one / 8) for one in range(13)
)  # how far a grid that all rows share may reach, over the largest weight
LEFT = 0.5  # of the power of plain rounding's noise, that second-order rounding is taken to leave; of what is cut off it leaves nearly all
LIMIT = 127  # largest integer; -128 is left out, so that the negative of a weight is a weight


def round_to_nearest(rows: Float, scale: Float, limit: int = LIMIT) -> Float:
    """Plain rounding: integers -limit..limit of the shape of `rows`; `scale` broadcasts against it."""
    return np.asarray(np.clip(np.round(rows / scale), -limit, limit))


def gptq_round(
    rows: Float,
    gram: npt.NDArray[np.floating[Any]],
    scale: Float,
    limit: int = LIMIT,
    damping: float = DAMPING,
) -> Float:
    """Integers -limit..limit [G, O, K] for `rows` [G, O, K] on the grid `scale` [G, O, 1], given `gram` [G, K, K] = E[x x'].

    A group whose inputs are all 0 is rounded plainly.
    """
    diagonal = np.einsum("gkk->gk", gram).astype(np.float64)
    mean = diagonal.mean(1)
    alive = mean > 0
    if not alive.any():
        return round_to_nearest(rows, scale, limit)
    order = np.argsort(
        -diagonal, axis=1, kind="stable"
    )  # columns that matter most first, while all others can still help
    sorted_rows, sorted_gram = (
        _take(rows, order),
        _damped(gram, order, np.where(alive, mean, 1.0), damping),
    )
    found = _column_by_column(sorted_rows, sorted_gram, scale, limit)
    if rows.shape[2] <= MOST_SWEPT:
        found = _descended(sorted_rows, sorted_gram, scale, found, limit)
    made = np.empty_like(found)
    np.put_along_axis(made, np.broadcast_to(order[:, None, :], found.shape), found, 2)
    return (
        made
        if alive.all()
        else np.where(alive[:, None, None], made, round_to_nearest(rows, scale, limit))
    )


def _damped(
    gram: npt.NDArray[np.floating[Any]], order: npt.NDArray[np.int64], mean: Float, damping: float
) -> Float:
    """`gram` in float64 over its `mean` [G], columns and rows in `order` [G, K], with the damping; the one copy of its size."""
    made = np.empty(gram.shape)
    for one, each, at, usual in zip(made, gram, order, mean, strict=True):
        one[:] = each.take(at, axis=0).take(at, axis=1)
        one /= usual
        one[np.diag_indices(len(one))] += damping
    return made


def output_error(rows: npt.NDArray[np.floating[Any]], gram: npt.NDArray[np.float32]) -> Float:
    """Expected squared output e = row' H row of each row: [G, O]."""
    narrow = rows.astype(np.float32)
    return np.asarray(((narrow @ gram) * narrow).sum(2, dtype=np.float64))


def shared_scale(
    rows: Float,
    grams: Sequence[npt.NDArray[np.float32]],
    blocks: Sequence[tuple[int, int]],
    limit: int = LIMIT,
) -> float:
    """The step of one grid for all of `rows` [G, O, K] by which rounding moves the outputs least; 0.0 where all weights are 0.

    Rounding errors of different weights are taken to be independent. What is cut off is not: there all of `grams` [G, k, k], one a
    block of columns, is asked.
    """
    peak = float(np.abs(rows).max(initial=0))
    if not peak:
        return 0.0
    narrow = (rows / peak).astype(
        np.float32
    )  # in units of the largest weight, of whatever size that is
    diagonal = np.concatenate([np.einsum("gkk->gk", one) for one in grams], 1)[:, None, :]
    best, least = 1.0, math.inf
    for reach in SHORTER:
        held = np.clip(narrow, -reach, reach)
        cut, step = narrow - held, reach / limit
        moved = np.round(held / step) * step - held
        wrong = LEFT * float((moved * moved * diagonal).sum(dtype=np.float64)) + _cut_off(
            cut, grams, blocks
        )
        if wrong < least:
            best, least = reach, wrong
    return best * peak / limit


def _cut_off(
    cut: npt.NDArray[np.float32],
    grams: Sequence[npt.NDArray[np.float32]],
    blocks: Sequence[tuple[int, int]],
) -> float:
    """What `cut` [G, O, K] off the weights moves the outputs by; few rows reach so far, and of many groups each is small."""
    if len(cut) == 1:
        cut = cut[:, cut.any((0, 2))]
    return math.fsum(
        float(output_error(cut[:, :, a:b], gram).sum())
        for gram, (a, b) in zip(grams, blocks, strict=True)
    )


def _take(values: Float, order: npt.NDArray[np.int64]) -> Float:
    return np.take_along_axis(values, np.broadcast_to(order[:, None, :], values.shape), 2)


def _inverse_factor(gram: Float) -> Float:
    """Upper triangular U [G, K, K] with U'U = inverse(gram)."""
    return _inverse_upper(
        np.asarray(np.linalg.cholesky(gram[:, ::-1, ::-1])[:, ::-1, ::-1], np.float64)
    )  # gram = V V', V upper triangular


def _inverse_upper(upper: Float) -> Float:
    """Of triangular matrices [G, K, K], by halves: mostly products, which BLAS is fast at."""
    size = upper.shape[1]
    if size <= BLOCK:
        return np.asarray(np.linalg.inv(upper))
    half, made = size // 2, np.zeros_like(upper)
    first, last = _inverse_upper(upper[:, :half, :half]), _inverse_upper(upper[:, half:, half:])
    made[:, :half, :half], made[:, half:, half:] = first, last
    made[:, :half, half:] = -(first @ upper[:, :half, half:]) @ last
    return made


def _column_by_column(rows: Float, gram: Float, scale: Float, limit: int = LIMIT) -> Float:
    upper, left, made = _inverse_factor(gram), rows.copy(), np.empty_like(rows)
    count, steps = rows.shape[2], scale[:, :, 0]
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        block = np.ascontiguousarray(
            left[:, :, start:end].transpose(0, 2, 1)
        )  # a column's numbers lie together
        errors = np.empty_like(block)
        for k in range(end - start):
            now, factors = block[:, k], upper[:, start + k, start + k : end]
            rounded = round_to_nearest(now, steps, limit)
            made[:, :, start + k] = rounded
            errors[:, k] = (now - rounded * steps) / factors[:, :1]
            block[:, k + 1 :] -= factors[:, 1:, None] * errors[:, None, k]
        left[:, :, end:] -= errors.transpose(0, 2, 1) @ upper[:, start:end, end:]
    return made


def _descended(rows: Float, gram: Float, scale: Float, start: Float, limit: int) -> Float:
    """`start` improved coordinate by coordinate; the error never grows."""
    made = start.copy()
    for _ in range(SWEEPS):
        slope = (made * scale - rows) @ gram  # half the gradient
        for k in range(rows.shape[2]):
            now = made[:, :, k] * scale[:, :, 0]
            better = round_to_nearest(
                now - slope[:, :, k] / gram[:, None, k, k], scale[:, :, 0], limit
            )
            move = better * scale[:, :, 0] - now
            slope += move[:, :, None] * gram[:, None, k, :]
            made[:, :, k] = better
    return made
