"""The calibration pass: what it collects, what it refuses, and that pieces change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tests.quant.placements import candidates

from repzoo import verbs
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.graph.tools.pieces import Pieces, split_model
from repzoo.quant.calibration import calibrate
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.calibration.observers import RAW_SAMPLES
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network.layers import Layer, find_layers
from repzoo.quant.parameters.qdq_writer import prepare_for_qdq

Values = npt.NDArray[np.float32]

MODEL = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 1, 2, 2] data) => (float[N, 4] output)
    <float minus = {-2}> {
        scaled = Mul (data, minus)
        live = Relu (scaled)
        output = Flatten (live)
    }""")

IDENTITY = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 1, 5, 5] data) => (float[N, 1] y) {
    t = Identity (data)
    p = GlobalAveragePool (t)
    y = Flatten (p)
}"""


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Values],
    images: int,
    layers: Sequence[Layer] = (),
) -> Statistics:
    """Statistics with ONNX Runtime on one thread."""
    stream = CalibrationStream(batches, images)
    return collect_statistics(model, tensors, layers, stream, engine("onnxruntime"), 1)


def constant_batches() -> Iterator[Values]:
    """Three batches of two images each."""
    for value in (1.0, -3.0, 2.0):
        yield np.full((2, 1, 2, 2), value, np.float32)


def test_the_input_and_inner_tensors_of_every_batch_are_counted() -> None:
    histograms = collect(
        MODEL, ["data", "live", "scaled"], constant_batches(), 6
    ).histograms
    expected = {"data": (-3.0, 2.0), "live": (0.0, 6.0), "scaled": (-4.0, 6.0)}
    assert histograms.keys() == expected.keys()
    for name, (low, high) in expected.items():
        assert (histograms[name].low[0], histograms[name].high[0]) == (low, high)
        assert histograms[name].total == 24


def test_the_model_is_unchanged_even_if_it_does_not_compile() -> None:
    """Its outputs are replaced in place during compilation, to save a copy of the weights."""
    before = MODEL.SerializeToString(deterministic=True)
    margins = collect(MODEL, ["live"], constant_batches(), 6).margins
    assert MODEL.SerializeToString(deterministic=True) == before
    assert margins.values.shape == (6, 4)
    assert not margins.values.any()  # the logits of all four classes are equal
    with pytest.raises(InputError):
        collect(MODEL, ["no such tensor"], constant_batches(), 6)
    assert MODEL.SerializeToString(deterministic=True) == before


def test_a_tensor_that_is_not_finite_is_named() -> None:
    with pytest.raises(InputError, match="'scaled' is not finite"):
        collect(MODEL, ["scaled"], [np.full((1, 1, 2, 2), 3e38, np.float32)], 1)


def test_an_empty_set_of_images_is_refused() -> None:
    with pytest.raises(InputError, match="no calibration image"):
        collect(MODEL, ["scaled"], [], 1)


@pytest.mark.parametrize(("images", "batch"), [(8, 3), (100, 16), (1000, 16)])
def test_every_image_contributes_an_equal_share_of_raw_samples(
    images: int, batch: int
) -> None:
    """The value of each pixel is the number of its image."""
    model = onnx.parser.parse_model(IDENTITY)
    numbers = np.arange(images, dtype=np.float32).reshape(-1, 1, 1, 1)
    inputs = np.broadcast_to(numbers, (images, 1, 5, 5)).copy()
    batches = (inputs[start : start + batch] for start in range(0, images, batch))
    samples = collect(model, ["t"], batches, images).histograms["t"].samples
    sampled_images, counts = np.unique(samples, return_counts=True)
    assert samples.shape == (1, RAW_SAMPLES)
    assert len(sampled_images) == min(images, RAW_SAMPLES)
    assert np.ptp(counts) <= 1
    assert np.diff(sampled_images).max() <= -(-images // RAW_SAMPLES)


def assert_histograms_close(first: Histogram, second: Histogram) -> None:
    assert first.total == second.total
    for field in ("low", "high", "samples", "mean"):
        np.testing.assert_allclose(
            getattr(second, field), getattr(first, field), atol=1e-4
        )


def test_a_large_model_in_pieces_gives_the_same_statistics(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images pass one piece before the next is compiled; sampled positions are the same."""
    model = prepare_for_qdq(verbs.load(str(model_file)).model)
    tensors = candidates(model)[0].tensors
    layers = list(find_layers(model).values())
    inputs = np.random.default_rng(0).normal(size=(5, 7, 3, 32, 32)).astype(np.float32)
    percentages = list[int]()
    piece_counts = list[int]()

    def statistics() -> Statistics:
        stream = CalibrationStream(
            list(inputs),
            35,
            lambda _, done, total: percentages.append(round(100 * done / total)),
        )
        return collect_statistics(
            model, tensors, layers, stream, engine("onnxruntime"), 2
        )

    def counting_split(model: onnx.ModelProto, limit: int) -> Pieces:
        pieces = split_model(model, limit)
        piece_counts.append(len(pieces))
        return pieces

    whole = statistics()
    assert percentages == [0, 20, 40, 60, 80, 100]
    monkeypatch.setattr(calibrate, "split_model", counting_split)
    monkeypatch.setattr(calibrate, "WHOLE_BYTES", 0)
    monkeypatch.setattr(calibrate, "PIECE_BYTES", 10_000)
    percentages.clear()
    in_pieces = statistics()
    steps = 5 * piece_counts[0]
    assert piece_counts[0] > 3
    # each piece begins where the one before ended
    assert percentages == sorted(percentages)
    assert set(percentages) == {round(100 * step / steps) for step in range(steps + 1)}

    np.testing.assert_allclose(
        in_pieces.margins.values, whole.margins.values, atol=1e-4
    )
    assert in_pieces.histograms.keys() == whole.histograms.keys()
    for name, histogram in whole.histograms.items():
        assert_histograms_close(histogram, in_pieces.histograms[name])
    assert in_pieces.moments.keys() == whole.moments.keys()
    for name, moments in whole.moments.items():
        assert moments.rows == in_pieces.moments[name].rows
        for gram, other in zip(
            moments.grams, in_pieces.moments[name].grams, strict=True
        ):
            np.testing.assert_allclose(other, gram, rtol=1e-3, atol=1e-3)


