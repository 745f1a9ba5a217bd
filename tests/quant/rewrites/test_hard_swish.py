"""HardSwish and HardSigmoid in INT8: a sum of integers that its pair clips, and a product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.executed_graphs import by_onnxruntime, operators
from tests.small_model import sets, small

from repzoo.artifact import Artifact
from repzoo.engines import engine
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters.qdq_writer import insert_qdq
from repzoo.quant.parameters.scales import ActivationParameters, uint8_parameters
from repzoo.quant.rewrites.hard_swish import with_gates
from repzoo.quant.search import ladder, shared_calibration
from repzoo.quant.search.ladder import Target
from repzoo.quant.search.verdict import Budget

HARD_SWISH = "u = HardSwish (t)"
GATE = "g = GlobalAveragePool (t) s = HardSigmoid (g) u = Mul (t, s)"
SCHEME = load_scheme("ort-cpu")


def network(body: str, output: str = "output = GlobalAveragePool (c)") -> Any:
    """Two convolutions with the function `body` of t between them, which computes u."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 8, 8] data) => (float[N, 5, 1, 1] output) {{
            t = Conv (data, w) {body} c = Conv (u, v) {output} }}"""
    )
    random = np.random.default_rng(0)
    for name, shape in {"w": (8, 4, 3, 3), "v": (5, 8, 1, 1)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def quantized(model: onnx.ModelProto, gate: tuple[float, float] = (0, 1)) -> Any:
    """`model` with everything in INT8; `gate` is the range of what a HardSigmoid computes."""
    form = shared_calibration.form_for(model, SCHEME)
    placement = PlacementSpace(form, SCHEME).starting_placements()[0]
    gates = {
        node.output[0] for node in form.graph.node if node.op_type == "HardSigmoid"
    }
    parameters: dict[str, ActivationParameters] = {}
    for name in placement.tensors:
        bounds = gate if name in gates else (-6, 6)
        parameters[name] = uint8_parameters(bounds[0], bounds[1], False)
    return insert_qdq(form, placement, parameters, SCHEME.per_channel)


@pytest.mark.parametrize("body", [HARD_SWISH, GATE])
def test_onnxruntime_computes_both_in_integers(body: str, tmp_path: Path) -> None:
    executed = by_onnxruntime(quantized(network(body)), tmp_path)
    assert (executed["QLinearAdd"], executed["QLinearMul"]) == (1, 1)
    assert not executed.keys() & {"HardSwish", "HardSigmoid", "Mul", "Add"}


def test_hard_swish_as_two_nodes_is_the_same_function() -> None:
    model = network(HARD_SWISH)
    gates = with_gates(model)
    onnx.checker.check_model(gates, full_check=True)
    assert operators(gates)["HardSwish"] == 0
    assert with_gates(gates) is gates
    inputs = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
    before, after = (
        engine("reference").open(item).run(inputs) for item in (model, gates)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_a_taken_name_is_left_alone() -> None:
    model = network("u_gate = Relu (t) z = HardSwish (u_gate) u = HardSwish (z)")
    gates = with_gates(model)
    onnx.checker.check_model(gates, full_check=True)
    names = [name for node in gates.graph.node for name in node.output]
    assert len(names) == len(set(names))


def hard_sigmoid(alpha: float, beta: float) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[N] y) {{
            h = HardSigmoid <alpha = {alpha}, beta = {beta}> (x)  y = Identity (h) }}"""
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (1.5, 0.25)])
def test_the_sum_is_within_half_a_step_of_the_function(
    alpha: float, beta: float
) -> None:
    """The known answer is HardSigmoid's definition, on every integer that x can have."""
    model = hard_sigmoid(alpha, beta)
    space = PlacementSpace(model, SCHEME)
    placement = space.placement("all", ["h"])
    parameters = {
        "x": uint8_parameters(-5, 4, False),
        "h": uint8_parameters(0, 1, False),
    }
    written = insert_qdq(model, placement, parameters, per_channel=True)
    assert operators(written)["HardSigmoid"] == 0
    scale, zero = parameters["x"].scale, parameters["x"].zero_point
    x = ((np.arange(256) - zero) * np.float32(scale)).astype(np.float32)
    expected: npt.NDArray[Any] = np.clip(alpha * x.astype(np.float64) + beta, 0, 1)
    for name in ("reference", "onnxruntime"):
        actual = engine(name).open(written).run(x)
        assert np.abs(actual - expected).max() <= 0.5 / 255 + 1e-5, name


@pytest.mark.parametrize("gate", [(0, 1.2), (-0.1, 1)])
def test_a_pair_that_does_not_clip_to_0_and_1_keeps_the_node(
    gate: tuple[float, float],
) -> None:
    """Else values above 1, or below 0, would pass."""
    assert operators(quantized(network(GATE), gate))["HardSigmoid"] == 1


def test_what_the_caller_reads_is_no_sum() -> None:
    """There is no pair behind an output, so nothing would clip."""
    model = network(HARD_SWISH, "p = GlobalAveragePool (c) output = HardSigmoid (p)")
    assert operators(quantized(model))["HardSigmoid"] == 1


@pytest.mark.parametrize(("alpha", "beta"), [(-1.0, 0.5), (0.2, 0.0), (0.2, -1.0)])
def test_a_slope_or_a_shift_that_is_not_positive_stays_in_float(
    alpha: float, beta: float
) -> None:
    assert PlacementSpace(hard_sigmoid(alpha, beta), SCHEME).around == []


def test_targets_without_it_see_the_graph_as_it_is() -> None:
    model = network(HARD_SWISH)
    assert shared_calibration.form_for(model, load_scheme("openvino-cpu")) is model
    assert shared_calibration.form_for(model, load_scheme("rdk-x5")) is model


def with_hard_swish(artifact: Artifact) -> Artifact:
    """The embedded network with HardSwish in place of its ReLUs."""
    model = onnx.ModelProto()
    model.CopyFrom(artifact.model)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "HardSwish"
    return replace(artifact, model=model)


@pytest.mark.parametrize("scheme", ["ort-cpu", "ort-cpu-7bit", "openvino-cpu"])
def test_the_whole_quantizer_keeps_what_the_network_says(scheme: str) -> None:
    artifact = with_hard_swish(small())
    assert operators(artifact.model)["HardSwish"] > 0
    target = Target(engine("onnxruntime"), load_scheme(scheme), placement="everything")
    int8, report = ladder.quantize(artifact, sets(), target, Budget(max_drop=1.0))
    counts = operators(int8.model)
    assert (counts["HardSwish"] > 0) == (scheme == "openvino-cpu")
    assert counts["HardSigmoid"] == 0
    assert report.chosen.paired.same_prediction > 97
