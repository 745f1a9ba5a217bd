"""Functions are written as engines fuse them: their own executed graphs are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.executed_graphs import by_onnxruntime, by_openvino, operators

from repzoo.errors import CertificateError
from repzoo.graph.certificate.proof import prove
from repzoo.graph.certificate.respelled import apply_respellings
from repzoo.graph.fold.engine import fold
from repzoo.graph.tools.fold_result import Respelling

Graph = Callable[..., onnx.ModelProto]

CONSTANTS = {
    "w": (8, 4, 3, 3),
    "v": (5, 8, 1, 1),
    "root": math.sqrt(2),
    "inverse": 1 / math.sqrt(2),
    "one": 1.0,
    "two": 2.0,
    "half": 0.5,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "zero": 0.0,
    "slope": 0.1,
    "cube": 0.044715,
    "tangent": math.sqrt(2 / math.pi),
}
ERF = "d = Div (t, root) e = Erf (d) a = Add (e, one) "
PRODUCT = "d = Mul (t, inverse) e = Erf (d) a = Add (e, one) "
TANH = "c = Mul (k, cube) s = Add (t, c) z = Mul (s, tangent) h = Tanh (z) a = Add (h, one) "
CUBE = "k = Pow (t, three) "
PRODUCTS = "q = Mul (t, t) k = Mul (t, q) "
CLIP = "a = Add (t, three) c = Clip (a, zero, six) "

# name: opset, spelling, the operator that ONNX Runtime runs between two convolutions
SPELLINGS = {
    "GELU": (13, ERF + "p = Mul (t, a) u = Mul (p, half)", "Gelu"),
    "GELU, half of the sum": (13, ERF + "h = Mul (a, half) u = Mul (t, h)", "Gelu"),
    "GELU, divided by 2": (13, ERF + "p = Mul (t, a) u = Div (p, two)", "Gelu"),
    "GELU, product": (13, PRODUCT + "p = Mul (t, a) u = Mul (p, half)", "Gelu"),
    "GELU, half in front": (13, PRODUCT + "h = Mul (t, half) u = Mul (h, a)", "Gelu"),
    "GELU, opset 20": (20, PRODUCT + "p = Mul (t, a) u = Mul (p, half)", "Gelu"),
    "tanh, half at the end": (
        13,
        CUBE + TANH + "p = Mul (t, a) u = Mul (p, half)",
        "FastGelu",
    ),
    "tanh, products": (
        13,
        PRODUCTS + TANH + "p = Mul (t, a) u = Mul (p, half)",
        "FastGelu",
    ),
    "tanh, opset 20": (
        20,
        PRODUCTS + TANH + "p = Mul (t, a) u = Mul (p, half)",
        "Gelu",
    ),
    "hard-swish, gate": (
        14,
        "g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (t) u = Mul (t, g)",
        "",
    ),
    "hard-swish, quotient": (14, CLIP + "p = Mul (t, c) u = Div (p, six)", ""),
    "hard-swish, product": (14, CLIP + "s = Mul (c, sixth) u = Mul (t, s)", ""),
    "hard-sigmoid, quotient": (13, CLIP + "u = Div (c, six)", ""),
    "hard-sigmoid, product": (13, CLIP + "u = Mul (c, sixth)", ""),
    "hard-sigmoid, minimum": (
        13,
        "a = Add (t, three) r = Relu (a) c = Min (r, six) u = Div (c, six)",
        "",
    ),
    "SiLU": (13, "g = Sigmoid (t) u = Mul (t, g)", "QuickGelu"),
    "Swish": (24, "u = Swish (t)", "QuickGelu"),
    "leaky ReLU, maximum": (13, "s = Mul (t, slope) u = Max (t, s)", ""),
    "leaky ReLU, PRelu": (13, "u = PRelu (t, slope)", ""),
    "ReLU, maximum": (13, "u = Max (t, zero)", ""),
    "ReLU6, maximum": (13, "r = Max (t, zero) u = Min (r, six)", ""),
    "ReLU6, minimum": (13, "r = Relu (t) u = Min (r, six)", ""),
}


def between_layers(
    graph: Graph, body: str, opset: int, **changed: object
) -> onnx.ModelProto:
    """`body` turns t, the output of one convolution, into u, the input of the next."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {"w", "v"} | (words & CONSTANTS.keys())
    constants = {name: changed.get(name, CONSTANTS[name]) for name in sorted(used)}
    text = f"t = Conv (data, w) {body} output = Conv (u, v)"
    return graph(text, constants, data="1, 4, 9, 10", opset=opset)


