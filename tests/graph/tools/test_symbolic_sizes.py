"""Arithmetic of sizes and operands that change nothing: gone where that is safe, left alone
where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold.engine import fold

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


SHAPE = "s = Shape(data)\n"
BATCH = SHAPE + "b = Gather(s, zero)\nn = Unsqueeze(b, first)\n"
HELD: dict[str, Any] = {"zero": np.array(0), "first": integers(0), "minus": integers(-1), "four": integers(4), "nine": integers(9), "ten": integers(10),
                        "two": integers(2), "one": [1.0], "ones": [[[1.0]]] * 4, "zeros": [[[0.0]]] * 4, "wide": np.zeros((1, 4, 1, 10), np.float32),
                        "nothing": np.array(0, np.float32)}  # fmt: skip

# name: (body, input, operators that are left)
CASES: dict[str, tuple[str, str, list[str]]] = {
    "a batch that is put before known sides": (BATCH + "t = Concat<axis = 0>(n, four, nine, ten)\nr = Relu(data)\noutput = Reshape(r, t)", "N, 4, 9, 10", ["Relu"]),
    "a batch that keeps its place, and a side to find": (
        BATCH + "t = Concat<axis = 0>(n, minus, ten)\nr = Relu(data)\nx = Reshape(r, t)\noutput = Relu(x)", "N, 4, 9, 10", ["Relu", "Reshape", "Relu"]),
    "a part of a shape": (SHAPE + "p = Slice(s, zeroth, two)\nt = Concat<axis = 0>(p, minus)\noutput = Reshape(data, t)", "N, 4, H, W", ["Reshape"]),
    "a number made of a side": (SHAPE + "p = Slice(s, minus, last)\nf = Cast<to = 1>(p)\nq = Sqrt(f)\noutput = Div(data, q)", "N, 4, 9, 10", ["Div"]),
    "two sides to find": (SHAPE + "h = Gather(s, second)\nt = Concat<axis = 0>(h, four, minus)\noutput = Reshape(data, t)", "N, 4, H, W", ["Shape", "Gather", "Concat", "Reshape"]),
    "a side that stands elsewhere": (SHAPE + "t = Gather(s, order)\noutput = Reshape(data, t)", "N, 4, H, W", ["Reshape"]),
    "a shape that two read": (
        BATCH + "t = Concat<axis = 0>(n, four, nine, ten)\nx = Reshape(data, t)\ne = Expand(wide, t)\noutput = Concat<axis = 1>(x, e)", "N, 4, 9, 10",
        ["Shape", "Gather", "Unsqueeze", "Concat", "Expand", "Concat"]),
    "a side times a number": (
        BATCH + "d = Mul(n, two)\nt = Concat<axis = 0>(d, two, nine, ten)\nx = Reshape(data, t)\noutput = Relu(x)", "N, 4, 9, 10", ["Reshape", "Relu"]),
    "a side times itself": (
        BATCH + "d = Mul(n, n)\nm = Div(d, n)\nt = Concat<axis = 0>(m, four, ten, nine)\nr = Relu(data)\noutput = Reshape(r, t)", "N, 4, 9, 10",
        ["Shape", "Gather", "Unsqueeze", "Mul", "Div", "Concat", "Relu", "Reshape"]),
    "a shape that two Reshapes read": (
        BATCH + "t = Concat<axis = 0>(n, four, ten, nine)\nr = Relu(data)\nx = Reshape(r, t)\nq = Sigmoid(data)\ny = Reshape(q, t)\noutput = Add(x, y)", "N, 4, 9, 10",
        ["Relu", "Reshape", "Sigmoid", "Reshape", "Add"]),
    "a Transpose of ones": ("r = Relu(data)\nx = Transpose<perm = [0, 3, 2, 1]>(r)\noutput = Relu(x)", "N, 1, 1, 1", ["Relu", "Relu"]),
    "a Transpose of ones that changes the shape": (
        "r = Relu(data)\nx = Transpose<perm = [0, 3, 2, 1]>(r)\noutput = Abs(x)", "N, 4, 1, 1", ["Relu", "Transpose", "Abs"]),
    "a Transpose of equal sides": ("r = Relu(data)\nx = Transpose<perm = [0, 3, 2, 1]>(r)\noutput = Abs(x)", "N, 4, 1, 4", ["Relu", "Transpose", "Abs"]),
    "zero that means zero": (BATCH + "t = Concat<axis = 0>(n, minus, ten)\noutput = Reshape<allowzero = 1>(data, t)", "N, 4, 9, 10", ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]),
    "ones and zeros of each kind": (
        "a = Mul(data, one)\nb = Add(zeros, a)\nc = Mul(ones, b)\nd = Div(c, ones)\ne = Sub(d, nothing)\nr = Relu(e)\noutput = Add(r, zeros)", "N, 4, 9, 10", ["Relu"]),
    "zeros that widen": ("a = Add(data, wide)\noutput = Relu(a)", "N, 4, 9, 1", ["Add", "Relu"]),
    "zeros that widen an open side": ("a = Add(data, wide)\noutput = Relu(a)", "N, 4, 9, W", ["Add", "Relu"]),
    "minus a tensor": ("a = Sub(nothing, data)\noutput = Abs(a)", "N, 4, 9, 10", ["Sub", "Abs"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_left(name: str, graph: Graph, execute: Execute) -> None:
    body, data, left = CASES[name]
    held = HELD | {
        "zeroth": integers(0),
        "last": integers(2**62),
        "second": integers(2),
        "order": integers(0, 2, 1, 3),
    }
    model = graph(
        body,
        {key: value for key, value in held.items() if key in body},
        data,
        "A, B, C" if "minus" in body and "Sqrt" not in body else "A, B, C, D",
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == left
    prove(model, result.model, result.outputs)
    onnx.checker.check_model(result.model, full_check=True)
    for batch in (1, 3):
        sides = [int(side) if side.isdigit() else 10 for side in data.split(", ")[1:]]
        images = (
            np.random.default_rng(0).standard_normal((batch, *sides)).astype(np.float32)
        )
        (expected,), (got,) = execute(model, images), execute(result.model, images)
        np.testing.assert_array_equal(expected, got)


def test_a_one_that_a_caller_may_replace_stays(graph: Graph) -> None:
    model = graph(
        "a = Mul(data, s)\noutput = Relu(a)", {"s": [1.0]}, inputs=["float[1] s"]
    )
    result = fold(model)
    assert [node.op_type for node in result.model.graph.node] == ["Mul", "Relu"]
    prove(model, result.model, [])
