"""The fold leaves whole what runtimes fuse into one kernel; the runtimes themselves are asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from tests.executed_graphs import by_onnxruntime, by_openvino, operators

from repzoo.graph.fold.engine import fold

Graph = Callable[..., onnx.ModelProto]

CONSTANTS = {
    "w": (6, 4, 3, 3),
    "v": (5, 6, 1, 1),
    "root": math.sqrt(2),
    "one": 1.0,
    "two": 2.0,
    "half": 0.5,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "zero": 0.0,
    "eps": 1e-5,
    "cube": 0.044715,
    "tangent": math.sqrt(2 / math.pi),
    "gain": (1, 6, 1, 1),
    "shift": (1, 6, 1, 1),
}
GELU = "d = Div (t, root) e = Erf (d) a = Add (e, one) "
SPELLINGS = {
    "GELU, the half at its end": GELU + "p = Mul (t, a) u = Mul (p, half)",
    "GELU, the half in front": GELU + "h = Mul (t, half) u = Mul (h, a)",
    "GELU by tanh": """
        k = Pow (t, three) c = Mul (k, cube) s = Add (t, c) z = Mul (s, tangent)
        h = Tanh (z) a = Add (h, one) p = Mul (t, a) u = Mul (p, half)
    """,
    "GELU by tanh, the half in front": """
        k = Pow (t, three) c = Mul (k, cube) s = Add (t, c) z = Mul (s, tangent)
        h = Tanh (z) a = Add (h, one) f = Mul (t, half) u = Mul (f, a)
    """,
    "hard-swish by a division": """
        a = Add (t, three) c = Clip (a, zero, six) p = Mul (t, c) u = Div (p, six)
    """,
    "hard-swish by a product": """
        a = Add (t, three) c = Clip (a, zero, six) s = Mul (c, sixth) u = Mul (t, s)
    """,
    "layer normalization": """
        m = ReduceMean <axes = [1]> (t) d = Sub (t, m) q = Pow (d, two)
        r = ReduceMean <axes = [1]> (q) e = Add (r, eps) s = Sqrt (e) n = Div (d, s)
        g = Mul (n, gain) u = Add (g, shift)
    """,
}


def between_layers(graph: Graph, body: str) -> onnx.ModelProto:
    """`body` turns t, the output of one convolution, into u, the input of the next."""
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    constants = {
        name: value
        for name, value in CONSTANTS.items()
        if name in used or name in ("w", "v")
    }
    text = f"t = Conv (data, w) {body} output = Conv (u, v)"
    return graph(text, constants, opset=13)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_composite_stays_whole(graph: Graph, name: str) -> None:
    model = between_layers(graph, SPELLINGS[name])
    assert operators(fold(model).model) == operators(model)


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_stands_around_it_is_folded(graph: Graph, name: str) -> None:
    body = SPELLINGS[name].replace("(t", "(scaled").replace("u = ", "inner = ")
    around = f"scaled = Mul (t, gain) {body} u = Mul (inner, shift)"
    whole = between_layers(graph, SPELLINGS[name])
    assert operators(fold(between_layers(graph, around)).model) == operators(whole)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("p = Sigmoid (t) u = Mul (p, half)", {"Sigmoid": 1}),
        ("c = Clip (t, zero, six) u = Div (c, six)", {"Clip": 1}),
        ("a = Add (t, shift) c = Clip (a, zero, six) u = Div (c, six)", {"Clip": 1}),
    ],
)
def test_other_factors_are_absorbed(
    graph: Graph, body: str, expected: dict[str, int]
) -> None:
    folded = operators(fold(between_layers(graph, body)).model)
    assert folded == {"Conv": 2, **expected}


@pytest.mark.parametrize(
    "name",
    [
        "GELU, the half at its end",
        "GELU, the half in front",
        "GELU by tanh, the half in front",
    ],
)
def test_onnx_runtime_runs_one_kernel(graph: Graph, name: str, tmp_path: Path) -> None:
    folded = fold(between_layers(graph, SPELLINGS[name])).model
    executed = by_onnxruntime(folded, tmp_path)
    assert executed["Gelu"] + executed["FastGelu"] + executed["QuickGelu"] == 1
    assert not executed["Mul"]


@pytest.mark.parametrize(
    "name",
    [key for key in SPELLINGS if key != "layer normalization"],
)
def test_openvino_runs_it_within_a_convolution(graph: Graph, name: str) -> None:
    executed = by_openvino(fold(between_layers(graph, SPELLINGS[name])).model)
    assert executed["Convolution"] == 2
    assert not executed["Eltwise"] + executed["Math"]
