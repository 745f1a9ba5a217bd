"""Histograms whose range grows: nothing is lost, and the order in which values come does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repzoo import verbs
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.graph.tools.pieces import Pieces, split_model
from repzoo.quant.calibration import calibrate
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.histogram import BINS, Histogram
from repzoo.quant.calibration.observers import RAW_SAMPLES, gram_width
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network import layers
from repzoo.quant.network import placement as place
from repzoo.quant.parameters import qdq_writer as qdq

Values = npt.NDArray[np.float32]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
chunks = st.lists(
    arrays.arrays(np.float32, st.integers(1, 20), elements=finite), min_size=1, max_size=6
)


def histogram(parts: list[Values]) -> Histogram:
    """Of one channel."""
    made = Histogram(1)
    for part in parts:
        made.add(
            part.reshape(1, -1),
            part.min(keepdims=True).reshape(1),
            part.max(keepdims=True).reshape(1),
        )
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
    assert (made.edge[0], made.low[0], made.high[0], made.zeros[0], made.counts.sum()) == (
        0,
        0,
        0,
        7,
        0,
    )


@given(chunks, st.floats(0.01, 100))
def test_dividing_afterwards_is_as_dividing_before(parts: list[Values], factor: float) -> None:
    made = histogram(parts).rescaled(np.array([factor]))
    whole = np.concatenate(parts).astype(np.float64) / factor
    assert made.low[0] == pytest.approx(whole.min(), rel=1e-6)
    assert made.high[0] == pytest.approx(whole.max(), rel=1e-6)
    assert (made.counts == histogram(parts).counts).all()
    assert made.mean[0] == pytest.approx(whole.mean(), rel=1e-5, abs=1e-6 * np.abs(whole).max())


@pytest.mark.parametrize(
    "extremes", [(1e-30, 1e30), (1e30, 1e-30), (1e-44, 3.4e38), (-3.4e38, 3.4e38)]
)
def test_numbers_of_any_size(extremes: tuple[float, float]) -> None:
    parts = [np.full(3, value, np.float32) for value in extremes]
    made = histogram(parts)
    assert made.total == 6
    assert (made.low[0], made.high[0]) == tuple(
        sorted(float(np.float32(value)) for value in extremes)
    )
    assert np.isfinite(made.centers).all()


def test_centers_are_the_middles_of_numpys_bins() -> None:
    made = histogram([np.array([-1.5, 3], np.float32)])
    edges = np.histogram_bin_edges([], BINS, (-4, 4))
    np.testing.assert_allclose(made.centers[0], (edges[1:] + edges[:-1]) / 2, atol=1e-12)


MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 1, 2, 2] data) => (float[N, 4] output)
    <float minus = {-2}> { scaled = Mul (data, minus) live = Relu (scaled) output = Flatten (live) }""")


def batches() -> Iterator[Values]:
    for value in (1.0, -3.0, 2.0):
        yield np.full((2, 1, 2, 2), value, np.float32)


def test_observe_sees_the_input_and_the_inner_tensors_of_every_batch() -> None:
    seen = collect_statistics(
        MODEL,
        ["data", "live", "scaled"],
        [],
        CalibrationStream(batches(), 6),
        engine("onnxruntime"),
        1,
    ).histograms
    assert {name: (one.low[0], one.high[0], one.total) for name, one in seen.items()} == {
        "data": (-3.0, 2.0, 24),
        "live": (0.0, 6.0, 24),
        "scaled": (-4.0, 6.0, 24),
    }
    assert [item.name for item in MODEL.graph.output] == [
        "output"
    ]  # the model itself is left alone


def test_a_model_is_left_as_it_was_even_where_it_does_not_compile() -> None:
    """It is not copied to be probed."""
    before = MODEL.SerializeToString(deterministic=True)
    seen = collect_statistics(
        MODEL, ["live"], [], CalibrationStream(batches(), 6), engine("onnxruntime"), 1
    )
    assert MODEL.SerializeToString(deterministic=True) == before
    assert seen.margins.values.shape == (6, 4)  # all four classes alike
    assert not seen.margins.values.any()
    with pytest.raises(InputError):
        collect_statistics(
            MODEL, ["no such tensor"], [], CalibrationStream(batches(), 6), engine("onnxruntime"), 1
        )
    assert MODEL.SerializeToString(deterministic=True) == before


def test_observe_names_a_tensor_that_is_not_finite() -> None:
    with pytest.raises(InputError, match="'scaled' is not finite"):
        collect_statistics(
            MODEL,
            ["scaled"],
            [],
            CalibrationStream([np.full((1, 1, 2, 2), 3e38, np.float32)], 1),
            engine("onnxruntime"),
            1,
        )


def test_observe_refuses_no_images() -> None:
    with pytest.raises(InputError, match="no calibration image"):
        collect_statistics(
            MODEL, ["scaled"], [], CalibrationStream([], 1), engine("onnxruntime"), 1
        )


