"""The polynomial that stands for GELU: its error, its ends, and what an engine computes of it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.engines import engine
from repzoo.quant.parameters.gelu_polynomial import (
    BOUND,
    LARGEST_ERROR,
    has_gelu,
    with_gelu_polynomials,
)

Inputs = npt.NDArray[np.float32]


def network(attributes: str = "", function: str = "Gelu") -> onnx.ModelProto:
    """A function of each of [N, 1, 1, 2000] numbers, twice."""
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[N, 1, 1, 2000] data) => (float[N, 1, 1, 2000] output) {{
            inner = {function} {attributes} (data)
            output = {function} {attributes} (inner) }}"""
    )


def gelu(x: Inputs) -> npt.NDArray[np.float64]:
    phi = [(1 + math.erf(value / math.sqrt(2))) / 2 for value in x.ravel().tolist()]
    return np.asarray(x.astype(np.float64) * np.reshape(phi, x.shape))


def outputs(model: onnx.ModelProto, name: str, x: Inputs) -> Inputs:
    """What one of the two functions makes of `x`."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    index = [node.output[0] for node in single.graph.node].index("inner")
    del single.graph.node[index + 1 :]
    single.graph.node[index].output[0] = "output"
    return np.asarray(engine(name).open(single).run(x), np.float32)


@pytest.mark.parametrize("name", ["reference", "onnxruntime", "openvino"])
def test_it_is_within_the_error_that_is_stated(name: str) -> None:
    pytest.importorskip("openvino" if name == "openvino" else "onnx")
    model = with_gelu_polynomials(network())
    onnx.checker.check_model(model, full_check=True)
    x = np.linspace(-8, 8, 2000, dtype=np.float32).reshape(1, 1, 1, 2000)
    error = np.abs(outputs(model, name, x) - gelu(x)).max()
    assert error <= LARGEST_ERROR
    # It is no better than said either: the figure is not padded.
    assert error > 0.9 * LARGEST_ERROR


def test_beyond_the_bound_the_result_is_the_input_or_nothing() -> None:
    """Of numbers of any size: what is left of Phi there would be multiplied by them."""
    model = with_gelu_polynomials(network())
    x = np.geomspace(BOUND, 1e4, 1000, dtype=np.float32)
    x = np.concatenate([x, -x]).reshape(1, 1, 1, 2000)
    y = outputs(model, "onnxruntime", x).ravel()
    np.testing.assert_allclose(y[:1000], x.ravel()[:1000], rtol=1e-6)
    np.testing.assert_allclose(y[1000:] / x.ravel()[1000:], 0, atol=1e-6)


def test_both_functions_are_written_and_names_stay_free() -> None:
    model = network()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "gelu.c0"
    written = with_gelu_polynomials(model)
    onnx.checker.check_model(written, full_check=True)
    kinds = {node.op_type for node in written.graph.node}
    assert kinds == {"Clip", "Mul", "Add"}
    assert "gelu.c0" in {name for node in written.graph.node for name in node.output}


@pytest.mark.parametrize(
    "model",
    [network('<approximate = "tanh">'), network(function="Relu")],
    ids=["tanh", "relu"],
)
def test_other_functions_stay(model: onnx.ModelProto) -> None:
    assert not has_gelu(model)
    assert with_gelu_polynomials(model) is model
