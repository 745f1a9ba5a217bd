"""Nodes that do the same are one after a fold; what draws, holds a graph or gives an output
stays; the proof sees each merge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.errors import CertificateError
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold import cse as twins
from repzoo.graph.fold.engine import fold

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]

HELD: dict[str, Any] = {
    "w": (4, 4, 1, 1),
    "same": [2.0],
    "alike": [2.0],
    "other": [3.0],
}
YES = "yes = Constant<value = bool {1}>()\nhalf = Constant<value = float {0.5}>()\n"
# name: (body, operators that are left)
CASES: dict[str, tuple[str, list[str]]] = {
    "two of a kind": ("a = Relu(data)\nb = Relu(data)\noutput = Mul(a, b)", ["Relu", "Mul"]),
    "what two of a kind give, in turn": (
        "a = Relu(data)\nb = Relu(data)\nc = Exp(a)\nd = Exp(b)\noutput = Mul(c, d)", ["Relu", "Exp", "Mul"]),
    "constants of one value": ("a = Pow(data, same)\nb = Pow(data, alike)\noutput = Add(a, b)", ["Pow", "Add"]),
    "constants of two values": ("a = Pow(data, same)\nb = Pow(data, other)\noutput = Add(a, b)", ["Pow", "Pow", "Add"]),
    "other settings": (
        "a = Softmax<axis = 1>(data)\nb = Softmax<axis = 2>(data)\noutput = Add(a, b)", ["Softmax", "Softmax", "Add"]),
    "the other order": ("r = Relu(data)\na = Sub(data, r)\nb = Sub(r, data)\noutput = Mul(a, b)", ["Relu", "Sub", "Sub", "Mul"]),
    "a second output": ("a = Relu(data)\noutput = Relu(data)\nu = Exp(a)\nother_output = Relu(u)", ["Relu", "Relu", "Exp", "Relu"]),
    "a first output": ("output = Relu(data)\na = Relu(data)\nother_output = Exp(a)", ["Relu", "Exp"]),
    "what draws": (
        "a = RandomNormalLike(data)\nb = RandomNormalLike(data)\noutput = Sub(a, b)", ["RandomNormalLike", "RandomNormalLike", "Sub"]),
    "dropout that trains": (
        YES + "a = Dropout(data, half, yes)\nb = Dropout(data, half, yes)\noutput = Sub(a, b)", ["Constant", "Constant", "Dropout", "Dropout", "Sub"]),
}  # fmt: skip


def build(graph: Graph, body: str) -> onnx.ModelProto:
    outputs = ", float[N, C, H, W] other_output" if "other_output" in body else ""
    return graph(
        body,
        {name: what for name, what in HELD.items() if name in body},
        outputs=outputs,
    )


@pytest.mark.parametrize("name", CASES)
def test_what_is_left(name: str, graph: Graph, execute: Execute) -> None:
    body, left = CASES[name]
    model = build(graph, body)
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == left
    assert [item.name for item in result.model.graph.output] == [
        item.name for item in model.graph.output
    ]
    assert prove(model, result.model, []) == ()
    again = fold(result.model).model
    assert again.SerializeToString(
        deterministic=True
    ) == result.model.SerializeToString(deterministic=True)
    if "what draws" not in name and "trains" not in name:
        data = (
            np.random.default_rng(0).standard_normal((2, 4, 9, 10)).astype(np.float32)
        )
        for expected, got in zip(
            execute(model, data), execute(result.model, data), strict=True
        ):
            np.testing.assert_array_equal(expected, got)


def test_branches_of_an_if_stay_as_they_are(graph: Graph) -> None:
    branches = "then_branch = one () => (float[N, C, H, W] x{0}) {{ x{0} = Relu(data) }}, else_branch = two () => (float[N, C, H, W] y{0}) {{ y{0} = Abs(data) }}"
    ifs = "".join(f"{name} = If(yes) <{branches.format(name)}>\n" for name in "ab")
    model = graph(YES + ifs + "output = Mul(a, b)", {})
    assert [node.op_type for node in fold(model).model.graph.node] == [
        "Constant",
        "If",
        "If",
        "Mul",
    ]


def test_folds_come_before_cse_for_shared_tensors_do_not_fold(
    graph: Graph,
) -> None:
    """Two equal pools, each in a branch of its own: all of it is one convolution, as it is with
    pools that differ.
    """
    pool = "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(data)"
    body = f"p = {pool}\na = Conv(p, w)\nc = Conv<pads = [1, 1, 1, 1]>(data, v)\ns = Add(a, c)\nq = {pool}\nb = Conv(q, u)\noutput = Add(s, b)"
    model = graph(body, {"w": (4, 4, 1, 1), "v": (4, 4, 3, 3), "u": (4, 4, 1, 1)})
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert prove(model, result.model, result.outputs)


def test_layers_of_equal_weights_stay_two(graph: Graph) -> None:
    ones = np.ones((4, 4, 3, 3), np.float32)
    model = graph(
        "a = Conv(data, w)\nr = Relu(a)\nb = Conv(data, v)\ns = Exp(b)\noutput = Mul(r, s)",
        {"w": ones, "v": ones},
    )
    assert [node.op_type for node in fold(model).model.graph.node].count("Conv") == 2


@pytest.mark.parametrize("blind_to", ["_attribute_value", "_input_content"])
def test_merging_nodes_that_differ_is_caught(
    blind_to: str, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(
        graph,
        CASES[
            "other settings"
            if blind_to == "_attribute_value"
            else "constants of two values"
        ][0],
    )
    monkeypatch.setattr(twins, blind_to, lambda _: "")
    wrong = fold(model).model
    assert len(wrong.graph.node) == 2
    with pytest.raises(CertificateError):
        prove(model, wrong, [])