@pytest.mark.parametrize(("count", "batch"), [(8, 3), (100, 16), (1000, 16)])
def test_values_are_kept_of_all_images_alike(count: int, batch: int) -> None:
    """A graph whose tensor says which image it is of: no image gives more than its share, whatever their number."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 1, 5, 5] data) => (float[N, 1] y) {
        t = Identity (data)
        p = GlobalAveragePool (t)
        y = Flatten (p) }"""
    )
    pictures = np.broadcast_to(
        np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, 1, 5, 5)
    ).copy()
    batches = (pictures[at : at + batch] for at in range(0, count, batch))
    kept = (
        collect_statistics(
            model, ["t"], [], CalibrationStream(batches, count), engine("onnxruntime"), 1
        )
        .histograms["t"]
        .samples
    )
    numbers, times = np.unique(kept, return_counts=True)
    assert kept.shape == (1, RAW_SAMPLES)
    assert len(numbers) == min(count, RAW_SAMPLES)
    assert np.ptp(times) <= 1
    assert np.diff(numbers).max() <= -(-count // RAW_SAMPLES)


def test_a_large_model_in_pieces_gives_the_same(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece sees all images before the next is compiled; what is counted, and at which positions, is the same."""
    model = qdq.prepare_for_qdq(verbs.load(str(model_file)).model)
    tensors = place.candidates(model)[0].tensors
    pictures = np.random.default_rng(0).normal(size=(5, 7, 3, 32, 32)).astype(np.float32)
    shown, cut = list[int](), list[int]()

    def statistics() -> Statistics:
        feed = CalibrationStream(
            list(pictures), 35, lambda _, done, total: shown.append(round(100 * done / total))
        )
        return collect_statistics(
            model, tensors, list(layers.find_layers(model).values()), feed, engine("onnxruntime"), 2
        )

    def counted(model: onnx.ModelProto, limit: int) -> Pieces:
        made = split_model(model, limit)
        cut.append(len(made))
        return made

    whole = statistics()
    assert shown == [20, 40, 60, 80, 100]
    monkeypatch.setattr(calibrate, "split_model", counted)
    monkeypatch.setattr(calibrate, "WHOLE_BYTES", 0)
    monkeypatch.setattr(calibrate, "PIECE_BYTES", 10_000)
    shown.clear()
    parts = statistics()
    assert cut[0] > 3
    assert shown == [round(100 * done / (5 * cut[0])) for done in range(1, 5 * cut[0] + 1)]
    assert parts.histograms.keys() == whole.histograms.keys()
    assert parts.moments.keys() == whole.moments.keys()
    np.testing.assert_allclose(parts.margins.values, whole.margins.values, atol=1e-4)
    for name, one in whole.histograms.items():
        other = parts.histograms[name]
        assert one.total == other.total
        for field in ("low", "high", "samples", "mean"):
            np.testing.assert_allclose(getattr(other, field), getattr(one, field), atol=1e-4)
    for name, moments in whole.moments.items():
        assert moments.rows == parts.moments[name].rows
        for gram, again in zip(moments.grams, parts.moments[name].grams, strict=True):
            np.testing.assert_allclose(again, gram, rtol=1e-3, atol=1e-3)


def test_what_is_drawn_of_a_tensor_does_not_depend_on_the_others(model_file: Path) -> None:
    model = qdq.prepare_for_qdq(verbs.load(str(model_file)).model)
    every, reads = (
        list(place.candidates(model)[0].tensors),
        list(layers.find_layers(model).values()),
    )
    pictures = np.random.default_rng(0).normal(size=(2, 8, 3, 32, 32)).astype(np.float32)

    def statistics(tensors: list[str], reads: list[layers.Layer]) -> Statistics:
        return collect_statistics(
            model, tensors, reads, CalibrationStream(list(pictures), 2000), engine("onnxruntime"), 1
        )  # a few positions of each

    together, alone = statistics(every, reads), statistics(every[-3:], reads[-3:])
    for name in every[-3:]:
        assert (alone.histograms[name].counts == together.histograms[name].counts).all()
    for one in reads[-3:]:
        np.testing.assert_allclose(
            alone.moments[one.name].grams[0],
            together.moments[one.name].grams[0],
            rtol=1e-3,
            atol=1e-3,
        )


@given(st.integers(1, 2**17))
def test_counts_survive_being_held_in_less(count: int) -> None:
    """Two bytes a bin where they are enough, four where they are not."""
    made = Histogram(1)
    made.add(np.ones((1, count), np.float32), np.ones(1, np.float32), np.ones(1, np.float32))
    made.compact()
    assert made.total == count
    assert made.mean[0] == 1
    assert made.counts.dtype == (np.uint16 if count < 2**16 else np.int32)


def test_a_gram_matrix_is_narrower_where_weights_leave_less_room() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 512] data) => (float[N, 512] y) { y = Gemm (data, w) }"""
    )
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.zeros((512, 512), np.float32), "w")
    )
    wanted = [*layers.find_layers(model).values()] * 200
    widths = [gram_width(wanted, weights) for weights in (10**7, 4 * 10**8, 10**12)]
    assert widths == [512, 256, 128]
    assert all(
        4 * 200 * 512 * width <= room
        for width, room in zip(widths, (2**28, 15 * 10**7, 2**26), strict=True)
    )
