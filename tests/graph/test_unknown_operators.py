# ruff: noqa: C901  a kind of damage is a function of its own
"""Folding graphs with operators that no rule knows, and graphs with one damaged node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.graph.test_bad_onnx import BN, HEAD, SIMPLE, fold_file, kinds, model, weights

# --- operators that no rule knows -----------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "QLinearConv"]
)
def test_a_quantized_graph(kind: str, tmp_path: Path) -> None:
    constants = "scale = Constant<value = float {0.1}>()\nzero = Constant<value = uint8 {3}>()\n"
    q = {
        "QuantizeLinear": "q = QuantizeLinear(data, scale, zero)\n"
        "d = DequantizeLinear(q, scale, zero)\n",
        "DynamicQuantizeLinear": "q, s, z0 = DynamicQuantizeLinear(data)\n"
        "d = DequantizeLinear(q, s, z0)\n",
        "ConvInteger": "i = Cast<to = 2>(data)\nj = ConvInteger(i, wi)\nd = Cast<to = 1>(j)\n",
        "QLinearConv": "q = Cast<to = 2>(data)\n"
        "r = QLinearConv(q, scale, zero, wi, scale, zero, scale, zero)\n"
        "d = Cast<to = 1>(r)\n",
    }[kind]
    stored = [
        *weights(),
        numpy_helper.from_array(np.ones((3, 3, 1, 1), np.uint8), "wi"),
    ]
    assert "quantized already" in str(
        fold_file(
            model(constants + q + SIMPLE.replace("Conv(data", "Conv(d"), stored),
            tmp_path,
        )
    )


def branches(reads: str) -> str:
    """A graph with an If, whose branches read `reads` and have layers of their own."""
    inner = (
        f"iy = Conv<pads = [1, 1, 1, 1]>({reads}, v)\n"
        f"ix = BatchNormalization(iy, gamma, beta, mean, var)"
    )
    return (
        "c = Conv(data, w)\nt = BatchNormalization(c, gamma, beta, mean, var)\n"
        "r = ReduceSum<keepdims = 0>(data)\n"
        "zero = Constant<value = float {0}>()\n"
        "flag = Greater(r, zero)\n"
        f"u = If (flag) <then_branch = yes () => (float[N, 4, 6, 7] ix) {{ {inner} }}, "
        f"else_branch = no () => (float[N, 4, 6, 7] iz) {{ iz = Relu({reads}) }}>\n{HEAD}"
    )


@pytest.mark.parametrize("reads", ["t", "c"])
def test_an_if_whose_branches_read_a_tensor_that_folds(
    reads: str, tmp_path: Path
) -> None:
    """`t` is the output of the fold. `c` is inside of it, and keeps its second consumer."""
    network = model(
        branches(reads) + ("" if reads == "t" else "\n"), weights(v=(4, 4, 3, 3))
    )
    verdict = fold_file(network, tmp_path)
    assert kinds(verdict)["If"] == 1
    assert not isinstance(verdict, str)
    graph = verdict[0].model.graph
    assert "c" in {name for node in graph.node for name in node.output} or reads == "t"


def test_a_loop(tmp_path: Path) -> None:
    body = (
        "c = Conv(data, w)\nt = BatchNormalization(c, gamma, beta, mean, var)\n"
        "trips = Constant<value = int64 {2}>()\nyes = Constant<value = bool {1}>()\n"
        "u = Loop (trips, yes, t) <body = step (int64 i, bool on, float[N, 4, 6, 7] x) "
        "=> (bool on2, float[N, 4, 6, 7] y) "
        f"{{ on2 = Identity(on) y = BatchNormalization(x, gamma, beta, mean, var) }}>\n{HEAD}"
    )
    verdict = fold_file(model(body), tmp_path)
    assert kinds(verdict) == {
        "Conv": 1,
        "Constant": 2,
        "Loop": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
    }


def test_functions_of_the_model_are_folded_like_the_rest(tmp_path: Path) -> None:
    """Also where one function calls another, and where a name in it exists outside."""
    after = (
        '<domain: "own", opset_import: ["": 17]>\n'
        "soft (x) => (y) { s = Sigmoid(x) y = Mul(x, s) }\n"
        '<domain: "own", opset_import: ["": 17, "own": 1]>\n'
        "block (x, w, gamma, beta, mean, var) => (t) { c = Conv(x, w) "
        "b = BatchNormalization(c, gamma, beta, mean, var) t = own.soft(b) }"
    )
    body = SIMPLE.replace(
        "c = Conv(data, w)\nt = BatchNormalization(c, gamma, beta, mean, var)\nu = Relu(t)",
        "u = own.block(data, w, gamma, beta, mean, var)",
    )
    verdict = fold_file(model(body, domains=', "own": 1', after=after, ir=9), tmp_path)
    assert kinds(verdict) == {
        "Conv": 1,
        "Sigmoid": 1,
        "Mul": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
    }


def test_an_operator_of_an_unknown_domain(tmp_path: Path) -> None:
    verdict = fold_file(
        model(
            SIMPLE.replace("u = Relu(t)", "u = other.Thing(t)"), domains=', "other": 1'
        ),
        tmp_path,
    )
    assert isinstance(verdict, str)


def test_a_constant_part_that_cannot_be_computed(tmp_path: Path) -> None:
    """A Reshape of the weights to a size that they do not have: no runtime loads it."""
    stored = [
        *weights(flat=(107,)),
        numpy_helper.from_array(np.array([4, 3, 3, 3]), "shape"),
    ]
    verdict = fold_file(
        model("w4 = Reshape(flat, shape)\n" + SIMPLE.replace("w)", "w4)"), stored),
        tmp_path,
    )
    assert isinstance(verdict, str)


def test_a_constant_that_would_fill_the_memory_is_not_computed() -> None:
    from repzoo.graph.fold.engine import fold

    stored = [
        *weights(),
        numpy_helper.from_array(np.array([1, 4, 40000, 40000]), "huge"),
    ]
    body = (
        "e = Expand(gamma4, huge)\nr = ReduceMean<axes = [2, 3]>(e)\n"
        + SIMPLE.replace("u = Relu(t)", "u = Mul(t, r)")
    )
    result = fold(
        model(
            body,
            [
                *stored,
                numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), "gamma4"),
            ],
        )
    )
    assert "Expand" in {node.op_type for node in result.model.graph.node}


def damages() -> list[Callable[[onnx.NodeProto], None]]:
    def drop_input(node: onnx.NodeProto) -> None:
        del node.input[-1]

    def drop_inputs(node: onnx.NodeProto) -> None:
        del node.input[:]

    def empty_input(node: onnx.NodeProto) -> None:
        node.input[-1] = ""

    def empty_first(node: onnx.NodeProto) -> None:
        node.input[0] = ""

    def drop_output(node: onnx.NodeProto) -> None:
        del node.output[:]

    def more_inputs(node: onnx.NodeProto) -> None:
        node.input.extend(["data"] * 4)

    def no_settings(node: onnx.NodeProto) -> None:
        del node.attribute[:]

    def texts(node: onnx.NodeProto) -> None:
        for item in node.attribute:
            item.CopyFrom(helper.make_attribute(item.name, "text"))

    def widen(node: onnx.NodeProto) -> None:
        for item in node.attribute:
            if item.type == onnx.AttributeProto.INTS:
                item.ints.extend([1, 1])

    return [
        drop_input,
        drop_inputs,
        empty_input,
        empty_first,
        drop_output,
        more_inputs,
        no_settings,
        texts,
        widen,
    ]


RICH = """
s = Slice(data, start, end, axis)
p = Pad(s, frame)
a, b = Split<axis = 1>(p, sizes)
ca = Conv<strides = [1, 1]>(a, wa, bias)
cb = Conv<pads = [0, 0, 0, 0]>(b, wb)
j = Concat<axis = 1>(ca, cb)
q = AveragePool<kernel_shape = [2, 2], strides = [1, 1]>(j)
m = Mul(q, scale)
n = BatchNormalization<epsilon = 0.1>(m, gamma8, beta8, mean8, var8)
z = GlobalAveragePool(n)
f = Flatten(z)
g = MatMul(f, wm)
h = Add(g, bias)
i = Gemm<transB = 1>(h, wg)
output = Div(i, two)
"""


def rich_model() -> onnx.ModelProto:
    stored = weights(
        wa=(4, 1, 3, 3),
        wb=(4, 2, 3, 3),
        wm=(8, 4),
        wg=(4, 4),
        bias=(4,),
        scale=(8, 1, 1),
        two=(1,),
        **{f"{name}8": (8,) for name in BN},
    )
    integers = {
        "start": [0],
        "end": [3],
        "axis": [1],
        "sizes": [1, 2],
        "frame": [0, 0, 1, 1, 0, 0, 1, 1],
    }
    return model(
        RICH,
        [
            *stored,
            *(
                numpy_helper.from_array(np.array(values), name)
                for name, values in integers.items()
            ),
        ],
    )


def test_the_graph_of_all_rules_folds(tmp_path: Path) -> None:
    assert kinds(fold_file(rich_model(), tmp_path))["BatchNormalization"] == 0


@pytest.mark.parametrize("place", range(15))
@pytest.mark.parametrize("how", damages(), ids=lambda how: how.__name__)
def test_damage_to_any_node(
    how: Callable[[onnx.NodeProto], None], place: int, tmp_path: Path
) -> None:
    network = rich_model()
    how(network.graph.node[place])
    fold_file(network, tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        TensorProto.INT32,
        TensorProto.DOUBLE,
        TensorProto.STRING,
        TensorProto.FLOAT8E4M3FN,
        99,
    ],
)
def test_a_wrong_declared_type(kind: int, tmp_path: Path) -> None:
    for network in (model(), model()):
        network.graph.input[0].type.tensor_type.elem_type = kind
        assert isinstance(fold_file(network, tmp_path), str)
