"""Placements on hand-made graphs: which nodes run in INT8, and which tensors are quantised for them."""

from __future__ import annotations

import numpy as np
import onnx

from repzoo.quant.place import Placement, candidates, placement

WEIGHTS = {
    "w": (8, 8, 3, 3),
    "wide": (64, 64, 1, 1),
    "deep": (8, 1, 3, 3),
    "b": (8,),
    "gemm": (10, 8),
    "one": (1,),
}


def graph(body: str, output: str = "float[N, 8, H, W] y", channels: int = 8) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, {channels}, 8, 8] x) => ({output}) {{ {body} }}"""
    )
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in WEIGHTS.items() if name in read
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def everything(model: onnx.ModelProto) -> Placement:
    return next(one for one in candidates(model) if one.name == "everything")


def test_a_fused_activation_is_quantised_once_after_it() -> None:
    model = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) y = Conv <pads = [1, 1, 1, 1]> (r, w)")
    assert everything(model).tensors == ("x", "r")
    assert everything(model).nodes == {"a", "y"}


def test_an_activation_with_another_reader_before_it_is_not_fused() -> None:
    model = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (a) y = Mul (a, r)")
    assert everything(model).tensors == ("x", "a")


def test_a_swish_is_not_fused() -> None:
    model = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Sigmoid (a) y = Mul (a, s)")
    assert everything(model).tensors == ("x", "a")


def test_the_graphs_output_is_never_quantised() -> None:
    model = graph("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)")
    assert [one.tensors for one in candidates(model)] == [("x",)]
    fused = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu (a)")
    assert [one.tensors for one in candidates(fused)] == [("x",)]


def test_an_addition_of_activations_is_quantised_and_one_of_a_constant_is_not() -> None:
    both = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Add (a, x) y = Conv <pads = [1, 1, 1, 1]> (s, w)")
    assert everything(both).nodes == {"a", "s", "y"}
    assert everything(both).tensors == ("x", "a", "s")
    constant = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Add (a, one) y = Conv <pads = [1, 1, 1, 1]> (s, w)")
    assert everything(constant).nodes == {"a", "y"}
    assert everything(constant).tensors == ("x", "a", "s")
    node = graph(
        "c = Constant <value = float {1}> () a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Add (a, c) z = Relu (s)"
        " y = Conv <pads = [1, 1, 1, 1]> (z, w)"
    )
    assert everything(node).nodes == {"a", "y"}


def test_each_next_candidate_leaves_more_in_float() -> None:
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1], group = 8> (x, deep) c = Conv <pads = [1, 1, 1, 1]> (a, w)"
        " k = Concat <axis = 1> (c, c, c, c, c, c, c, c) y = Conv (k, wide)",
        "float[N, 64, H, W] y",
    )
    found = {one.name: one for one in candidates(model)}
    assert list(found) == ["everything", "dense", "dense, 32+ channels"]  # 64+ would write the same, 128+ nothing
    assert found["everything"].nodes == {"a", "c", "k", "y"}
    assert found["dense"].nodes == {"c", "y"}
    assert found["dense"].tensors == ("a", "c", "k")
    assert found["dense, 32+ channels"].nodes == {"y"}
    assert found["dense, 32+ channels"].tensors == ("k",)


def test_computed_shapes_are_never_quantised() -> None:
    """A view(x.size(0), -1) of PyTorch: Shape, Gather and Concat of int64 beside the Reshape of floats."""
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) p = GlobalAveragePool (a)"
        " i = Constant <value_int = 0> () s = Shape (p) n = Gather (s, i) axes = Constant <value_ints = [0]> ()"
        " u = Unsqueeze (n, axes) m = Constant <value_ints = [-1]> () shape = Concat <axis = 0> (u, m) twice = Add (shape, shape)"
        " half = Div (twice, two) f = Reshape (p, shape) y = Gemm <transB = 1> (f, gemm)".replace(" half = Div (twice, two)", ""),
        "float[N, 10] y",
    )
    found = everything(model)
    assert found.nodes == {"a", "p", "f", "y"}
    assert found.tensors == ("x", "a", "p", "f")


def test_a_layer_with_computed_weights_stays_float() -> None:
    assert candidates(graph("k = Relu (w) y = Conv <pads = [1, 1, 1, 1]> (x, k)")) == []


def test_a_gemm_that_scales_or_transposes_its_input_stays_float() -> None:
    for attributes in ("transB = 1, alpha = 0.5", "transB = 1, beta = 2.0"):
        model = graph(f"p = GlobalAveragePool (x) f = Flatten (p) y = Gemm <{attributes}> (f, gemm, one)", "float[N, 10] y")
        assert all("y" not in one.nodes for one in candidates(model))


def test_a_placement_by_hand_quantises_what_its_nodes_touch() -> None:
    model = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (r, w) y = Relu (c)")
    assert placement(model, "last", ["c"]).tensors == ("r",)
    assert placement(model, "first", ["a"]).tensors == ("x", "r")
    assert placement(model, "none", []).tensors == ()
