"""Observers keep within their memory budget."""

from __future__ import annotations

import numpy as np
import onnx

from repzoo.quant.calibration.observers import HistogramObserver, gram_width
from repzoo.quant.network.layers import find_layers

GEMM = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 512] data) => (float[N, 512] y) {
    y = Gemm (data, w)
}"""


def test_gram_matrices_are_narrower_if_weights_leave_less_memory() -> None:
    model = onnx.parser.parse_model(GEMM)
    weight = onnx.numpy_helper.from_array(np.zeros((512, 512), np.float32), "w")
    model.graph.initializer.append(weight)
    layers = [*find_layers(model).values()] * 200
    widths = [
        gram_width(layers, weight_bytes) for weight_bytes in (10**7, 4 * 10**8, 10**12)
    ]
    assert widths == [512, 256, 128]
    for width, budget in zip(widths, (2**28, 15 * 10**7, 2**26), strict=True):
        assert 4 * 200 * 512 * width <= budget


def test_typical_extremes_are_the_mean_of_each_images_in_whatever_batches() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3, 5, 5)).astype(np.float32)
    values[4] *= 100  # one image of twelve
    flat = values.reshape(12, -1)
    expected = (flat.min(axis=1).mean(), flat.max(axis=1).mean())
    for size in (1, 5, 12):
        observer = HistogramObserver("x", positions=8, images=12)
        for start in range(0, 12, size):
            observer.add(values[start : start + size])
        observer.close()
        np.testing.assert_allclose(observer.histogram.typical_extremes, expected, 1e-6)
    assert expected[0] > values.min() / 5
    assert expected[1] < values.max() / 5
