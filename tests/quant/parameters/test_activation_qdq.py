"""Q/DQ pairs on activations alone, and the scales in a file's history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.quant.parameters.activation_qdq import insert_activation_qdq
from repzoo.quant.parameters.scales import ActivationParameters
from repzoo.quant.parameters.stored_activations import as_document, read_activations

MODEL = """<ir_version: 7, opset_import: ["" : 11]>
    g (float[1, 4] data) => (float[1, 4] output)
    <float[4] two = {2, 2, 2, 2}> {
    a = Mul (data, two)
    b = Relu (a)
    output = Add (b, a) }"""
VALUES = np.array([[-100.0, 0.06, 0.24, 100.0]], np.float32)


def run(model: onnx.ModelProto) -> Any:
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"data": VALUES})[0]


def rounded(values: Any, scale: float) -> Any:
    return np.clip(np.rint(values / scale), -128, 127) * scale


def test_every_reader_of_a_quantized_tensor_sees_it_rounded() -> None:
    model = onnx.parser.parse_model(MODEL)
    before = model.SerializeToString()
    scales = {"data": 0.1, "a": 0.25, "nowhere": 1.0}
    result = insert_activation_qdq(model, scales)
    assert model.SerializeToString() == before
    assert result.opset_import[0].version == 11
    a = rounded(2 * rounded(VALUES, 0.1), 0.25)
    np.testing.assert_allclose(run(result), np.maximum(a, 0) + a, rtol=1e-6)
    kinds = [node.op_type for node in result.graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 2


def test_names_that_are_in_use_are_not_taken() -> None:
    text = MODEL.replace("a =", "data_quantized =").replace("(a)", "(data_quantized)")
    model = onnx.parser.parse_model(text.replace("(b, a)", "(b, data_quantized)"))
    run(insert_activation_qdq(model, {"data": 0.1}))


def artifact(ranges: Any) -> Artifact:
    model = onnx.parser.parse_model(MODEL)
    return Artifact(model, "tiny", extras={"activations": ranges})


def test_scales_survive_the_file() -> None:
    random = np.random.default_rng(0)
    activations = {"none": ActivationParameters(1.0, 0)}
    for zero_point in range(0, 256, 5):
        scale = float(np.float32(np.exp(random.normal(0, 9))))
        activations[str(zero_point)] = ActivationParameters(scale, zero_point)
    stored = artifact(as_document(activations))
    again = Artifact.from_bytes(stored.to_bytes(), "again")
    assert read_activations(again) == activations
    assert read_activations(replace(again, extras={})) == {}


NO_RANGES: list[Any] = [1, ["1", 2], [float("nan"), 0], [1], [0, 0], [1, 2], [-2, -1]]


@pytest.mark.parametrize("damaged", [[1], *({"data": item} for item in NO_RANGES)])
def test_damaged_ranges_are_refused(damaged: Any) -> None:
    with pytest.raises(InputError, match="damaged; run repzoo harden again"):
        read_activations(artifact(damaged))
