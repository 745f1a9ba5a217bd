"""Histograms whose range grows: nothing is lost, and the order in which values come does not matter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.quant.observe import BINS, Histogram, observe

Values = npt.NDArray[np.float32]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
chunks = st.lists(arrays.arrays(np.float32, st.integers(1, 20), elements=finite), min_size=1, max_size=6)


def histogram(parts: list[Values]) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


def inside(parts: list[Values]) -> npt.NDArray[np.float64]:
    """All values; those on the upper end of the range they arrived in, where NumPy's last bin is closed, moved a hair inside."""
    edge, moved = 0.0, []
    for part in parts:
        values = part.astype(np.float64)
        reach = float(np.abs(values).max())
        edge = edge or reach
        while edge < reach:
            edge *= 2
        moved.append(np.where(values == edge, values * (1 - 1e-12), values) if edge else values)
    return np.concatenate(moved)


@given(chunks)
def test_every_value_is_counted_once_whatever_comes_first(parts: list[Values]) -> None:
    whole, made = np.concatenate(parts), histogram(parts)
    assert made.total == whole.size == made.counts.sum()
    assert (made.low, made.high) == (whole.min(), whole.max())
    assert float(np.abs(whole).max()) <= made.edge
    if made.edge > 0:
        expected, _ = np.histogram(inside(parts), BINS, (-made.edge, made.edge))
        assert (made.counts == expected).all()


@given(chunks)
def test_the_widened_range_is_less_than_twice_what_is_needed(parts: list[Values]) -> None:
    made, reach = histogram(parts), max(float(np.abs(part).max()) for part in parts)
    assert made.edge == 0 == reach or reach <= made.edge
    first = next((float(np.abs(part).max()) for part in parts if np.any(part)), 0.0)
    assert made.edge in (0, first) or made.edge < 2 * reach


def test_zeros_alone_and_zeros_first() -> None:
    made = histogram([np.zeros(7, np.float32)])
    assert (made.edge, made.low, made.high, made.counts.sum()) == (0, 0, 0, 7)
    made.add(np.array([2, -1], np.float32))
    assert made.counts[BINS // 2] == 7
    assert made.counts.sum() == made.total == 9
    assert made.edge == 2


@pytest.mark.parametrize("extremes", [(1e-30, 1e30), (1e30, 1e-30), (1e-44, 3.4e38), (-3.4e38, 3.4e38)])
def test_numbers_of_any_size(extremes: tuple[float, float]) -> None:
    parts = [np.full(3, value, np.float32) for value in extremes]
    made = histogram(parts)
    assert made.counts.sum() == 6
    assert (made.low, made.high) == tuple(sorted(float(np.float32(value)) for value in extremes))
    assert np.isfinite(made.centres).all()


def test_centres_are_the_middles_of_numpys_bins() -> None:
    made = histogram([np.array([-1.5, 3], np.float32)])
    edges = np.histogram_bin_edges([], BINS, (-3, 3))
    np.testing.assert_allclose(made.centres, (edges[1:] + edges[:-1]) / 2, atol=1e-12)


MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 1, 2, 2] data) => (float[N, 4] output)
    <float minus = {-2}> { scaled = Mul (data, minus) live = Relu (scaled) output = Flatten (live) }""")


def batches() -> Iterator[Values]:
    for value in (1.0, -3.0, 2.0):
        yield np.full((2, 1, 2, 2), value, np.float32)


def test_observe_sees_the_input_and_the_inner_tensors_of_every_batch() -> None:
    seen = observe(MODEL, ["data", "live", "scaled"], batches(), engine("onnxruntime"), 1)
    assert {name: (one.low, one.high, one.total) for name, one in seen.items()} == {
        "data": (-3.0, 2.0, 24),
        "live": (0.0, 6.0, 24),
        "scaled": (-4.0, 6.0, 24),
    }
    assert [item.name for item in MODEL.graph.output] == ["output"]  # the model itself is left alone


def test_observe_names_a_tensor_that_is_not_finite() -> None:
    with pytest.raises(InputError, match="'scaled' is not finite"):
        observe(MODEL, ["scaled"], [np.full((1, 1, 2, 2), 3e38, np.float32)], engine("onnxruntime"), 1)


def test_observe_refuses_no_images() -> None:
    with pytest.raises(InputError, match="no calibration image"):
        observe(MODEL, ["scaled"], [], engine("onnxruntime"), 1)
