"""Float32 graphs in half precision: known answers, types, and what stays in float32."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from repzoo.engines import engine
from repzoo.errors import MissingExtra
from repzoo.graph.tools.half_precision import (
    BFLOAT16,
    FLOAT16,
    plan_half,
    write_half,
    write_rounded,
)

Array = npt.NDArray[Any]
HEAD = '<ir_version: 8, opset_import: ["" : {opset}]> g (float[N, 4] x) => ({out} y) '
RANDOM = np.random.default_rng(0)
SQUARE = RANDOM.standard_normal((4, 4)).astype(np.float32)


def graph(
    body: str, opset: int = 17, out: str = "float[N, 4]", **constants: Array
) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD.format(opset=opset, out=out) + body)
    for name, values in constants.items():
        item = numpy_helper.from_array(np.asarray(values), name)
        model.graph.initializer.append(item)
    return model


def images(count: int = 3) -> Array:
    return RANDOM.standard_normal((count, 4)).astype(np.float32)


def half(model: onnx.ModelProto, *kept: str) -> onnx.ModelProto:
    """`model` in float16, checked: its ends keep their types."""
    written = write_half(model, plan_half(model, kept))
    onnx.checker.check_model(written, full_check=True)
    assert written.graph.input == model.graph.input
    assert written.graph.output == model.graph.output
    return written


def run(model: onnx.ModelProto, inputs: Array) -> Array:
    return engine("onnxruntime").open(model).run(inputs)


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    found = []
    for node in model.graph.node:
        if node.op_type == "Cast":
            found.append((node.input[0], node.output[0]))
    return found


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    found = {item.name: item.type.tensor_type.elem_type for item in values}
    found.update((item.name, item.data_type) for item in inferred.initializer)
    return found


CHAIN = "{ a = Add (x, b)\n c = Mul (a, a)\n y = Sub (c, x) }"


def test_the_rounded_graph_computes_what_numpy_computes_in_float16() -> None:
    bias = np.array([0.1, 1e-9, 3.0, 300.0], np.float32)
    model = graph(CHAIN, b=bias)
    inputs = images()
    x, b = inputs.astype(np.float16), bias.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = (x + b) * (x + b) - x
    assert np.isinf(expected).any()
    rounded = write_rounded(model, plan_half(model))
    onnx.checker.check_model(rounded, full_check=True)
    np.testing.assert_array_equal(run(rounded, inputs), expected.astype(np.float32))


def test_bfloat16_has_the_range_of_float32() -> None:
    bias = np.array([0.1, 1e-9, 3.0, 300.0], np.float32)
    model = graph(CHAIN, opset=22, b=bias)
    rounded = write_rounded(model, plan_half(model, half=BFLOAT16))
    outputs = run(rounded, images())
    assert np.isfinite(outputs).all()
    assert outputs[:, 3] == pytest.approx(9e4, rel=0.05)
    written = write_half(model, plan_half(model, half=BFLOAT16))
    onnx.checker.check_model(written, full_check=True)
    assert types(written)["c"] == TensorProto.BFLOAT16


def test_there_is_one_cast_at_each_end() -> None:
    model = graph("{ a = MatMul (x, w)\n b = Relu (a)\n y = Add (b, x) }", w=SQUARE)
    written = half(model)
    assert casts(written) == [("x", "x:float16"), ("y:float16", "y")]
    assert types(written)["a"] == TensorProto.FLOAT16
    assert [item.data_type for item in written.graph.initializer] == [
        TensorProto.FLOAT16
    ]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "mnn", "reference"])
def test_every_engine_runs_it(name: str) -> None:
    try:
        runner = engine(name)
    except MissingExtra as error:
        pytest.skip(str(error))
    body = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 3, 8, 8] x) => (float[1, 5] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        s = Div (a, root) e = Erf (s) t = Add (e, one) h = Mul (a, t) gelu = Mul (h, half)
        p = GlobalAveragePool (gelu) q = Conv (p, se) gate = Sigmoid (q)
        b = Mul (gelu, gate) c = GlobalAveragePool (b) f = Flatten (c)
        n = LayerNormalization (f, scale, shift) y = Gemm <transB = 1> (n, fc) }"""
    model = onnx.parser.parse_model(body)
    values = {
        "w": RANDOM.standard_normal((6, 3, 3, 3)),
        "se": RANDOM.standard_normal((6, 6, 1, 1)),
        "fc": RANDOM.standard_normal((5, 6)),
        "root": np.sqrt(2.0),
        "one": 1.0,
        "half": 0.5,
        "scale": np.ones(6),
        "shift": np.zeros(6),
    }
    for key, value in values.items():
        item = numpy_helper.from_array(np.asarray(value, np.float32), key)
        model.graph.initializer.append(item)
    inputs = RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)
    expected = engine("onnxruntime").open(model).run(inputs)
    outputs = runner.open(half(model)).run(inputs)
    np.testing.assert_allclose(outputs, expected, atol=0.03)


OVERFLOW = "{ a = MatMul (x, up)\n b = Relu (a)\n y = MatMul (b, down) }"


