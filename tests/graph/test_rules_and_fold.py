# ruff: noqa: E501  a case is a row
"""What folds, what is refused and why, and what is left alone; then random linear graphs. Each fold is run against its origin."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from repzoo.errors import CertificateError, InputError
from repzoo.graph.fold import FoldResult, fold
from repzoo.graph.proof import prove

Array = npt.NDArray[Any]
Graph = Callable[..., onnx.ModelProto]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]
Folded = Callable[[onnx.ModelProto], FoldResult]

RELATIVE = 2e-5  # of the largest output: float32 noise of a few layers; a wrong fold is off by the size of a weight


@dataclass(frozen=True)
class Case:
    """A graph, what its fold holds, and a part of the one refusal (none when empty)."""

    name: str
    body: str
    weights: dict[str, Any]
    left: dict[str, int]
    refusal: str = ""
    data: str = "N, 4, 9, 10"
    output: str = "N, C, H, W"
    more: tuple[tuple[str, Any], ...] = ()


@pytest.fixture(scope="session")
def folded(execute: Execute) -> Folded:
    """Fold and check all that must hold of any fold."""

    def run(model: onnx.ModelProto) -> FoldResult:
        given_bytes = model.SerializeToString(deterministic=True)
        result = fold(model)
        assert model.SerializeToString(deterministic=True) == given_bytes, "the given model was changed"
        onnx.checker.check_model(result.model, full_check=True)
        _assert_same_contract(model, result.model)
        _assert_same_values(model, result.model, execute)
        again = fold(result.model)
        assert not again.folds
        assert _bytes(again.model) == _bytes(result.model), "not idempotent"
        assert _bytes(fold(model).model) == _bytes(result.model), "not deterministic"
        return result

    return run


def _bytes(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _assert_same_contract(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    assert [item.name for item in after.graph.output] == [item.name for item in before.graph.output]
    assert list(after.graph.input) == list(before.graph.input)
    assert [item.type.tensor_type.elem_type for item in after.graph.output] == [
        item.type.tensor_type.elem_type for item in before.graph.output
    ]
    if name := before.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        assert after.graph.output[0].type.tensor_type.shape.dim[0].dim_param == name
    assert after.opset_import == before.opset_import
    assert after.ir_version == before.ir_version
    assert after.metadata_props == before.metadata_props


def _assert_same_values(before: onnx.ModelProto, after: onnx.ModelProto, execute: Execute) -> None:
    dims = before.graph.input[0].type.tensor_type.shape.dim
    sizes = [[dim.dim_value or default for dim, default in zip(dims, (batch, 4, 9, 10), strict=False)] for batch in (1, 3)]
    for shape in sizes:
        data = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        for expected, got in zip(execute(before, data), execute(after, data), strict=True):
            assert expected.shape == got.shape
            assert np.abs(expected - got).max() <= RELATIVE * max(np.abs(expected).max(), 1e-3)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node))


def bn(name: str, channels: int = 8) -> dict[str, Any]:
    return {f"{part}{name}": (channels,) for part in ("gamma", "beta", "mean", "var")}


def normal(output: str, source: str, name: str, settings: str = "") -> str:
    return f"{output} = BatchNormalization{settings}({source}, gamma{name}, beta{name}, mean{name}, var{name})"


REFUSED_PADS = "borders would differ"
W3 = {"w3": (8, 4, 3, 3)}
SQUARE = {"w3": (4, 4, 3, 3), "w1": (4, 4, 1, 1)}

FIRES = [
    Case("conv, bn", f"t = Conv(data, w3)\n{normal('output', 't', 'a')}", W3 | bn("a"), {"Conv": 1}),
    Case(
        "conv with bias, strides, dilations, groups and uneven pads, bn with its own epsilon",
        "t = Conv<strides = [2, 1], dilations = [1, 2], pads = [0, 1, 2, 3], group = 2>(data, w, b)\n"
        + normal("output", "t", "a", "<epsilon = 0.3>"),
        {"w": (8, 2, 3, 2), "b": (8,)} | bn("a"),
        {"Conv": 1},
    ),
    Case("depthwise conv, bn", f"t = Conv<group = 4>(data, w)\n{normal('output', 't', 'a', '')}", {"w": (4, 1, 3, 3)} | bn("a", 4), {"Conv": 1}),
    Case("bn alone", normal("output", "data", "a"), bn("a", 4), {"Conv": 1}),
    Case("bn, unpadded conv", f"{normal('t', 'data', 'a')}\noutput = Conv(t, w3)", W3 | bn("a", 4), {"Conv": 1}),
    Case("bn, grouped conv", f"{normal('t', 'data', 'a')}\noutput = Conv<group = 2>(t, w)", {"w": (8, 2, 3, 3)} | bn("a", 4), {"Conv": 1}),
    Case(
        "3x3, 1x1 and identity branches, each with bn",
        "a = Conv<pads = [1, 1, 1, 1]>(data, w3)\n" + normal("ab", "a", "a") + "\nb = Conv(data, w1)\n" + normal("bb", "b", "b")
        + "\n" + normal("cb", "data", "c") + "\ns = Add(ab, bb)\nt = Add(s, cb)\noutput = Relu(t)",
        SQUARE | bn("a", 4) | bn("b", 4) | bn("c", 4),
        {"Conv": 1, "Relu": 1},
    ),
    Case(
        "1x3 and 3x1",
        "a = Conv<pads = [0, 1, 0, 1]>(data, wa)\nb = Conv<pads = [1, 0, 1, 0]>(data, wb)\nc = Conv<pads = [1, 1, 1, 1]>(data, wc)\n"
        "s = Add(a, b)\noutput = Add(c, s)",
        {"wa": (8, 4, 1, 3), "wb": (8, 4, 3, 1), "wc": (8, 4, 3, 3)},
        {"Conv": 1},
    ),
    Case(
        "depthwise 7x7 and 3x3 and the input itself",
        "a = Conv<pads = [3, 3, 3, 3], group = 4>(data, wa)\nb = Conv<pads = [1, 1, 1, 1], group = 4>(data, wb)\ns = Add(a, b)\noutput = Add(data, s)",
        {"wa": (4, 1, 7, 7), "wb": (4, 1, 3, 3)},
        {"Conv": 1},
    ),
    Case(
        "strided 3x3 and 1x1",
        "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(data, wa)\nb = Conv<strides = [2, 2]>(data, wb)\noutput = Add(a, b)",
        {"wa": (8, 4, 3, 3), "wb": (8, 4, 1, 1)},
        {"Conv": 1},
    ),
    Case(
        "average pool that counts its padding, beside a conv",
        "a = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(data)\n"
        "b = Conv<pads = [1, 1, 1, 1]>(data, w)\noutput = Add(a, b)",
        {"w": (4, 4, 3, 3)},
        {"Conv": 1},
    ),
    Case(
        "average pool without padding, then a scale",
        "t = AveragePool<kernel_shape = [3, 2], strides = [2, 2]>(data)\noutput = Mul(t, s)",
        {"s": (4, 1, 1)},
        {"Conv": 1},
    ),
    Case("layer scale and residual", "t = Conv(data, w)\nu = Mul(s, t)\noutput = Add(u, data)", {"w": (4, 4, 1, 1), "s": (4, 1, 1)}, {"Conv": 1}),
    Case("scalar scale", "t = Conv(data, w)\noutput = Mul(t, s)", {"w": (4, 4, 1, 1), "s": [0.5]}, {"Conv": 1}),
    Case("constant minus", "t = Conv(data, w)\noutput = Sub(s, t)", {"w": (4, 4, 1, 1), "s": (1, 4, 1, 1)}, {"Conv": 1}),
    Case("minus constant", "t = Conv(data, w)\noutput = Sub(t, s)", {"w": (4, 4, 1, 1), "s": (1, 4, 1, 1)}, {"Conv": 1}),
    Case("difference of branches", "a = Conv(data, wa)\nb = Conv(data, wb)\noutput = Sub(a, b)", {"wa": (8, 4, 1, 1), "wb": (8, 4, 1, 1)}, {"Conv": 1}),
    Case("divided by a constant", "t = Conv(data, w)\noutput = Div(t, s)", {"w": (4, 4, 1, 1), "s": [[[2.0]], [[-3.0]], [[4.0]], [[0.5]]]}, {"Conv": 1}),
    Case("dropout and identity between", f"t = Conv(data, w3)\nu = Identity(t)\nv, mask = Dropout(u)\n{normal('output', 'v', 'a')}", W3 | bn("a"), {"Conv": 1}),
    Case("identity writes the output", f"t = Conv(data, w3)\n{normal('u', 't', 'a')}\noutput = Identity(u)", W3 | bn("a"), {"Conv": 1}),
    Case(
        "weights in Constant nodes",
        "w = Constant<value = float[2, 4, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8}>()\ns = Constant<value = float[2, 1, 1] {2, 3}>()\n"
        "t = Conv(data, w)\noutput = Mul(t, s)",
        {},
        {"Conv": 1},
    ),
    Case("auto_pad VALID", f"t = Conv<auto_pad = \"VALID\">(data, w3)\n{normal('output', 't', 'a')}", W3 | bn("a"), {"Conv": 1}),
    Case(
        "two 1x1 convolutions that narrow",
        "t = Conv(data, wa)\noutput = Conv(t, wb)",
        {"wa": (8, 4, 1, 1), "wb": (4, 8, 1, 1)},
        {"Conv": 1},
    ),
    Case(
        "a scale joins the convolution before it, not the one after",
        f"t = Conv<group = 4>(data, wa)\n{normal('u', 't', 'a')}\noutput = Conv(u, wb)",
        {"wa": (4, 1, 3, 3), "wb": (8, 4, 1, 1)} | bn("a", 4),
        {"Conv": 2},
        "one 3x3 convolution in place of 2 nodes",
    ),
]  # fmt: skip

FLAT = [
    Case("bn, gemm", f"{normal('t', 'data', 'a')}\noutput = Gemm<transB = 1>(t, w, b)", {"w": (8, 5), "b": (8,)} | bn("a", 5), {"Gemm": 1}),
    Case("gemm, bn", f"t = Gemm(data, w, b)\n{normal('output', 't', 'a')}", {"w": (5, 8), "b": (1, 8)} | bn("a"), {"Gemm": 1}),
    Case("alpha and beta", f"t = Gemm<alpha = 0.5, beta = 3.0>(data, w, b)\n{normal('output', 't', 'a')}", {"w": (5, 8), "b": (1,)} | bn("a"), {"Gemm": 1}),
    Case(
        "two averaged heads",
        f"{normal('a', 'data', 'a')}\nb = Gemm<transB = 1>(a, wa, ba)\n{normal('c', 'data', 'c')}\nd = Gemm<transB = 1>(c, wc, bc)\n"
        "s = Add(b, d)\noutput = Div(s, two)",
        {"wa": (8, 5), "ba": (8,), "wc": (8, 5), "bc": (8,), "two": [2.0]} | bn("a", 5) | bn("c", 5),
        {"Gemm": 1},
    ),
    Case("linear residual", "t = Gemm(data, w, b)\noutput = Add(data, t)", {"w": (5, 5), "b": (5,)}, {"Gemm": 1}),
    Case("bn of a vector alone", normal("output", "data", "a"), bn("a", 5), {"BatchNormalization": 1}, "no cheaper operator"),
    Case("scale and bn of a vector", f"t = Mul(data, s)\n{normal('output', 't', 'a')}", {"s": (5,)} | bn("a", 5), {"Mul": 1, "BatchNormalization": 1}, "no cheaper operator"),
    Case(
        "a bias for each row",
        f"t = Gemm(data, w, b)\n{normal('output', 't', 'a')}",
        {"w": (5, 3), "b": (3, 1)} | bn("a", 3),
        {"Gemm": 1, "BatchNormalization": 1},
        "not one number for each output",
        "3, 5",
    ),
    Case("gemm of a transposed input", f"t = Gemm<transA = 1>(data, w)\n{normal('output', 't', 'a')}", {"w": (5, 8)} | bn("a"), {"Gemm": 1, "BatchNormalization": 1}, "transposed", "5, 3"),
]  # fmt: skip

REFUSES = [
    Case("bn, padded conv", f"{normal('t', 'data', 'a')}\noutput = Conv<pads = [1, 1, 1, 1]>(t, w3)", W3 | bn("a", 4), {"Conv": 2}, REFUSED_PADS),
    Case("conv, padded conv", "t = Conv(data, wa)\noutput = Conv<pads = [1, 1, 1, 1]>(t, wb)", {"wa": (4, 4, 3, 3), "wb": (4, 4, 3, 3)}, {"Conv": 2}, REFUSED_PADS),
    Case(
        "conv with a second reader",
        f"t = Conv(data, w)\n{normal('u', 't', 'a')}\nv = Relu(t)\noutput = Mul(u, v)",
        {"w": (4, 4, 1, 1)} | bn("a", 4),
        {"Conv": 2, "Relu": 1, "Mul": 1},
    ),
    Case(
        "one weight, two convolutions",
        f"t = Conv(data, w)\n{normal('u', 't', 'a')}\nv = Relu(u)\noutput = Conv(v, w)",
        {"w": (4, 4, 1, 1)} | bn("a", 4),
        {"Conv": 3, "Relu": 1},
        "shared with 1 other reader",
    ),
    Case(
        "auto_pad SAME",
        f"t = Conv<auto_pad = \"SAME_UPPER\">(data, w3)\n{normal('u', 't', 'a')}\noutput = Relu(u)",
        W3 | bn("a"),
        {"Conv": 2, "Relu": 1},
        "decided at run time",
    ),
    Case(
        "average pool that leaves its padding out",
        "a = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 0>(data)\n"
        "b = Conv<pads = [1, 1, 1, 1]>(data, w)\noutput = Add(a, b)",
        {"w": (4, 4, 3, 3)},
        {"AveragePool": 1, "Conv": 1, "Add": 1},
        "count_include_pad=0",
    ),
    Case("sum of different strides", "a = Conv<pads=[1,1,1,1], strides=[2,2]>(data, wa)\nb = Conv<strides=[2,1]>(data, wb)\nc = GlobalAveragePool(a)\noutput = Add(b, c)",
         {"wa": (4, 4, 3, 3), "wb": (4, 4, 1, 1)}, {"Conv": 2, "GlobalAveragePool": 1, "Add": 1}),
    Case("sum that broadcasts a single pixel", "a = Conv(data, wa)\nb = Conv(data, wb)\noutput = Add(a, b)", {"wa": (4, 4, 9, 10), "wb": (4, 4, 1, 1)}, {"Conv": 2, "Add": 1}, "different sizes"),
    Case("sum that broadcasts channels", "a = Conv(data, wa)\nb = Conv(data, wb)\noutput = Add(a, b)", {"wa": (1, 4, 1, 1), "wb": (4, 4, 1, 1)}, {"Conv": 2, "Add": 1}, "channels do not add"),
    Case("training mode", "output, m, v = BatchNormalization<training_mode = 1>(data, gammaa, betaa, meana, vara)", bn("a", 4), {"BatchNormalization": 1}, "training mode"),
]  # fmt: skip

UNCHANGED = [
    Case("one convolution", "output = Conv(data, w3)", W3, {"Conv": 1}),
    Case("conv, relu, conv", "t = Conv(data, wa)\nu = Relu(t)\noutput = Conv(u, wb)", {"wa": (4, 4, 1, 1), "wb": (4, 4, 1, 1)}, {"Conv": 2, "Relu": 1}),
    Case("product of activations", "a = Sigmoid(data)\noutput = Mul(a, data)", {}, {"Sigmoid": 1, "Mul": 1}),
    Case("constant over constant scale", "t = Conv(data, w)\noutput = Div(s, t)", {"w": (4, 4, 1, 1), "s": [2.0]}, {"Conv": 1, "Div": 1}),
    Case("a map that varies over pixels", "t = Conv(data, w)\noutput = Add(t, s)", {"w": (4, 4, 1, 1), "s": (1, 1, 9, 10)}, {"Conv": 1, "Add": 1}),
    Case("a constant that widens the channels", "t = Mul(data, s)\noutput = Conv(t, w)", {"s": (1, 4, 1, 1), "w": (4, 4, 1, 1)}, {"Mul": 1, "Conv": 1}, "", "N, 1, 9, 10"),
    Case("a tensor added to itself", "t = Conv(data, w)\noutput = Add(t, t)", {"w": (4, 4, 1, 1)}, {"Conv": 1, "Add": 1}),
    Case("a tensor minus itself", "t = Conv(data, w)\noutput = Sub(t, t)", {"w": (4, 4, 1, 1)}, {"Conv": 1, "Sub": 1}),
    Case("average pool of rounded-up size", "t = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(data)\noutput = Mul(t, s)", {"s": (4, 1, 1)}, {"AveragePool": 1, "Mul": 1}),
]  # fmt: skip


def check(case: Case, graph: Graph, folded: Folded, **more: Any) -> FoldResult:
    model = graph(case.body, case.weights, case.data, case.output, **{**dict(case.more), **more})
    result = folded(model)
    assert operators(result.model) == case.left
    reasons = [refusal.reason for refusal in result.refusals]
    if case.refusal:
        assert any(case.refusal in reason for reason in reasons), reasons
        assert all(
            refusal.node in {node.name for node in result.model.graph.node} | {node.name for node in model.graph.node}
            for refusal in result.refusals
        )
    return result


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", FIRES, ids=by_name)
def test_fires(case: Case, graph: Graph, folded: Folded) -> None:
    result = check(case, graph, folded)
    assert result.folds
    assert all(one.macs_after <= one.macs_before for one in result.folds)
    assert case.refusal or not result.refusals


@pytest.mark.parametrize("case", FLAT, ids=by_name)
def test_vectors(case: Case, graph: Graph, folded: Folded) -> None:
    data = "N, 5" if case.data.count(",") > 1 else case.data
    made = Case(**{**vars(case), "data": data, "output": "N, C" if data.startswith("N") else "A, C"})
    result = check(made, graph, folded)
    assert bool(result.folds) != bool(case.refusal)


@pytest.mark.parametrize("case", REFUSES, ids=by_name)
def test_refuses(case: Case, graph: Graph, folded: Folded) -> None:
    check(case, graph, folded)


@pytest.mark.parametrize("case", UNCHANGED, ids=by_name)
def test_unchanged(case: Case, graph: Graph, folded: Folded) -> None:
    result = check(case, graph, folded)
    assert not result.folds
    assert not result.refusals


@pytest.mark.parametrize("opset", range(11, 21))
def test_every_opset(opset: int, graph: Graph, folded: Folded) -> None:
    case = next(case for case in FIRES if case.name == "dropout and identity between")
    check(case, graph, folded, opset=opset)


def test_the_refusal_of_a_costlier_map_names_both_costs(graph: Graph, folded: Folded) -> None:
    body = "t = Conv(data, wa)\noutput = Conv<group = 16>(t, wb)"
    result = folded(graph(body, {"wa": (16, 4, 1, 1), "wb": (16, 1, 3, 3)}))
    assert operators(result.model) == {"Conv": 2}
    (refusal,) = result.refusals
    assert refusal.node == "Conv_1"
    assert "would take 576 MACs for each input pixel and 576 weights; they take 208 and 208" in refusal.reason


def test_weights_that_a_caller_may_replace_are_not_folded(graph: Graph) -> None:
    body = f"t = Conv(data, w)\n{normal('output', 't', 'a')}"
    model = graph(body, {"w": (4, 4, 1, 1)} | bn("a", 4), inputs=["float[4, 4, 1, 1] w"])
    result = fold(model)
    assert {node.op_type for node in result.model.graph.node} == {"Conv"}
    assert result.model.graph.node[0].input[1] == "w"
    assert "not constant (a graph input or computed)" in result.refusals[0].reason
    assert [item.name for item in result.model.graph.input] == ["data", "w"]


def test_a_tensor_that_is_an_output_stays(graph: Graph, folded: Folded) -> None:
    body = f"t = Conv(data, w)\n{normal('output', 't', 'a')}"
    result = folded(graph(body, {"w": (4, 4, 1, 1)} | bn("a", 4), outputs=", float[N, C, H, W] t"))
    assert operators(result.model) == {"Conv": 2}


def test_other_ranks_are_refused_in_words(graph: Graph, folded: Folded) -> None:
    one = folded(graph(normal("output", "data", "a"), bn("a", 4), "N, 4, 9", "N, C, L"))
    assert not one.folds
    assert "rank 3" in one.refusals[0].reason
    body = f"t = Conv(data, w)\n{normal('output', 't', 'a')}"
    two = folded(graph(body, {"w": (8, 4, 3)} | bn("a"), "N, 4, 9", "N, C, L"))
    assert not two.folds
    assert any("1-D convolution" in refusal.reason for refusal in two.refusals)
    pool = "output = AveragePool<kernel_shape = [3], pads = [1, 1]>(data)"
    assert not folded(graph(pool, {}, "N, 4, 9", "N, C, L")).folds


def test_before_opset_14_a_second_output_means_training(graph: Graph) -> None:
    body = "t = Conv(data, w)\noutput, m, v, n, u = BatchNormalization(t, gammaa, betaa, meana, vara)"
    result = fold(graph(body, {"w": (4, 4, 1, 1)} | bn("a", 4), opset=13))
    assert not result.folds
    assert "training mode" in result.refusals[0].reason


def test_a_scale_between_two_layers_joins_the_first(graph: Graph, folded: Folded) -> None:
    """The layer behind it keeps its weights to the bit: a scale of input channels is what INT8 weights cannot absorb."""
    body = f"t = Conv<group = 4>(data, wa)\n{normal('u', 't', 'a')}\noutput = Conv(u, wb)"
    model = graph(body, {"wa": (4, 1, 3, 3), "wb": (8, 4, 1, 1)} | bn("a", 4))
    after = folded(model).model
    first, second = after.graph.node
    assert (len(first.input), len(second.input)) == (3, 2)
    was, kept = (next(item for item in one.graph.initializer if item.name == "wb") for one in (model, after))
    assert np.array_equal(numpy_helper.to_array(was), numpy_helper.to_array(kept))


def test_a_weight_cast_between_two_passes_is_allowed_for(graph: Graph) -> None:
    """The sum of two branches is cast in the first pass, then meets a layer whose rows nearly cancel in it."""
    random = np.random.default_rng(0)
    row, large, small = random.standard_normal(4), random.standard_normal((4, 1)), random.standard_normal((4, 4)) / 64
    weights = {
        "wa": np.outer([1, 1.0001, 1, 1.0001], row).reshape(4, 4, 1, 1),
        "wb": (large * [1, -1, 1, -1]).reshape(4, 4, 1, 1),
        "wc": (small - small.mean(1, keepdims=True) * [1, 1, 1, 1]).reshape(4, 4, 1, 1),
    }
    model = graph("t = Conv(data, wa)\na = Conv(t, wb)\nb = Conv(t, wc)\noutput = Add(a, b)", weights)
    result = fold(model)
    assert len(result.folds) == 2
    assert prove(model, result.model, [one.output for one in result.folds])[0].ratio <= 1
    with pytest.raises(CertificateError):
        prove(model, result.model, ["output"])


def test_integers_are_left_alone(graph: Graph) -> None:
    body = "two = Constant<value = int64 {2}>()\ni = Cast<to = 7>(data)\nj = Mul(i, two)\nk = Add(j, two)\noutput = Cast<to = 1>(k)"
    assert not fold(graph(body, {}, "N, 4", "N, 4")).folds


def test_a_quantised_graph_is_an_input_error(graph: Graph) -> None:
    body = "q = QuantizeLinear(data, s)\noutput = DequantizeLinear(q, s)"
    with pytest.raises(InputError, match="quantised already"):
        fold(graph(body, {"s": [0.5]} | {}))


def test_names_that_are_taken_are_not_taken_again(graph: Graph, folded: Folded) -> None:
    """The fold's own name for a bias is already a tensor of this graph."""
    body = f"t = Conv(data, w)\n{normal('w.folded_bias', 't', 'a')}\noutput = Relu(w.folded_bias)"
    model = graph(body.replace("w.folded_bias", "taken"), {"w": (4, 4, 1, 1)} | bn("a", 4))
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "w.folded_bias"
    result = folded(model)
    assert operators(result.model) == {"Conv": 1, "Relu": 1}


