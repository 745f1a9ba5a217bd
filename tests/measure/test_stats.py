"""Statistics against SciPy's, against published tables, and their coverage by simulation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip(
    "scipy", reason="SciPy, which scikit-learn brings, is not installed"
)

from scipy.stats import binom, binomtest, t

from repzoo.measure import stats
from repzoo.measure.stats import mcnemar, median_interval, paired_difference, wilson

# R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650, Table III, method 10: cells e, f,
# g, h and the 95 % limits.
NEWCOMBE_TABLE_III = [
    ((36, 12, 2, 0), (0.0569, 0.3404)),
    ((20, 12, 2, 16), (0.0562, 0.3292)),
    ((18, 12, 2, 18), (0.0562, 0.3290)),
    ((36, 14, 0, 0), (0.1528, 0.4167)),
    ((35, 14, 0, 1), (0.1461, 0.4175)),
    ((18, 14, 0, 18), (0.1441, 0.3963)),
    ((2, 97, 1, 0), (0.8721, 0.9854)),
    ((1, 97, 1, 1), (0.8736, 0.9850)),
    ((0, 29, 1, 0), (0.6666, 0.9882)),
    ((2, 98, 0, 0), (0.9178, 0.9945)),
    ((1, 98, 0, 1), (0.9171, 0.9916)),
    ((0, 30, 0, 0), (0.8395, 1.0)),
    ((54, 0, 0, 0), (-0.0664, 0.0664)),
]
counts = st.integers(0, 400)
cells = st.tuples(counts, counts, counts, counts).filter(lambda table: sum(table) > 0)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 50_000])
def test_wilson_is_scipys(n: int) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        theirs = binomtest(successes, n).proportion_ci(method="wilson")
        ours = wilson(successes, n)
        assert (ours.value, ours.low, ours.high) == pytest.approx(
            (successes / n, theirs.low, theirs.high), abs=1e-12
        )


@pytest.mark.parametrize(("successes", "n"), [(-1, 4), (5, 4), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson(successes, n)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(
        expected, rel=1e-9, abs=1e-290
    )  # SciPy's own sums end in 0 near 1e-299


@pytest.mark.parametrize(("table", "limits"), NEWCOMBE_TABLE_III)
def test_paired_difference_reproduces_newcombes_table(
    table: tuple[int, int, int, int], limits: tuple[float, float]
) -> None:
    difference = paired_difference(*table)
    assert (difference.low, difference.high) == pytest.approx(
        limits, abs=1.5e-4
    )  # the table has four decimals
    assert difference.value == (table[1] - table[2]) / sum(table)


@given(cells)
def test_swapping_the_models_negates_the_difference(
    table: tuple[int, int, int, int],
) -> None:
    difference = paired_difference(*table)
    other = paired_difference(table[0], table[2], table[1], table[3])
    assert (difference.value, difference.low, difference.high) == pytest.approx(
        (-other.value, -other.high, -other.low), abs=1e-12
    )
    assert -1 <= difference.low <= difference.value <= difference.high <= 1


@given(cells.filter(lambda table: sum(table) >= 20))
def test_four_times_the_images_narrow_the_interval(
    table: tuple[int, int, int, int],
) -> None:
    few, many = (
        paired_difference(*table),
        paired_difference(*(4 * count for count in table)),
    )
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(
    "table",
    [
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
        (500, 0, 0, 0),
        (0, 0, 0, 500),
    ],
)
def test_degenerate_tables_keep_a_width(table: tuple[int, int, int, int]) -> None:
    """No disagreement among few images proves little: the interval must not collapse to a point."""
    difference = paired_difference(*table)
    assert difference.high - difference.low > 1 / (2 * sum(table))


@pytest.mark.parametrize("n", [60, 400])
@pytest.mark.parametrize(
    "probabilities",
    [(0.7, 0.05, 0.05, 0.2), (0.9, 0.02, 0.01, 0.07), (0.5, 0.15, 0.05, 0.3)],
)
def test_paired_difference_covers_the_truth(
    n: int, probabilities: tuple[float, ...]
) -> None:
    truth = probabilities[1] - probabilities[2]
    drawn = np.random.default_rng(n).multinomial(n, probabilities, 3000)
    intervals = [paired_difference(*(int(count) for count in row)) for row in drawn]
    covered = np.mean(
        [interval.low <= truth <= interval.high for interval in intervals]
    )
    assert 0.94 <= covered <= (0.99 if n == 400 else 1)  # few images: conservative


@pytest.mark.parametrize("n", [6, 7, 12, 30, 101])
def test_median_interval_covers_the_median(n: int) -> None:
    drawn = np.random.default_rng(n).lognormal(
        size=(4000, n)
    )  # median 1, skewed as latencies are
    intervals = [median_interval(list(row)) for row in drawn]
    assert (
        np.mean([interval.low <= 1 <= interval.high for interval in intervals]) >= 0.94
    )
    assert all(
        interval.low <= interval.value <= interval.high for interval in intervals
    )


@pytest.mark.parametrize("n", range(1, 6))
def test_few_samples_give_their_whole_range(n: int) -> None:
    samples = [float(value) for value in range(n, 0, -1)]
    interval = median_interval(samples)
    assert (interval.value, interval.low, interval.high) == ((n + 1) / 2, 1.0, float(n))


def test_median_interval_tightens_and_refuses_nothing() -> None:
    drawn = np.random.default_rng(0).normal(size=400)
    few, many = median_interval(list(drawn[:20])), median_interval(list(drawn))
    assert many.high - many.low < few.high - few.low
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (24, 0.5), (1000, 0.01), (3000, 0.99)])
def test_binomial_cdf_is_scipys(n: int, p: float) -> None:
    np.testing.assert_allclose(
        stats.binomial_cdf(n, p), binom.cdf(np.arange(n + 1), n, p), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("freedom", [5, 7, 23, 100])
def test_student_is_scipys(freedom: int) -> None:
    assert stats.student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=0.01)


# LoadGen 6.0.17 run on this many queries: how many of the slowest it says that it discards for
# its 90th and 99th percentile.
LOADGEN_P90 = {64: 0, 100: 2, 500: 33, 661: 47, 1000: 77, 2400: 204, 10_000: 929}
LOADGEN_P99 = {662: 0, 1000: 1, 2400: 11, 10_000: 76, 50_000: 447}


@pytest.mark.parametrize(("q", "discarded"), [(0.90, LOADGEN_P90), (0.99, LOADGEN_P99)])
def test_overlatency_is_loadgens(q: float, discarded: dict[int, int]) -> None:
    assert {n: stats.overlatency_allowed(n, q) - 1 for n in discarded} == discarded
    assert stats.queries_needed(q) == min(
        discarded
    )  # with one less, LoadGen says that it needs this many
    assert stats.overlatency_allowed(min(discarded) - 1, q) == 0


@pytest.mark.parametrize("between", [0.0, 0.1])
@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_quantile_intervals_cover_the_truth(q: float, between: float) -> None:
    """Rounds whose speeds differ by 10 % hold far less than 24 * 60 independent samples: the
    interval must know.
    """
    random = np.random.default_rng(5)
    truth = math.exp(
        math.hypot(0.2, between) * float(np.quantile(random.normal(size=2_000_000), q))
    )
    drawn = [
        np.exp(
            0.2 * random.normal(size=(24, 60)) + between * random.normal(size=(24, 1))
        )
        for _ in range(500)
    ]
    intervals = [stats.quantile_interval(list(rounds), q) for rounds in drawn]
    assert (
        np.mean([interval.low <= truth <= interval.high for interval in intervals])
        >= 0.93
    )
    assert np.mean([math.isinf(interval.high) for interval in intervals]) <= 0.01 + (
        q == 0.99
    )


@pytest.mark.parametrize(("n", "bounded"), [(367, False), (368, True)])
def test_a_high_quantile_of_few_samples_has_no_upper_bound(
    n: int, bounded: bool
) -> None:
    """The largest of n exceeds the 0.99 quantile with 97.5 % only if 0.99 ** n <= 0.025: 368
    samples.
    """
    interval = stats.quantile_interval([np.arange(1.0, n + 1)], 0.99)
    assert math.isfinite(interval.high) is bounded
    assert interval.value == math.ceil(0.99 * n)


def test_a_quantile_is_a_sample_and_never_lies_between_two_modes() -> None:
    assert stats.quantile_interval([np.array([1.0, 9.0])] * 10, 0.5).value == 1.0
    assert stats.quantile_interval([np.full(40, 7.0)] * 10, 0.99) == stats.Interval(
        7.0, 7.0, 7.0
    )
    with pytest.raises(ValueError, match="no samples"):
        stats.quantile_interval([np.array([])], 0.5)


@pytest.mark.parametrize("slow", [3, 6, 12])
def test_a_trend_is_seen_wherever_it_ends(slow: int) -> None:
    random = np.random.default_rng(slow)
    values = np.concatenate(
        [random.normal(12, 0.1, slow), random.normal(10, 0.1, 24 - slow)]
    )
    assert stats.trend(list(values)) == pytest.approx(-1 / 6, abs=0.01)
    assert stats.trend(list(np.sort(values))) > 0


def test_chance_is_seldom_a_trend() -> None:
    random = np.random.default_rng(9)
    seen = [stats.trend(list(row)) != 0 for row in random.lognormal(size=(2000, 24))]
    assert np.mean(seen) <= 0.05
    assert stats.trend([5.0] * 24) == stats.trend([1.0]) == 0


@pytest.mark.parametrize(
    ("discordant", "difference"),
    [(0.05, 0.02), (0.02, 0.015), (0.3, 0.05), (0.0, 0.02)],
)
def test_as_many_pairs_as_needed_have_the_power_that_is_promised(
    discordant: float, difference: float
) -> None:
    n = stats.pairs_needed(discordant, difference)
    share = max(discordant, difference)
    generator = np.random.default_rng(0)
    counts = generator.multinomial(
        n, [(share + difference) / 2, (share - difference) / 2, 1 - share], size=2000
    )
    wald = (counts[:, 0] - counts[:, 1]) ** 2 / np.maximum(
        1, counts[:, 0] + counts[:, 1]
    )
    power = float(np.mean(wald > stats.Z95**2))
    assert (
        0.75 < power < 0.85 or difference == share
    )  # all discordant pairs on one side: the normal approximation is rough


def test_pairs_needed_follow_the_formula_and_known_figures() -> None:
    beta = NormalDist().inv_cdf(stats.POWER)
    assert beta == pytest.approx(stats.Z_POWER)
    n = ((stats.Z95 * math.sqrt(0.5) + beta * math.sqrt(0.5 - 0.16)) / 0.4) ** 2
    assert (
        stats.pairs_needed(0.5, 0.4) == math.ceil(n) == 23
    )  # p10 = 0.05, p01 = 0.45: Connor's function in R gives 22.01
    assert (
        stats.pairs_needed(0.02, 0.003) > 17_000
    )  # 0.3 points at 2 % of changed answers: not from 400 images
    assert stats.pairs_needed(0.5, -0.4) == stats.pairs_needed(0.5, 0.4)
    for bad in ((0.1, 0.0), (1.1, 0.1), (0.1, 2.0)):
        with pytest.raises(ValueError, match="need 0 <= discordant"):
            stats.pairs_needed(*bad)


@given(st.floats(0, 1), st.integers(10, 10**6))
def test_the_visible_difference_is_the_inverse_of_the_pairs_needed(
    discordant: float, n: int
) -> None:
    difference = stats.visible_difference(discordant, n)
    assert stats.pairs_needed(discordant, difference) <= n or difference == 1
    assert stats.pairs_needed(discordant, difference * 0.99) >= n
