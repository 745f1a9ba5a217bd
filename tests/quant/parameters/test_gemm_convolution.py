"""An INT8 Gemm as a 1x1 convolution gives the same numbers, on every engine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.executed_graphs import by_openvino, operators
from tests.small_model import sets, small

from repzoo.engines import engine
from repzoo.measure.stats import Interval
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters.gemm_convolution import (
    has_large_gemm,
    layer_of,
    with_gemm_convolutions,
)
from repzoo.quant.parameters.qdq_writer import insert_qdq
from repzoo.quant.parameters.scales import uint8_parameters
from repzoo.quant.search import ladder
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.placement_race import PlacementRace
from repzoo.quant.search.verdict import Budget

SCHEME = load_scheme("openvino-cpu")


def network(gemm: str, per_channel: bool = True, int8: bool = True) -> onnx.ModelProto:
    """A convolution and a head, `gemm`, in INT8."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 8, 8] data) => (float[N, 5] output) {{
            c = Conv (data, w) p = GlobalAveragePool (c) f = Flatten (p) {gemm} }}"""
    )
    random = np.random.default_rng(0)
    shapes = {"w": (8, 4, 3, 3), "rows": (5, 8), "columns": (8, 5), "b": (5,)}
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in shapes.items():
        if name in read:
            values: npt.NDArray[np.float32] = random.standard_normal(shape, np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    space = PlacementSpace(model, SCHEME)
    nodes = [node.output[0] for node in space.layers if int8 or node.op_type == "Conv"]
    placement = space.placement("all", nodes)
    parameters = {name: uint8_parameters(-3, 4, False) for name in placement.tensors}
    return insert_qdq(model, placement, parameters, per_channel)


GEMMS = {
    "rows and a bias": "output = Gemm <transB = 1> (f, rows, b)",
    "columns and a bias": "output = Gemm (f, columns, b)",
    "no bias": "output = Gemm <transB = 1> (f, rows)",
}


@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_outputs_are_the_same(gemm: str, per_channel: bool) -> None:
    model = network(GEMMS[gemm], per_channel)
    written = with_gemm_convolutions(model)
    onnx.checker.check_model(written, full_check=True)
    assert operators(written)["Gemm"] == 0
    assert operators(written)["Conv"] == 2
    assert operators(model)["Gemm"] == 1  # the original is left alone
    images = np.random.default_rng(1).standard_normal((3, 4, 8, 8), np.float32)
    for name in ("reference", "onnxruntime"):
        before, after = (
            engine(name).open(item).run(images) for item in (model, written)
        )
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)


def test_openvino_runs_a_convolution_in_place_of_its_matrix_product() -> None:
    model = network(GEMMS["rows and a bias"])
    assert by_openvino(model)["FullyConnected"] == 1
    executed = by_openvino(with_gemm_convolutions(model))
    assert (executed["FullyConnected"], executed["Convolution"]) == (0, 2)


def test_a_gemm_in_float_stays() -> None:
    model = network(GEMMS["no bias"], int8=False)
    assert with_gemm_convolutions(model) is model


@pytest.mark.parametrize(("others", "expected"), [(0, True), (80, True), (120, False)])
def test_a_gemm_is_large_with_a_tenth_of_all_weights(
    others: int, expected: bool
) -> None:
    model = network(GEMMS["no bias"], int8=False)
    sizes = {item.name: math.prod(item.dims) for item in model.graph.initializer}
    (gemm,) = (node for node in model.graph.node if node.op_type == "Gemm")
    rest = sum(sizes.values()) - sizes[gemm.input[1]]
    more = np.zeros(max(0, sizes[gemm.input[1]] * others // 10 - rest), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(more, "more"))
    assert has_large_gemm(model) == expected


def test_profiles_know_the_convolution_by_the_name_of_its_gemm() -> None:
    written = with_gemm_convolutions(network(GEMMS["no bias"]))
    layers = [node.output[0] for node in written.graph.node if node.op_type == "Conv"]
    assert list(map(layer_of, layers)) == ["c", "output"]


def test_the_whole_quantizer_writes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    scheme = replace(SCHEME, gelu_polynomial=False, weight_bits=7)
    target = Target(engine("openvino"), scheme, placement="everything")
    monkeypatch.setattr(
        PlacementRace,
        "form_ratios",
        lambda _, __, asked: [Interval(0.9, 0.8, 0.95)] * (len(asked) - 1),
    )
    assert operators(small().model)["Gemm"] == 1
    int8, report = ladder.quantize(small(), sets(), target, Budget(max_drop=1.0))
    assert operators(int8.model)["Gemm"] == 0
    assert report.chosen.paired.same_prediction > 97
