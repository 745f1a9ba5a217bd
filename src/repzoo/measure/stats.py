"""Statistics of accuracies and latencies, in closed form, without SciPy.

Every interval is 95 % unless `z` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
Z95 = 1.959963984540054
POWER = 0.8
Z_POWER = 0.8416212335729143  # the normal quantile of POWER
# The normal quantile of a two-sided 5 % that three tests share (Bonferroni).
Z_OF_THREE = 2.3939797998185104
# Halvings of [0, 1] until a float64 has no more digits to give.
HALVINGS = 50


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval, in the estimate's unit."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """Score interval of a proportion (0..1).

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical
    Inference", JASA 22 (1927).
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"need 0 <= successes <= n and n >= 1; got {successes} of {n}")
    p = successes / n
    square = z * z
    shrink = 1 + square / n
    center = (p + square / (2 * n)) / shrink
    variance = p * (1 - p) / n + square / (4 * n * n)
    half = z / shrink * math.sqrt(variance)
    # At the ends rounding would leave bounds just beyond 0 and 1.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return Interval(p, low, high)


def paired_difference(
    both: int, only_first: int, only_second: int, neither: int
) -> Interval:
    """Difference of two proportions measured on the same items, first minus second (-1..1).

    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17 (1998), method 10.
    """
    n = both + only_first + only_second + neither
    first = wilson(both + only_first, n)
    second = wilson(both + only_second, n)
    phi = _phi(both, only_first, only_second, neither)
    difference = (only_first - only_second) / n
    down = _combine(first.value - first.low, second.high - second.value, phi)
    up = _combine(first.high - first.value, second.value - second.low, phi)
    low = max(-1.0, difference - down)
    high = min(1.0, difference + up)
    return Interval(difference, low, high)


