"""Statistics of accuracies and latencies, in closed form, without SciPy. Every interval is 95 % unless `z` says otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
POWER = 0.8
Z_POWER = 0.8416212335729143  # the normal quantile of POWER


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval, in the estimate's unit."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """Score interval of a proportion (0..1).

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"need 0 <= successes <= n and n >= 1; got {successes} of {n}")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """Difference of two proportions measured on the same items, first minus second (-1..1).

    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17 (1998), method 10.
    """
    n = both + only_first + only_second + neither
    one, two = wilson(both + only_first, n), wilson(both + only_second, n)
    phi = _phi(both, only_first, only_second, neither)
    difference = (only_first - only_second) / n
    down, up = (
        _square_and_add(one.value - one.low, two.high - two.value, phi),
        _square_and_add(one.high - one.value, two.value - two.low, phi),
    )
    return Interval(difference, max(-1.0, difference - down), min(1.0, difference + up))


def _square_and_add(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Newcombe's correlation of the pairs, with his continuity correction for positive association."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    excess = a * d - b * c
    corrected = max(0.0, excess - (a + b + c + d) / 2) if excess > 0 else excess
    return corrected / math.sqrt(product)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that the two disagree symmetrically.

    Source: Q. McNemar, Psychometrika 12 (1947); the exact form is a binomial test of the discordant pairs at 1/2.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    log_half = n * math.log(2)
    tail = sum(math.exp(_log_choose(n, i) - log_half) for i in range(k + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def pairs_needed(discordant: float, difference: float) -> int:
    """Pairs that McNemar's test at the 5 % level needs to see a `difference` of two proportions with a power of 80 %.

    discordant  share of pairs (0..1) on which exactly one of the two is right; at least |difference|, or it is taken to be so
    difference  of the proportions, not 0

        n = (z_0.975 sqrt(discordant) + z_0.8 sqrt(discordant - difference^2))^2 / difference^2

    Source: R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43
    (1987), equation for the unconditional test.
    """
    if not 0 <= discordant <= 1 or not 0 < abs(difference) <= 1:
        raise ValueError(f"need 0 <= discordant <= 1 and 0 < |difference| <= 1; got {discordant} and {difference}")
    share, square = max(discordant, abs(difference)), difference * difference
    return math.ceil((Z95 * math.sqrt(share) + Z_POWER * math.sqrt(share - square)) ** 2 / square)


def visible_difference(discordant: float, n: int) -> float:
    """The smallest difference (0..1) that `n` pairs show with a power of 80 %: the inverse of `pairs_needed`.

    1 where not even that would be seen.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if pairs_needed(discordant, middle) <= n else (middle, high)
    return high


def median_interval(samples: Sequence[float], z: float = Z95) -> Interval:
    """Median with its distribution-free interval from order statistics (normal approximation of the binomial rank).

    Fewer than 6 samples cannot give 95 %: the interval is then their whole range.
    Source: W. J. Conover, "Practical Nonparametric Statistics", 3rd ed., section 3.2.
    """
    ordered = np.sort(np.asarray(samples, float))
    n = len(ordered)
    if n == 0:
        raise ValueError("no samples")
    half = z * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half) - (0 if n < 6 else 1))
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[max(high, low)]))