def test_a_bias_is_written_only_where_there_is_one(graph: Graph, folded: Folded) -> None:
    """A scale in front of a layer without a bias costs nothing; a BatchNorm always brings one."""
    scale = folded(graph("t = Mul(data, s)\noutput = Conv(t, w)", {"s": [0.5], "w": (4, 4, 1, 1)})).model
    assert len(scale.graph.node[0].input) == 2
    still = {**bn("a", 4), "betaa": [0.0] * 4, "meana": [0.0] * 4}
    fresh = folded(graph(f"t = Conv(data, w)\n{normal('output', 't', 'a')}", {"w": (4, 4, 1, 1)} | still)).model
    assert len(fresh.graph.node[0].input) == 3


# --- random graphs --------------------------------------------------------------------------------------------------------


class Builder:
    """A random graph in the making; `random` draws its values, hypothesis its structure."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.numbers = itertools.count()

    def constant(self, values: Array) -> str:
        name = f"c{next(self.numbers)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"t{next(self.numbers)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def model(self, output: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Flatten", [output], ["output"]))
        data = helper.make_tensor_value_info("data", 1, ["N", 4, 9, 10])
        result = helper.make_tensor_value_info("output", 1, ["N", "K"])
        graph = helper.make_graph(self.nodes, "g", [data], [result], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass(frozen=True)
class At:
    """A tensor and its [channels, height, width]."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def conv(draw: st.DrawFn, build: Builder, at: At, stride: int) -> At:
    groups, out = draw(st.sampled_from([(1, 4), (1, 4), (1, 2), (2, 4), (at.channels, at.channels)]))
    groups = groups if at.channels % groups == 0 else 1
    k, d = [draw(st.sampled_from([1, 1, 2, 3])) for _ in "hw"], [draw(st.sampled_from([1, 1, 2])) for _ in "hw"]
    spans = [(k[a] - 1) * d[a] for a in (0, 1)]
    same = draw(st.booleans())
    before = [draw(st.integers(0, spans[a])) for a in (0, 1)]
    pads = [*before, spans[0] - before[0], spans[1] - before[1]] if same else [draw(st.sampled_from([0, 1])) for _ in range(4)]
    height, width = ((side + pads[a] + pads[a + 2] - spans[a] - 1) // stride + 1 for a, side in enumerate((at.height, at.width)))
    if min(height, width) < 1:
        return at
    inputs = [at.name, build.constant(build.random.standard_normal((out, at.channels // groups, *k)))]
    if draw(st.booleans()):
        inputs.append(build.constant(build.random.standard_normal(out)))
    name = build.node("Conv", inputs, pads=pads, strides=[stride] * 2, dilations=d, group=groups)
    return At(name, out, height, width)


def per_channel(draw: st.DrawFn, build: Builder, at: At) -> At:
    kind, values = draw(st.sampled_from(["BatchNormalization", "Mul", "Add", "Sub"])), build.random
    if kind == "BatchNormalization":
        rest = [build.constant(values.standard_normal(at.channels)) for _ in range(3)]
        rest.append(build.constant(values.uniform(0.2, 2, at.channels)))
        return At(build.node(kind, [at.name, *rest]), *at.size)
    inputs = [at.name, build.constant(values.standard_normal((at.channels, 1, 1)))]
    return At(build.node(kind, inputs[:: draw(st.sampled_from([1, -1]))]), *at.size)


def pool(draw: st.DrawFn, build: Builder, at: At) -> At:
    counted = draw(st.integers(0, 1))
    if min(at.height, at.width) < 2:
        return at
    name = build.node("AveragePool", [at.name], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=counted)
    return At(name, *at.size)


def chain(draw: st.DrawFn, build: Builder, at: At, depth: int) -> At:
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["conv", "conv", "scale", "scale", "pool", "branches", "relu"]))
        if kind == "conv":
            at = conv(draw, build, at, draw(st.sampled_from([1, 1, 1, 2])))
        elif kind == "scale":
            at = per_channel(draw, build, at)
        elif kind == "pool":
            at = pool(draw, build, at)
        elif kind == "relu":
            at = At(build.node("Relu", [at.name]), *at.size) if draw(st.integers(0, 3)) == 0 else at
        elif depth:
            at = branches(draw, build, at, depth - 1)
    return at


def branches(draw: st.DrawFn, build: Builder, at: At, depth: int) -> At:
    """Two to six branches from one tensor; those of the first one's size are summed, the rest are dead."""
    ends = [chain(draw, build, at, depth) for _ in range(draw(st.integers(2, 6)))]
    total = ends[0]
    for end in ends[1:]:
        if end.size == total.size:
            pair = [total.name, end.name][:: draw(st.sampled_from([1, -1]))]
            total = At(build.node(draw(st.sampled_from(["Add", "Add", "Sub"])), pair), *total.size)
    return total


@st.composite
def linear_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    build = Builder(draw(st.integers(0, 2**32 - 1)))
    at = branches(draw, build, At("data", 4, 9, 10), 1)
    return build.model(chain(draw, build, at, 0).name)


@given(model=linear_graphs())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_linear_graphs_never_fold_wrongly(model: onnx.ModelProto, execute: Execute) -> None:
    result = fold(model)
    onnx.checker.check_model(result.model, full_check=True)
    data = np.random.default_rng(7).standard_normal((2, 4, 9, 10)).astype(np.float32)
    (expected,), (got,) = execute(model, data), execute(result.model, data)
    assert expected.shape == got.shape
    assert np.abs(expected - got).max(initial=0) <= 1e-4 * max(np.abs(expected).max(initial=0), 1)
    prove(model, result.model, [one.output for one in result.folds])  # raises when it finds a true fold wrong
    again = fold(result.model)
    assert not again.folds
    assert _bytes(again.model) == _bytes(result.model)
    assert all(one.macs_after <= one.macs_before for one in result.folds)


def test_random_linear_graphs_do_fold(graph: Graph, folded: Folded) -> None:
    """The random graphs above are worth their name: a fixed one of their kind has folds on two levels."""
    body = (
        "a = Conv<pads = [1, 1, 1, 1]>(data, wa)\nb = Mul(data, s)\nc = Add(a, b)\nd = Conv(c, wb)\ne = Add(c, d)\n"
        + normal("f", "e", "a")
        + "\noutput = Add(f, data)"
    )
    result = folded(graph(body, {"wa": (4, 4, 3, 3), "wb": (4, 4, 1, 1), "s": (4, 1, 1)} | bn("a", 4)))
    assert operators(result.model) == {"Conv": 1}
