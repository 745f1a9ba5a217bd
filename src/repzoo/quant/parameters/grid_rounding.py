"""Rounds a layer's weights onto its target's grid, so that the target finds the same grid again.

GPTQ (gptq.py) moves weights while it rounds, and may leave the largest of a channel at 126 of 127.
The target's tool would then divide by another scale and round every weight of that channel once
more. So the end of the grid that was not reached is given to the weight for which that costs the
layer's output least,

    cost of moving weight k by d = 2 d g_k + d^2 H_kk,   g = H (s q - w),   H = E[x x']

and the other weights of the channel make up for it by coordinate descent on the same error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.statistics import Moments
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters.gptq import DAMPING, round_rows
from repzoo.quant.parameters.weight_grid import WeightGrid, make_grid
from repzoo.quant.parameters.weight_scales import shared_scale

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def round_onto_grid(
    rows: Float,
    moments: Moments,
    scheme: QuantScheme,
    gptq: bool,
) -> tuple[Float, WeightGrid]:
    """(codes [G, O/G, K], the grid that the target will find) for the float weights `rows`.

    Args:
        rows: weights [G, O/G, K].
        moments: of the layer's input.
        scheme: how the target's tool rounds weights.
        gptq: round by GPTQ, else to nearest.
    """
    grid = make_grid(rows, scheme, _clipping_limit(rows, moments, scheme))
    limit = int(max(grid.high.max(), -grid.low.min()))
    codes = round_rows(rows, moments, grid.scale, limit, gptq)
    codes = np.clip(codes, grid.low, grid.high)
    return reach_ends(rows, codes, grid, moments), grid


def _clipping_limit(rows: Float, moments: Moments, scheme: QuantScheme) -> float | None:
    """Where the weights of a whole tensor are clipped with the least error; None: nowhere."""
    if scheme.per_channel or scheme.weight_rule != "largest":
        return None
    scale = shared_scale(rows, moments.grams, moments.blocks, scheme.weight_max)
    return scale * scheme.weight_max if scale else None


def reach_ends(
    rows: Float,
    codes: Float,
    grid: WeightGrid,
    moments: Moments,
) -> Float:
    """`codes` [G, O/G, K] with every end of `grid` reached, at the least cost for the output."""
    codes = codes.copy()
    is_fixed = np.zeros(codes.shape, bool)
    for end in grid.ends:
        unreached = grid.unreached(codes, end)
        if unreached.any():
            _move_to_end(rows, codes, grid, moments, end, unreached, is_fixed)
    if is_fixed.any():
        _descend(rows, codes, grid, moments, is_fixed)
    return codes


def _move_to_end(
    rows: Float,
    codes: Float,
    grid: WeightGrid,
    moments: Moments,
    end: tuple[Float, ...],
    unreached: Mask,
    is_fixed: Mask,
) -> None:
    """Give an end to one weight of each channel in `unreached`. Changes `codes`, `is_fixed`."""
    best_cost = np.full(len(unreached), np.inf)
    position = np.zeros(len(unreached), np.int64)
    value = np.zeros(len(unreached))
    for code in end:
        costs = grid.by_unit(_move_costs(rows, codes, grid, moments, code))
        # a weight that holds the other end must stay there
        costs = np.where(grid.by_unit(is_fixed), np.inf, costs)
        cheapest = costs.argmin(1)
        cost = costs[np.arange(len(costs)), cheapest]
        targets = grid.by_unit(np.broadcast_to(code, codes.shape))
        is_better = cost < best_cost
        best_cost = np.where(is_better, cost, best_cost)
        position = np.where(is_better, cheapest, position)
        value = np.where(is_better, targets[np.arange(len(costs)), cheapest], value)
    units = np.flatnonzero(unreached & np.isfinite(best_cost))
    # reshaped arrays are views: this writes into the caller's
    grid.by_unit(codes)[units, position[units]] = value[units]
    grid.by_unit(is_fixed)[units, position[units]] = True


def _move_costs(
    rows: Float,
    codes: Float,
    grid: WeightGrid,
    moments: Moments,
    code: Float,
) -> Float:
    """What it costs the layer's output to give each weight alone the value `code`: [G, O/G, K]."""
    costs = np.empty_like(codes)
    for start, end, gram in _damped_grams(moments):
        block = codes[:, :, start:end]
        gradient = (block * grid.scale - rows[:, :, start:end]) @ gram
        step = (code - block) * grid.scale
        power = np.einsum("gkk->gk", gram)[:, None, :]
        costs[:, :, start:end] = step * (2 * gradient + step * power)
    return costs


def _descend(
    rows: Float,
    codes: Float,
    grid: WeightGrid,
    moments: Moments,
    is_fixed: Mask,
) -> None:
    """One sweep of coordinate descent over the channels that have a fixed weight, in `codes`."""
    # the sweep goes over all groups at once, which have few channels each
    chosen = is_fixed.any((0, 2))
    scale = grid.scale[:, chosen, 0]
    low = grid.low[:, chosen, 0]
    high = grid.high[:, chosen, 0]
    for end_codes in grid.ends:  # an end that was reached anyway must not be left
        is_fixed = is_fixed | grid.reaches(codes, end_codes)
    for start, end, gram in _damped_grams(moments):
        block = codes[:, chosen, start:end]
        fixed = is_fixed[:, chosen, start:end]
        target = rows[:, chosen, start:end]
        gradient = (block * scale[:, :, None] - target) @ gram
        for k in range(end - start):
            current = block[:, :, k] * scale
            step = gradient[:, :, k] / gram[:, None, k, k]
            nearest = np.clip(np.round((current - step) / scale), low, high)
            moved = np.where(fixed[:, :, k], block[:, :, k], nearest)
            change = moved * scale - current
            gradient += change[:, :, None] * gram[:, None, k, :]
            block[:, :, k] = moved
        codes[:, chosen, start:end] = block


def _damped_grams(
    moments: Moments,
) -> Iterator[tuple[int, int, npt.NDArray[np.floating[Any]]]]:
    """(begin, end, H [G, k, k] with damping) of each block of columns."""
    for gram, (start, end) in zip(moments.grams, moments.blocks, strict=True):
        mean = np.einsum("gkk->gk", gram).mean(1)
        # inputs that are always 0 still need a cost, so that weights do not move for nothing
        damping = DAMPING * np.where(mean > 0, mean, 1.0)
        eye = np.eye(end - start)
        yield start, end, gram + damping[:, None, None] * eye