@pytest.mark.parametrize("name", SPELLINGS)
def test_engines_fuse_what_the_fold_writes(
    graph: Graph, name: str, tmp_path: Path
) -> None:
    opset, body, kernel = SPELLINGS[name]
    before = between_layers(graph, body, opset)
    result = fold(before)
    prove(apply_respellings(before, result.respellings), result.model, result.outputs)
    assert operators(fold(result.model).model) == operators(result.model)
    executed = by_onnxruntime(result.model, tmp_path)
    assert {key for key in executed if "Reorder" not in key} <= {"Conv", kernel}
    assert executed["Conv"] == 2
    if name != "Swish":  # OpenVINO 2026.4 knows opset 24, older ones do not
        kinds = by_openvino(result.model)
        assert kinds["Convolution"] == 2
        assert not kinds["Eltwise"] + kinds["Math"] + kinds["Subgraph"]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("GELU, product", {"inverse": 0.7}),
        ("GELU, product", {"half": 0.25}),
        ("tanh, products", {"cube": 0.05}),
        ("hard-swish, quotient", {"six": 5.0}),
        ("leaky ReLU, maximum", {"slope": 1.5}),
        ("ReLU6, minimum", {"six": -1.0}),
    ],
)
def test_other_functions_are_left_alone(
    graph: Graph, name: str, changed: dict[str, float]
) -> None:
    opset, body, _ = SPELLINGS[name]
    before = between_layers(graph, body, opset, **changed)
    assert not fold(before).respellings


MEAN = "t = Conv (data, w) u = ReduceMean <axes = [{axes}], keepdims = {keeps}> (t) output = {last}"


@pytest.mark.parametrize(
    ("axes", "keeps", "is_pool"),
    [("2, 3", 1, True), ("-1, -2", 1, True), ("2, 3", 0, False), ("1", 1, False)],
)
def test_the_mean_over_the_image_is_a_pool(
    graph: Graph, axes: str, keeps: int, is_pool: bool
) -> None:
    last = "Relu (u)"
    text = MEAN.format(axes=axes, keeps=keeps, last=last)
    rank = "N, C, H, W" if keeps else "N, C"
    before = graph(text, {"w": (8, 4, 3, 3)}, opset=13, output=rank)
    result = fold(before)
    assert operators(result.model)["GlobalAveragePool"] == is_pool
    prove(apply_respellings(before, result.respellings), result.model, result.outputs)


def respelling(operator: str, **attributes: Any) -> Respelling:
    node = onnx.helper.make_node(operator, ["t"], ["u"], **attributes)
    return Respelling("t", "u", (node,), ())


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Gelu", {"approximate": "tanh"}),
        ("HardSwish", {}),
        ("GlobalAveragePool", {}),
        ("Softsign", {}),
    ],
)
def test_the_certificate_refuses_another_function(
    graph: Graph, operator: str, attributes: dict[str, Any]
) -> None:
    opset, body, _ = SPELLINGS["GELU, opset 20"]
    before = between_layers(graph, body, opset)
    with pytest.raises(CertificateError, match="u: "):
        apply_respellings(before, [respelling(operator, **attributes)])


def test_half_precision_keeps_its_number_type(graph: Graph) -> None:
    opset, body, _ = SPELLINGS["GELU, product"]
    before = between_layers(graph, body, opset)
    for tensor in before.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for item in (*before.graph.input, *before.graph.output):
        item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = fold(before)
    types = {tensor.data_type for tensor in result.model.graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16}