def _combine(first: float, second: float, phi: float) -> float:
    """The distance of a bound from that of two proportions with the correlation `phi`."""
    square = first * first - 2 * phi * first * second + second * second
    # Rounding may leave it just below 0.
    return math.sqrt(max(0.0, square))


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Newcombe's correlation of the pairs; a, b, c, d are the cells of the 2x2 table by rows.

    A positive association has his continuity correction.
    """
    rows = (a + b) * (c + d)
    columns = (a + c) * (b + d)
    product = rows * columns
    if product == 0:
        return 0.0
    n = a + b + c + d
    excess: float = a * d - b * c
    if excess > 0:
        excess = max(0.0, excess - n / 2)
    return excess / math.sqrt(product)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that the two disagree symmetrically.

    Source: Q. McNemar, Psychometrika 12 (1947); the exact form is a binomial test of the
    discordant pairs at 1/2.
    """
    n = only_first + only_second
    k = min(only_first, only_second)
    if n == 0:
        return 1.0
    # In logarithms: the powers of two underflow from some thousand pairs on.
    log_half = n * math.log(2)
    terms = [math.exp(_log_choose(n, i) - log_half) for i in range(k + 1)]
    return min(1.0, 2 * sum(terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def pairs_needed(discordant: float, difference: float) -> int:
    """Number of pairs with which McNemar's test at 5 % finds a `difference` with a power of 80 %.

    discordant  share of pairs (0..1) on which exactly one of the two is right. Values below
                |difference| count as |difference|
    difference  of the two proportions, not 0

        n = (z_0.975 sqrt(discordant) + z_0.8 sqrt(discordant - difference^2))^2 / difference^2

    Source: R. J. Connor, "Sample size for testing differences in proportions for the
    paired-sample design", Biometrics 43 (1987), equation for the unconditional test.
    """
    if not 0 <= discordant <= 1 or not 0 < abs(difference) <= 1:
        raise ValueError(
            f"need 0 <= discordant <= 1 and 0 < |difference| <= 1; got {discordant} and "
            f"{difference}"
        )
    share = max(discordant, abs(difference))
    square = difference * difference
    deviations = Z95 * math.sqrt(share) + Z_POWER * math.sqrt(share - square)
    return math.ceil(deviations**2 / square)


def visible_difference(discordant: float, n: int) -> float:
    """The smallest difference (0..1) that `n` pairs show with a power of 80 %.

    The inverse of `pairs_needed`, by bisection; 1 where not even that would be seen.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if pairs_needed(discordant, middle) <= n:
            high = middle
        else:
            low = middle
    return high


def median_interval(samples: Sequence[float]) -> Interval:
    """Median with its distribution-free interval from order statistics, at exact binomial ranks.

    Fewer than 6 samples cannot give 95 %: the interval is then their whole range.
    Source: W. J. Conover, "Practical Nonparametric Statistics", 3rd ed., section 3.2.
    """
    ordered = np.sort(np.asarray(samples, float))
    n = len(ordered)
    if n == 0:
        raise ValueError("no samples")
    cdf = binomial_cdf(n, 0.5)
    # Samples beyond each end of the interval.
    outside = int(np.searchsorted(cdf, (1 - CONFIDENCE) / 2, side="right"))
    low = float(ordered[max(0, outside - 1)])
    high = float(ordered[n - max(1, outside)])
    return Interval(float(np.median(ordered)), low, high)


def quantile_interval(rounds: Sequence[npt.NDArray[np.float64]], q: float) -> Interval:
    """The quantile `q` (0..1) of the samples of all `rounds`, with its interval.

    Samples of one round are alike, and the interval allows for that. The value is the smallest
    sample that at least the share `q` does not exceed: never a number between two modes. The
    share of each round's samples below it shows how much the rounds differ. By that, the samples
    count as so many independent ones, whose exact binomial ranks bound the quantile. `high` is
    infinite where these are too few to bound it (for the 0.99 quantile, fewer than 368).

    Source: E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small
    expected number of positive counts estimated from survey data", Survey Methodology 24
    (1998); inverted for quantiles as in R. S. Woodruff, JASA 47 (1952).
    """
    pooled = np.sort(np.concatenate(rounds))
    n = len(pooled)
    if n == 0:
        raise ValueError("no samples")
    value = pooled[math.ceil(q * n) - 1]
    below = np.array([np.count_nonzero(samples <= value) for samples in rounds])
    counts = np.array(list(map(len, rounds)))
    independent = _effective_samples(below, counts)
    cdf = binomial_cdf(independent, q)
    # Binomial quantiles: how many of the independent samples lie below the bounds.
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.searchsorted(cdf, tails)
    rank = math.ceil(low / independent * n)
    lower = pooled[max(0, rank - 1)]
    upper = math.inf
    if high < independent:
        rank = math.ceil((high + 1) / independent * n)
        upper = pooled[rank - 1]
    return Interval(float(value), float(lower), float(upper))


def _effective_samples(
    below: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> int:
    """How many independent samples carry as much information as these rounds; at most all.

    The binomial variance of the share below a value, over its variance between rounds.

    below   samples of each round that do not exceed the value
    counts  samples of each round
    """
    n = int(counts.sum())
    clusters = len(counts)
    share = below.sum() / n
    if clusters < 2 or share == 1:
        return n
    deviations = below - share * counts
    squares = float((deviations**2).sum())
    variance = clusters / (clusters - 1) * squares / n**2
    if not variance:
        return n
    # Few rounds know their own variance badly; Korn and Graubard's correction by Student's t.
    correction = (Z95 / student(clusters - 1)) ** 2
    effective = int(share * (1 - share) / variance * correction)
    return max(1, min(n, effective))


def student(freedom: int) -> float:
    """Two-sided 95 % point of Student's t with `freedom` degrees of freedom.

    The Cornish-Fisher expansion, within 1 % from 5 degrees of freedom on.

    Source: M. Abramowitz and I. A. Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    point = z + first / freedom
    point += second / freedom**2
    point += third / freedom**3
    return point


def binomial_cdf(n: int, p: float) -> npt.NDArray[np.float64]:
    """P(X <= k) of `n` trials with probability `p` (0..1, ends excluded), for k = 0..n."""
    k = np.arange(1, n + 1)
    # From each k to the next, the binomial coefficient grows by (n - k + 1) / k.
    growth = np.log((n - k + 1) / k)
    log_choose = np.concatenate([[0.0], np.cumsum(growth)])
    hits = np.arange(n + 1)
    misses = n - hits
    log_density = log_choose + hits * math.log(p) + misses * math.log1p(-p)
    cdf: npt.NDArray[np.float64] = np.cumsum(np.exp(log_density))
    return cdf


def overlatency_allowed(n: int, q: float, confidence: float = 0.99) -> int:
    """How many of `n` queries may exceed a latency that is to be at least the quantile `q`.

    It is that with probability `confidence`. 0 where the queries are too few. The estimate is the
    latency of the `overlatency_allowed`-th slowest query.

    Source: MLPerf Inference Rules, appendix "Early Stopping Criterion", with its d = 0 and
    c = 0.99.
    """
    cdf = binomial_cdf(n, 1 - q)
    certain = int(np.searchsorted(cdf, 1 - confidence))
    return max(0, certain - 1)


def queries_needed(q: float, confidence: float = 0.99) -> int:
    """The fewest queries for which `overlatency_allowed` is not 0.

    64 for the 0.9 quantile, 662 for 0.99.
    """
    n = 1
    # The probability that at most one of n queries exceeds the quantile.
    while n * q ** (n - 1) * (1 - q) + q**n >= 1 - confidence:
        n += 1
    return n


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median: how much the middle half of `values` differs."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / middle)


def trend(values: Sequence[float]) -> float:
    """Relative change of median from the beginning of a sequence to its rest.

    The largest over three beginnings (the first eighth, quarter and half); 0 where a rank test
    explains all by chance (5 % in all, shared by the three).

    Source: H. B. Mann and D. R. Whitney, Annals of Mathematical Statistics 18 (1947), normal
    approximation with continuity.
    """
    sequence = np.asarray(values, float)
    largest = 0.0
    for part in (8, 4, 2):
        split = len(sequence) // part
        if split > 1:
            change = _change(sequence[:split], sequence[split:])
            largest = max(largest, change, key=abs)
    return largest


def _change(first: npt.NDArray[np.float64], rest: npt.NDArray[np.float64]) -> float:
    """Relative change of median from `first` to `rest`, 0 where the rank test does not see it."""
    m = len(first)
    n = len(rest)
    column = rest[:, None]
    larger = np.count_nonzero(column > first)
    ties = np.count_nonzero(column == first)
    wins = larger + ties / 2
    deviation = math.sqrt(m * n * (m + n + 1) / 12)
    # Half a rank is the correction for continuity.
    z = (abs(wins - m * n / 2) - 0.5) / deviation
    if z < Z_OF_THREE:
        return 0.0
    ratio = np.median(rest) / np.median(first)
    return float(ratio) - 1
