"""Graphs of thousands of nodes, and functions whose calls multiply.

Nothing is timed. Python's recursion limit and the time limit of a test hold here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from repzoo.errors import InputError
from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold.engine import fold

Array = npt.NDArray[Any]

CHAIN = 1100  # nodes, more than Python's recursion limit
HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


def model_of(nodes: list[onnx.NodeProto], **weights: Array) -> onnx.ModelProto:
    shape: list[str | int | None] = ["N", 3, 8, 8]
    value_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "large",
        [value_info("data", 1, shape)],
        [value_info(nodes[-1].output[0], 1, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def test_a_long_chain_of_sums_becomes_one_node() -> None:
    nodes = []
    source = "data"
    for index in range(CHAIN):
        nodes.append(helper.make_node("Add", [source, "one"], [f"t{index}"]))
        source = f"t{index}"
    model = model_of(nodes, one=np.ones((3, 1, 1), np.float32))
    result = fold(model)
    (node,) = result.model.graph.node
    bias = {item.name: item for item in result.model.graph.initializer}[node.input[2]]
    assert np.array_equal(numpy_helper.to_array(bias), np.full(3, float(CHAIN)))
    assert len(prove(model, result.model, result.outputs)) == 1


def test_a_sum_of_many_branches_becomes_one_node() -> None:
    nodes = []
    for index in range(CHAIN // 2):
        nodes.append(helper.make_node("Mul", ["data", "two"], [f"b{index}"]))
    total = "b0"
    for index in range(1, CHAIN // 2):
        nodes.append(helper.make_node("Add", [total, f"b{index}"], [f"t{index}"]))
        total = f"t{index}"
    model = model_of(nodes, two=np.full((3, 1, 1), 2, np.float32))
    result = fold(model)
    (node,) = result.model.graph.node
    assert node.op_type == "Conv"
    kernel = numpy_helper.to_array(result.model.graph.initializer[0])
    assert np.array_equal(kernel.ravel(), np.full(3, float(CHAIN)))
    assert len(prove(model, result.model, result.outputs)) == 1


def test_a_long_chain_of_identities_disappears() -> None:
    nodes = []
    source = "data"
    for index in range(CHAIN):
        nodes.append(helper.make_node("Identity", [source], [f"t{index}"]))
        source = f"t{index}"
    nodes.append(helper.make_node("Relu", [source], ["output"]))
    model = model_of(nodes)
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Relu"]
    assert prove(model, result.model, result.outputs) == ()


@pytest.mark.parametrize("order", ["adpp", "apdp", "ppad"])
def test_a_pool_that_is_added_twice_folds_like_two_pools(order: str) -> None:
    first, second, third, fourth = list(order)
    model = parser.parse_model(
        f"""{HEADER}main (float[N, 4, 9, 9] x) => (float[N, 4, 9, 9] y) {{
            a = Conv<pads = [3, 3, 3, 3]>(x, w)
            d = Conv<pads = [1, 1, 1, 1], group = 4>(x, v)
            p = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1],
                            count_include_pad = 1>(x)
            s = Add({first}, {second})
            t = Add(s, {third})
            y = Add(t, {fourth})
        }}"""
    )
    random = np.random.default_rng(0)
    for name, shape in (("w", (4, 4, 7, 7)), ("v", (4, 1, 3, 3))):
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Conv"]
    assert len(prove(model, result.model, result.outputs)) == 1


def with_functions(depth: int, last: str) -> onnx.ModelProto:
    """A graph of one call. Each function calls the next one twice, the last one calls `last`."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for index in range(depth):
        kind, domain = f"f{index + 1}", "own"
        if index == depth - 1:
            kind, domain = last, "own" if last == "f0" else ""
        nodes = [
            helper.make_node(kind, ["a"], ["b"], domain=domain),
            helper.make_node(kind, ["b"], ["c"], domain=domain),
        ]
        functions.append(
            helper.make_function("own", f"f{index}", ["a"], ["c"], nodes, opsets)
        )
    value_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="own")],
        "functions",
        [value_info("x", 1, ["N", 3, 4, 4])],
        [value_info("y", 1, None)],
    )
    return helper.make_model(
        graph, functions=functions, opset_imports=opsets, ir_version=8
    )


def test_functions_that_call_functions_are_inlined() -> None:
    result = fold(with_functions(3, "Relu"))
    assert [node.op_type for node in result.model.graph.node] == ["Relu"] * 8


def test_functions_whose_calls_multiply_are_refused() -> None:
    with pytest.raises(InputError, match=r"1\.1e\+12 nodes.*export without functions"):
        fold(with_functions(40, "Relu"))


def test_a_function_that_calls_itself_is_refused() -> None:
    with pytest.raises(InputError, match="call themselves"):
        fold(with_functions(2, "f0"))
