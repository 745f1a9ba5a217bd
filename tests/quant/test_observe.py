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
from repzoo.quant.observe import BINS, KEPT_VALUES, Histogram, observe

Values = npt.NDArray[np.float32]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
chunks = st.lists(arrays.arrays(np.float32, st.integers(1, 20), elements=finite), min_size=1, max_size=6)


def histogram(parts: list[Values]) -> Histogram:
    """Of one channel."""
    made = Histogram(1)
    for part in parts:
        made.add(part.reshape(1, -1), part.min(keepdims=True).reshape(1), part.max(keepdims=True).reshape(1))
    return made


@given(chunks)
def test_every_value_is_counted_once_whatever_comes_first(parts: list[Values]) -> None:
    whole, made = np.concatenate(parts), histogram(parts)
    assert made.total == whole.size
    assert made.zeros[0] == np.sum(whole == 0)
    assert (made.low[0], made.high[0]) == (whole.min(), whole.max())
    together = histogram([whole])
    assert made.edge == together.edge
    assert (made.counts == together.counts).all()


@given(chunks)
def test_the_range_is_less_than_twice_what_is_needed(parts: list[Values]) -> None:
    made, reach = histogram(parts), max(float(np.abs(part).max()) for part in parts)
    assert made.edge[0] == 0 == reach or reach <= made.edge[0] < 2 * reach


def test_zeros_alone_and_zeros_first() -> None:
    made = histogram([np.zeros(7, np.float32)])
    assert (made.edge[0], made.low[0], made.high[0], made.zeros[0], made.counts.sum()) == (0, 0, 0, 7, 0)


@given(chunks, st.floats(0.01, 100))
def test_dividing_afterwards_is_as_dividing_before(parts: list[Values], factor: float) -> None:
    made = histogram(parts).over(np.array([factor]))
    whole = np.concatenate(parts).astype(np.float64) / factor
    assert made.low[0] == pytest.approx(whole.min(), rel=1e-6)
    assert made.high[0] == pytest.approx(whole.max(), rel=1e-6)
    assert (made.counts == histogram(parts).counts).all()
    assert made.mean[0] == pytest.approx(whole.mean(), rel=1e-5, abs=1e-6 * np.abs(whole).max())


@pytest.mark.parametrize("extremes", [(1e-30, 1e30), (1e30, 1e-30), (1e-44, 3.4e38), (-3.4e38, 3.4e38)])
def test_numbers_of_any_size(extremes: tuple[float, float]) -> None:
    parts = [np.full(3, value, np.float32) for value in extremes]
    made = histogram(parts)
    assert made.total == 6
    assert (made.low[0], made.high[0]) == tuple(sorted(float(np.float32(value)) for value in extremes))
    assert np.isfinite(made.centres).all()


def test_centres_are_the_middles_of_numpys_bins() -> None:
    made = histogram([np.array([-1.5, 3], np.float32)])
    edges = np.histogram_bin_edges([], BINS, (-4, 4))
    np.testing.assert_allclose(made.centres[0], (edges[1:] + edges[:-1]) / 2, atol=1e-12)


MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 1, 2, 2] data) => (float[N, 4] output)
    <float minus = {-2}> { scaled = Mul (data, minus) live = Relu (scaled) output = Flatten (live) }""")


def batches() -> Iterator[Values]:
    for value in (1.0, -3.0, 2.0):
        yield np.full((2, 1, 2, 2), value, np.float32)


def test_observe_sees_the_input_and_the_inner_tensors_of_every_batch() -> None:
    seen = observe(MODEL, ["data", "live", "scaled"], [], batches(), engine("onnxruntime"), 1, 6).histograms
    assert {name: (one.low[0], one.high[0], one.total) for name, one in seen.items()} == {
        "data": (-3.0, 2.0, 24),
        "live": (0.0, 6.0, 24),
        "scaled": (-4.0, 6.0, 24),
    }
    assert [item.name for item in MODEL.graph.output] == ["output"]  # the model itself is left alone


def test_a_model_is_left_as_it_was_even_where_it_does_not_compile() -> None:
    """It is not copied to be probed."""
    before = MODEL.SerializeToString(deterministic=True)
    seen = observe(MODEL, ["live"], [], batches(), engine("onnxruntime"), 1, 6)
    assert MODEL.SerializeToString(deterministic=True) == before
    assert seen.margins.values.shape == (6, 4)  # all four classes alike
    assert not seen.margins.values.any()
    with pytest.raises(InputError):
        observe(MODEL, ["no such tensor"], [], batches(), engine("onnxruntime"), 1, 6)
    assert MODEL.SerializeToString(deterministic=True) == before


def test_observe_names_a_tensor_that_is_not_finite() -> None:
    with pytest.raises(InputError, match="'scaled' is not finite"):
        observe(MODEL, ["scaled"], [], [np.full((1, 1, 2, 2), 3e38, np.float32)], engine("onnxruntime"), 1, 1)


def test_observe_refuses_no_images() -> None:
    with pytest.raises(InputError, match="no calibration image"):
        observe(MODEL, ["scaled"], [], [], engine("onnxruntime"), 1, 1)


@pytest.mark.parametrize(("count", "batch"), [(8, 3), (100, 16), (1000, 16)])
def test_values_are_kept_of_all_images_alike(count: int, batch: int) -> None:
    """A graph whose tensor says which image it is of: no image gives more than its share, whatever their number."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 1, 5, 5] data) => (float[N, 1] y) {
        t = Identity (data)
        p = GlobalAveragePool (t)
        y = Flatten (p) }"""
    )
    pictures = np.broadcast_to(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, 1, 5, 5)).copy()
    batches = (pictures[at : at + batch] for at in range(0, count, batch))
    kept = observe(model, ["t"], [], batches, engine("onnxruntime"), 1, count).histograms["t"].kept
    numbers, times = np.unique(kept, return_counts=True)
    assert kept.shape == (1, KEPT_VALUES)
    assert len(numbers) == min(count, KEPT_VALUES)
    assert np.ptp(times) <= 1
    assert np.diff(numbers).max() <= -(-count // KEPT_VALUES)
