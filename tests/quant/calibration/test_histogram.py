"""Histograms whose range grows: counts do not depend on batches, their order, or magnitudes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repzoo.quant.calibration.histogram import BINS, HALF, Histogram

Values = npt.NDArray[np.float32]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# values at and next to powers of two, where edges and bin borders lie
exponents = st.integers(-149, 127)
directions = st.sampled_from([-np.inf, 0.0, np.inf])
signs = st.sampled_from([-1.0, 1.0])


def near_power_of_two(exponent: int, direction: float, sign: float) -> float:
    power = np.float32(2.0**exponent)
    if direction:
        power = np.nextafter(power, np.float32(direction))
    return float(sign * np.clip(power, -3.4e38, 3.4e38))


border_values = st.builds(near_power_of_two, exponents, directions, signs)
batches = st.lists(
    arrays.arrays(
        np.float32, st.integers(1, 20), elements=st.one_of(finite, border_values)
    ),
    min_size=1,
    max_size=6,
)


def histogram_of(parts: Sequence[Values]) -> Histogram:
    """The histogram of one channel, counted part by part."""
    histogram = Histogram(1)
    for part in parts:
        histogram.add(
            part.reshape(1, -1), part.min(keepdims=True), part.max(keepdims=True)
        )
    return histogram


def parts_of(*values: float) -> list[Values]:
    """One part for each value."""
    return [np.array([value], np.float32) for value in values]


def assert_same_counts(first: Histogram, second: Histogram) -> None:
    np.testing.assert_array_equal(first.edge, second.edge)
    np.testing.assert_array_equal(first.low, second.low)
    np.testing.assert_array_equal(first.high, second.high)
    np.testing.assert_array_equal(first.zeros, second.zeros)
    np.testing.assert_array_equal(first.counts, second.counts)


@given(batches, st.integers(0, 1000))
@example(parts_of(33554432.0, 33554436.0), 0)
@example(parts_of(33554436.0, 33554432.0), 0)
@example(parts_of(1.0, 1.0, 1.5, 100.0), 0)
@example(parts_of(-1.0, -1.5, -2.0, 2.0, 2.5), 0)
@example(parts_of(2.0**-149, 2.0**127, -(2.0**127), 3.4e38), 0)
@example(parts_of(2.0**-120, 2.0**-119, 1.5 * 2.0**-119), 0)
def test_counts_do_not_depend_on_batches_or_their_order(
    parts: list[Values], seed: int
) -> None:
    whole = np.concatenate(parts)
    expected = histogram_of([whole])
    assert expected.total == whole.size
    assert expected.zeros[0] == np.sum(whole == 0)
    assert expected.low[0] == whole.min()
    assert expected.high[0] == whole.max()
    assert_same_counts(histogram_of(parts), expected)
    assert_same_counts(histogram_of(parts[::-1]), expected)
    random = np.random.default_rng(seed)
    shuffled = random.permutation(whole)
    cuts = np.sort(random.integers(1, len(whole) + 1, size=2))
    other_parts = [part for part in np.split(shuffled, cuts) if len(part)]
    assert_same_counts(histogram_of(other_parts), expected)


@given(batches)
def test_every_value_is_in_the_bin_of_its_exact_quotient(parts: list[Values]) -> None:
    """Against exact rational arithmetic."""
    histogram = histogram_of(parts)
    expected = np.zeros(BINS, int)
    for value in np.concatenate(parts).tolist():
        if value:
            numerator, denominator = value.as_integer_ratio()
            edge_numerator, edge_denominator = float(
                histogram.edge[0]
            ).as_integer_ratio()
            quotient = (
                numerator * HALF * edge_denominator // (denominator * edge_numerator)
            )
            expected[min(quotient, HALF - 1) + HALF] += 1
    np.testing.assert_array_equal(histogram.counts[0], expected)


def test_channels_of_different_magnitude_are_counted_independently() -> None:
    channels = np.array(
        [[1.0, 1.5], [2.0**100, 1.5 * 2.0**100], [2.0**-130, 2.0**-129]], np.float32
    )
    histogram = Histogram(3)
    for column in (channels[:, :1], channels[:, 1:]):
        histogram.add(column, column.min(1), column.max(1))
    for channel, values in enumerate(channels):
        expected = histogram_of([values])
        np.testing.assert_array_equal(histogram.counts[channel], expected.counts[0])


@given(batches)
def test_the_edge_is_less_than_twice_the_largest_magnitude(parts: list[Values]) -> None:
    edge = histogram_of(parts).edge[0]
    largest = max(float(np.abs(part).max()) for part in parts)
    assert edge == 0 == largest or largest <= edge < 2 * largest


def test_zeros_are_counted_apart() -> None:
    histogram = histogram_of([np.zeros(7, np.float32)])
    assert histogram.zeros[0] == 7
    assert histogram.counts.sum() == 0
    assert (histogram.edge[0], histogram.low[0], histogram.high[0]) == (0, 0, 0)


@given(batches, st.floats(0.01, 100))
def test_rescaling_equals_counting_divided_values(
    parts: list[Values], factor: float
) -> None:
    histogram = histogram_of(parts).rescaled(np.array([factor]))
    divided = np.concatenate(parts).astype(np.float64) / factor
    tolerance = 1e-6 * np.abs(divided).max()
    assert histogram.low[0] == pytest.approx(divided.min(), rel=1e-6)
    assert histogram.high[0] == pytest.approx(divided.max(), rel=1e-6)
    assert (histogram.counts == histogram_of(parts).counts).all()
    assert histogram.mean[0] == pytest.approx(divided.mean(), rel=1e-5, abs=tolerance)


@pytest.mark.parametrize(
    "extremes", [(1e-30, 1e30), (1e30, 1e-30), (1e-44, 3.4e38), (-3.4e38, 3.4e38)]
)
def test_values_of_any_magnitude_are_counted(extremes: tuple[float, float]) -> None:
    histogram = histogram_of([np.full(3, value, np.float32) for value in extremes])
    low, high = sorted(float(np.float32(value)) for value in extremes)
    assert histogram.total == 6
    assert (histogram.low[0], histogram.high[0]) == (low, high)
    assert np.isfinite(histogram.centers).all()


def test_centers_are_the_midpoints_of_numpy_bins() -> None:
    histogram = histogram_of([np.array([-1.5, 3], np.float32)])
    edges = np.histogram_bin_edges([], BINS, (-4, 4))
    np.testing.assert_allclose(
        histogram.centers[0], (edges[1:] + edges[:-1]) / 2, atol=1e-12
    )


@given(st.integers(1, 2**17))
def test_compact_keeps_counts_and_uses_two_bytes_where_they_suffice(count: int) -> None:
    histogram = histogram_of([np.ones(count, np.float32)])
    histogram.compact()
    assert histogram.total == count
    assert histogram.mean[0] == 1
    assert histogram.counts.dtype == (np.uint16 if count < 2**16 else np.int32)