def test_between_nodes_kept_in_float32_nothing_is_rounded() -> None:
    up, down = SQUARE * 1e5, SQUARE / 1e5
    model = graph(OVERFLOW, up=up, down=down)
    inputs = images()
    mutant = write_rounded(model, plan_half(model, ["a"]))
    assert not np.isfinite(run(mutant, inputs)).all()
    kept = ("a", "b", "y")
    for written in (half(model, *kept), write_rounded(model, plan_half(model, kept))):
        assert casts(written) == []
        np.testing.assert_array_equal(run(written, inputs), run(model, inputs))


def test_a_weight_that_both_sides_read_is_stored_twice() -> None:
    model = graph("{ a = MatMul (x, w)\n y = MatMul (a, w) }", w=SQUARE)
    written = half(model, "y")
    stored = {
        item.name: numpy_helper.to_array(item) for item in written.graph.initializer
    }
    np.testing.assert_array_equal(stored["w"], SQUARE)
    np.testing.assert_array_equal(stored["w:float16"], SQUARE.astype(np.float16))
    assert casts(written) == [("x", "x:float16"), ("a", "a:float32")]


BRANCHES = """{ r = Relu (x)
    s = ReduceMax <keepdims = 0> (r)
    c = Greater (s, zero)
    b = If (c) <
        then_branch = t () => (float[N, 4] p) { p = MatMul (r, w) },
        else_branch = e () => (float[N, 4] q) { q = Neg (r) }
    >
    y = Relu (b) }"""


def test_subgraphs_stay_in_float32_and_read_a_cast() -> None:
    model = graph(BRANCHES, w=SQUARE, zero=np.array(0, np.float32))
    plan = plan_half(model)
    assert plan.unsupported == {"b": "it holds subgraphs"}
    written = half(model)
    assert ("r", "r:float32") in casts(written)
    assert {item.name for item in written.graph.initializer} == {"w", "zero:float16"}
    inputs = images()
    np.testing.assert_allclose(run(written, inputs), run(model, inputs), atol=0.01)


def test_what_a_schema_has_in_float32_only_stays() -> None:
    body = """<ir_version: 8, opset_import: ["" : 13]>
        g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) {
        y = Resize <mode = "nearest"> (x, , scales) }"""
    model = onnx.parser.parse_model(body)
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    model.graph.initializer.append(scales)
    written = half(model)
    assert written.graph.node[1].input[2] == "scales"
    assert types(written)["y:float16"] == TensorProto.FLOAT16


def test_sizes_are_computed_as_they_were() -> None:
    body = """{ s = Shape (x) f = Cast <to = 1> (s) g = Mul (f, two) i = Cast <to = 7> (g)
        e = Expand (x, i) y = Relu (e) }"""
    model = graph(body, out="float[M, K]", two=np.array([1, 1], np.float32))
    written = half(model)
    assert types(written)["g"] == TensorProto.FLOAT
    inputs = RANDOM.standard_normal((2051, 4)).astype(np.float32)
    # 2051 is no float16 number.
    assert len(run(written, inputs)) == 2051


def test_a_cameras_bytes_become_float16_at_once() -> None:
    body = """<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[N, 4] x) => (float[N, 4] y) {
        f = Cast <to = 1> (x) y = MatMul (f, w) }"""
    model = onnx.parser.parse_model(body)
    model.graph.initializer.append(numpy_helper.from_array(SQUARE, "w"))
    written = half(model)
    assert casts(written) == [("x", "f"), ("y:float16", "y")]
    assert types(written)["f"] == TensorProto.FLOAT16
    # What follows an integer that may be large stays.
    body = body.replace("uint8[N", "int32[N")
    wide = onnx.parser.parse_model(body)
    wide.graph.initializer.append(numpy_helper.from_array(SQUARE, "w"))
    assert casts(half(wide)) == [("x", "f"), ("f", "f:float16"), ("y:float16", "y")]


def test_bounds_beyond_the_range_are_the_ends_of_it() -> None:
    largest = np.array(np.finfo(np.float32).max, np.float32)
    model = graph(
        "{ y = Clip (x, low, high) }", low=np.array(0, np.float32), high=largest
    )
    inputs = images()
    np.testing.assert_allclose(
        run(half(model), inputs), np.maximum(inputs, 0), atol=1e-3
    )
    # Infinity stays what it is: masks of attention hold it.
    endless = FLOAT16.round(np.array([np.inf, -np.inf, 1e6], np.float32))
    assert endless.tolist() == [np.inf, -np.inf, 65504.0]


def test_operators_of_other_domains_are_named() -> None:
    model = graph("{ a = other.Odd (x)\n y = Relu (a) }")
    model.opset_import.append(onnx.helper.make_opsetid("other", 1))
    plan = plan_half(model)
    assert plan.unsupported["a"] == "it is of the domain other"
    assert not plan.inputs.get("a")


def test_a_network_keeps_its_operators() -> None:
    model = graph("{ a = MatMul (x, w)\n b = Sigmoid (a)\n y = Mul (a, b) }", w=SQUARE)
    before = Counter(node.op_type for node in model.graph.node)
    after = Counter(node.op_type for node in half(model).graph.node)
    assert after - before == Counter({"Cast": 2})