def test_sampled_positions_do_not_depend_on_other_tensors(model_file: Path) -> None:
    model = prepare_for_qdq(verbs.load(str(model_file)).model)
    tensors = list(candidates(model)[0].tensors)
    layers = list(find_layers(model).values())
    inputs = np.random.default_rng(0).normal(size=(2, 8, 3, 32, 32)).astype(np.float32)
    images = 2000  # so many that only a few positions of each are sampled
    every = collect(model, tensors, list(inputs), images, layers)
    some = collect(model, tensors[-3:], list(inputs), images, layers[-3:])
    for name in tensors[-3:]:
        np.testing.assert_array_equal(
            some.histograms[name].counts, every.histograms[name].counts
        )
    for layer in layers[-3:]:
        expected = every.moments[layer.name].grams[0]
        gram = some.moments[layer.name].grams[0]
        np.testing.assert_allclose(gram, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fixed", [1, 2])
def test_a_file_with_a_fixed_batch_gives_the_statistics_of_an_open_one(
    fixed: int,
) -> None:
    """Observers see several batches of the file at once, the last of which may be short."""
    closed = onnx.ModelProto()
    closed.CopyFrom(MODEL)
    for value in (*closed.graph.input, *closed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = fixed
    images = np.random.default_rng(0).standard_normal((7, 1, 2, 2)).astype(np.float32)
    first, second = (
        collect(model, ["data", "live"], iter([images[:5], images[5:]]), 7)
        for model in (MODEL, closed)
    )
    assert first.images == second.images == 7
    for name, histogram in first.histograms.items():
        other = second.histograms[name]
        np.testing.assert_array_equal(histogram.counts, other.counts)
        np.testing.assert_array_equal(histogram.samples, other.samples)
        np.testing.assert_array_equal(histogram.low, other.low)


@pytest.mark.parametrize(
    ("fixed", "limit", "expected"),
    [
        (0, 32 * 5, 5),
        (1, 32 * 5, 5),
        (2, 32 * 5, 4),
        (3, 1, 3),
        (0, 1, 1),
        (1, 1e9, 16),
    ],
)
def test_a_batch_is_as_many_of_the_file_as_memory_allows(
    fixed: int, limit: int, expected: int
) -> None:
    """An image of MODEL has 32 bytes in `scaled` and `live`."""
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    if fixed:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = fixed
    assert calibrate.batch_size(model, ["scaled", "live"], limit) == expected
