"""Observers keep within their memory budget."""

from __future__ import annotations

import numpy as np
import onnx

from repzoo.quant.calibration.observers import gram_width
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
