"""GELU and SiLU between Q/DQ pairs: ONNX Runtime's own executed graphs show what it recognizes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.executed_graphs import by_onnxruntime, operators

from repzoo.engines import engine
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import QuantScheme, load_scheme
from repzoo.quant.parameters.qdq_writer import insert_qdq
from repzoo.quant.parameters.scales import uint8_parameters
from repzoo.quant.rewrites.single_nodes import single_node_remarks, with_single_nodes

GELU = "d = Div (t, root) e = Erf (d) a = Add (e, one) p = Mul (t, a) u = Mul (p, half)"
SWISH = "s = Sigmoid (t) u = Mul (t, s)"


def network(body: str, opset: int = 17) -> onnx.ModelProto:
    """Two convolutions with the function `body` of t between them, which computes u."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 4, 8, 8] data) => (float[N, 5, 1, 1] output) {{
            t = Conv (data, w) {body} c = Conv (u, v) output = GlobalAveragePool (c) }}"""
    )
    random = np.random.default_rng(0)
    tensors: dict[str, npt.NDArray[Any]] = {
        "w": random.standard_normal((8, 4, 3, 3)),
        "v": random.standard_normal((5, 8, 1, 1)),
        "root": np.array(math.sqrt(2)),
        "one": np.array(1.0),
        "half": np.array(0.5),
    }
    for name, values in tensors.items():
        item = numpy_helper.from_array(values.astype(np.float32), name)
        model.graph.initializer.append(item)
    return model


def quantized(
    model: onnx.ModelProto, scheme: QuantScheme | None = None
) -> onnx.ModelProto:
    """`model` with everything in INT8 that a scheme of ONNX Runtime knows."""
    scheme = scheme or load_scheme("ort-cpu")
    placement = PlacementSpace(model, scheme).starting_placements()[0]
    parameters = {name: uint8_parameters(-6, 6, False) for name in placement.tensors}
    return insert_qdq(model, placement, parameters, scheme.per_channel)


def test_onnxruntime_sees_gelu_between_pairs_only_as_one_node(tmp_path: Path) -> None:
    """If the first half ever fails, ONNX Runtime has learned it and the rewrite can go."""
    model = network(GELU)
    assert by_onnxruntime(model, tmp_path)["Gelu"] == 1
    several = by_onnxruntime(quantized(model), tmp_path)
    assert (several["Gelu"], several["Erf"]) == (0, 1)
    one = by_onnxruntime(quantized(with_single_nodes(model)), tmp_path)
    assert (one["Gelu"], one["Erf"]) == (1, 0)


def test_onnxruntime_computes_silu_between_pairs_in_integers(tmp_path: Path) -> None:
    """With its nodes in float, the pattern is lost, as GELU's is. In float it is one kernel."""
    model = network(SWISH)
    assert by_onnxruntime(model, tmp_path)["QuickGelu"] == 1
    scheme = load_scheme("ort-cpu")
    only_float = tuple(kind for kind in scheme.quantized if kind != "Sigmoid")
    lost = quantized(model, replace(scheme, quantized=only_float))
    executed = by_onnxruntime(lost, tmp_path)
    assert (executed["QuickGelu"], executed["Sigmoid"]) == (0, 1)
    executed = by_onnxruntime(quantized(model), tmp_path)
    assert (executed["QLinearSigmoid"], executed["QLinearMul"]) == (1, 1)
    assert executed["Sigmoid"] == executed["Mul"] == 0


def test_the_function_and_the_names_of_tensors_stay() -> None:
    model = network(GELU)
    single = with_single_nodes(model)
    onnx.checker.check_model(single, full_check=True)
    assert operators(single) == {"Conv": 2, "Gelu": 1, "GlobalAveragePool": 1}
    assert {"t", "u", "c"} <= {
        name for node in single.graph.node for name in node.output
    }
    inputs = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
    before, after = (
        engine("reference").open(item).run(inputs) for item in (model, single)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", [SWISH, GELU.replace("half)", "root)")])
def test_a_network_without_gelu_keeps_its_opset(body: str) -> None:
    """A product with sqrt(2) at the end is not GELU, though its operators are."""
    model = network(body)
    assert with_single_nodes(model) is model


def test_a_network_that_onnx_cannot_convert_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", refuse)
    model = network(GELU)
    assert with_single_nodes(model) is model
    (remark,) = single_node_remarks(model, model)
    assert "export the model with opset 20" in remark


def test_a_raised_opset_is_said() -> None:
    model = network(GELU)
    (remark,) = single_node_remarks(model, with_single_nodes(model))
    assert remark.startswith("the file has opset 20 and not 17")
    other = network(GELU.replace("half)", "root)"))
    for silent in (network(SWISH), network("u = Gelu (t)", 20), other):
        assert not single_node_remarks(silent, with_single_nodes(silent))
