"""Sums as hardware computes them that also accumulates in float16, term after term.

A running sum rounds after each term. It stops growing where a term is below half of its last
place: adding ones ends at 2048. It overflows at 65504, although the mean that is wanted may be
small. Some hardware accumulates in float32; what survives here survives there.

Products are not rounded before they are added, as in a fused multiply-add. Finite numbers may
become infinite or NaN.

Source: IEEE 754-2019, binary16; N. J. Higham, "Accuracy and Stability of Numerical Algorithms",
2nd ed., section 4.2 (recursive summation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float = npt.NDArray[np.float64]
Float16 = npt.NDArray[np.float16]
Kind = Literal["mean", "sum", "squares", "softmax", "normalize"]


def to_float16(values: Array) -> Float16:
    """`values` rounded; those beyond the range become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(np.float16))


def running_sum(terms: Float16) -> Float16:
    """The sum along the first axis, rounded after each term."""
    total = np.zeros(terms.shape[1:], np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for term in terms:
            total = total + term
    return total


def running_dot(rows: Array, columns: Array) -> Float16:
    """rows [O, K] @ columns [K, P] of rounded factors, rounded after each of the K terms."""
    factors = to_float16(rows).astype(np.float32)
    values = to_float16(columns).astype(np.float32)
    total = np.zeros((len(rows), columns.shape[1]), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for factor, value in zip(factors.T, values, strict=True):
            exact = total.astype(np.float32) + factor[:, None] * value
            total = exact.astype(np.float16)
    return total


@dataclass(frozen=True)
class Reduction:
    """What an operator computes from the numbers of one row.

    kind     mean, sum, squares (their sum), softmax, or normalize: (x - mean) / deviation
    epsilon  added to the variance
    """

    kind: Kind
    epsilon: float = 0.0

    def exact(self, rows: Float32) -> Float:
        """The result for each of `rows` [n, R] in float64."""
        values = rows.astype(np.float64).T
        if self.kind == "mean":
            return np.asarray(values.mean(0))
        if self.kind == "sum":
            return np.asarray(values.sum(0))
        if self.kind == "squares":
            return np.asarray((values**2).sum(0))
        if self.kind == "softmax":
            powers = np.exp(values - values.max(0))
            return np.asarray(powers / powers.sum(0))
        centered = values - values.mean(0)
        return np.asarray(centered / np.sqrt((centered**2).mean(0) + self.epsilon))

    def in_float16(self, rows: Float32) -> Float16:
        """The same with every step rounded to float16."""
        values = to_float16(rows).T
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self.kind == "mean":
                return _mean(values)
            if self.kind == "sum":
                return running_sum(values)
            if self.kind == "squares":
                return running_sum(values * values)
            if self.kind == "softmax":
                powers = np.exp(values - values.max(0))
                return np.asarray(powers / running_sum(powers))
            centered = values - _mean(values)
            variance = _mean(centered * centered) + np.float16(self.epsilon)
            return np.asarray(centered / np.sqrt(variance))


def _mean(values: Float16) -> Float16:
    """The mean along the first axis: the sum is rounded at each term, the quotient once."""
    quotient = running_sum(values).astype(np.float32) / len(values)
    return np.asarray(quotient.astype(np.float16))


def noise_db(exact: Array, rounded: Array) -> float:
    """The signal-to-noise ratio of `rounded`: 200 dB without noise, -inf where it overflows."""
    if not np.isfinite(rounded).all():
        return -np.inf
    wanted = exact.astype(np.float64)
    signal = float((wanted**2).sum())
    noise = float(((rounded.astype(np.float64) - wanted) ** 2).sum())
    if noise <= 1e-20 * signal:
        return 200.0
    if signal == 0:
        return -np.inf
    return float(10 * np.log10(signal / noise))
