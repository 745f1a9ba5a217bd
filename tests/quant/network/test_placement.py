"""Placements on hand-made graphs: which nodes run in INT8, and which tensors are quantized for
them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from tests.quant.placements import candidates, placement

from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.network.scheme import load_scheme

WEIGHTS = {
    "w": (8, 8, 3, 3),
    "wide": (64, 64, 1, 1),
    "deep": (8, 1, 3, 3),
    "b": (8,),
    "gemm": (10, 8),
    "both": (8, 16, 1, 1),
    "one": (1,),
}


def graph(
    body: str, output: str = "float[N, 8, H, W] y", channels: int = 8
) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]> g (float[N, {channels}, 8, 8] x) => ({output}) {{ {body} }}"""
    )
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in WEIGHTS.items()
        if name in read
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def everything(model: onnx.ModelProto, target: str = "ort-cpu") -> Placement:
    return next(
        candidate
        for candidate in candidates(model, load_scheme(target))
        if candidate.name == "everything"
    )


def test_a_fused_activation_is_quantized_once_after_it() -> None:
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) y = Conv <pads = [1, 1, 1, 1]> (r, w)"
    )
    assert everything(model).tensors == ("x", "r")
    assert everything(model).nodes == {"a", "y"}


def test_an_activation_with_another_reader_before_it_is_not_fused() -> None:
    model = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (a) y = Mul (a, r)")
    assert everything(model).tensors == ("x", "a", "r")


def test_a_swish_is_not_fused() -> None:
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Sigmoid (a) y = Mul (a, s)"
    )
    assert everything(model, "rknn").tensors == ("x", "a")


def test_a_swish_runs_in_int8_where_both_of_its_operators_do() -> None:
    """Both nodes are one group, so that a search moves them together."""
    conv = "Conv <pads = [1, 1, 1, 1]>"
    model = graph(f"a = {conv} (x, w) s = Sigmoid (a) r = Mul (a, s) y = {conv} (r, w)")
    assert everything(model).tensors == ("x", "a", "s", "r")
    assert everything(model).nodes == {"a", "s", "r", "y"}
    groups = PlacementSpace(model, load_scheme("ort-cpu")).groups()
    assert groups["Swish at 8 px"] == {"s", "r"}


SWISH = "s = Sigmoid (a) r = Mul (a, s)"
HARD_SWISH = "s = HardSigmoid (a) r = Mul (a, s)"
GELU = "d = Div (a, one) e = Erf (d) f = Add (e, one) m = Mul (a, f) r = Mul (m, one)"


@pytest.mark.parametrize("spelt", ["r = HardSwish (a)", SWISH, HARD_SWISH, GELU])
def test_an_activation_is_fused_where_the_target_fuses_it(spelt: str) -> None:
    """OpenVINO applies it within the layer before; ONNX Runtime does not, so its layer needs a
    Q/DQ of its own.
    """
    model = graph(
        f"a = Conv <pads = [1, 1, 1, 1]> (x, w, b) {spelt} y = Conv <pads = [1, 1, 1, 1]> (r, w)"
    )
    assert everything(model, "openvino-cpu").tensors == ("x", "r")
    assert everything(model, "openvino-cpu").nodes == {
        "a",
        "y",
    }  # and nothing inside the activation is INT8
    inner = ("s",) if spelt in (SWISH, HARD_SWISH) else ()
    assert everything(model).tensors == ("x", "a", *inner, "r")


@pytest.mark.parametrize("also", ["y = Mul (t, s)", "y = Mul (t, a)"])
def test_an_activation_with_another_reader_inside_is_not_one(also: str) -> None:
    model = graph(
        f"a = Conv <pads = [1, 1, 1, 1]> (x, w, b) {SWISH} t = Conv <pads = [1, 1, 1, 1]> (r, w) {also}"
    )
    assert "a" in everything(model, "openvino-cpu").tensors


def test_a_scheme_says_which_operators_are_int8() -> None:
    """A gate of squeeze-and-excitation: INT8 on ONNX Runtime, but for its sigmoid on OpenVINO,
    float on TensorRT; a Concat that MNN's list leaves out.
    """
    gated = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) p = GlobalAveragePool (a) g = Sigmoid (p) s = Mul (a, g)"
        " y = Conv <pads = [1, 1, 1, 1]> (s, w)"
    )
    assert everything(gated, "openvino-cpu").nodes == {"a", "p", "s", "y"}
    assert everything(gated).nodes == {"a", "p", "g", "s", "y"}
    assert everything(gated, "tensorrt").nodes == {"a", "p", "y"}
    joined = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) k = Concat <axis = 1> (a, x) y = Conv (k, both)",
        "float[N, 8, H, W] y",
    )
    assert "k" in everything(joined).nodes
    assert "k" not in everything(joined, "mnn").nodes
    only = replace(load_scheme("ort-cpu"), quantized=("Gemm",))
    assert candidates(joined, only) == []


def test_groups_are_of_one_kind_and_one_resolution() -> None:
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1], group = 8> (x, deep) c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (a, w)"
        " d = Conv <pads = [1, 1, 1, 1], group = 8> (c, deep) s = Add (c, d) p = GlobalAveragePool (s) f = Flatten (p)"
        " y = Gemm <transB = 1> (f, gemm)",
        "float[N, 10] y",
    )
    assert PlacementSpace(model).groups() == {
        "depthwise at 8 px": {"a"},
        "depthwise at 4 px": {"d"},
        "3x3 convolution at 4 px": {"c"},
        "Add at 4 px": {"s"},
        "pooling": {"p"},
        "moving": {"f"},
        "Gemm": {"y"},
    }


def test_the_graphs_output_is_never_quantized() -> None:
    model = graph("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)")
    assert [candidate.tensors for candidate in candidates(model)] == [("x",)]
    fused = graph("a = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu (a)")
    assert [candidate.tensors for candidate in candidates(fused)] == [("x",)]


def test_an_addition_of_activations_is_quantized_and_of_a_constant_is_not() -> None:
    both = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Add (a, x) y = Conv <pads = [1, 1, 1, 1]> (s, w)"
    )
    assert everything(both).nodes == {"a", "s", "y"}
    assert everything(both).tensors == ("x", "a", "s")
    constant = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Add (a, one) y = Conv <pads = [1, 1, 1, 1]> (s, w)"
    )
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
    by_name = {candidate.name: candidate for candidate in candidates(model)}
    # "layers" and "dense" would write the same as the first two, 64+ the same as 32+, 128+ nothing
    assert list(by_name) == [
        "everything",
        "everything but depthwise",
        "dense, 32+ channels",
    ]
    assert by_name["everything"].nodes == {"a", "c", "k", "y"}
    assert by_name["everything but depthwise"].nodes == {"c", "k", "y"}
    assert by_name["everything but depthwise"].tensors == ("a", "c", "k")
    assert by_name["dense, 32+ channels"].nodes == {"y"}
    assert by_name["dense, 32+ channels"].tensors == ("k",)


def test_computed_shapes_are_never_quantized() -> None:
    """A view(x.size(0), -1) of PyTorch: Shape, Gather and Concat of int64 beside the Reshape of
    floats.
    """
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) p = GlobalAveragePool (a)"
        " i = Constant <value_int = 0> () s = Shape (p) n = Gather (s, i) axes = Constant <value_ints = [0]> ()"
        " u = Unsqueeze (n, axes) m = Constant <value_ints = [-1]> () shape = Concat <axis = 0> (u, m) twice = Add (shape, shape)"
        " half = Div (twice, two) f = Reshape (p, shape) y = Gemm <transB = 1> (f, gemm)".replace(
            " half = Div (twice, two)", ""
        ),
        "float[N, 10] y",
    )
    placement = everything(model)
    assert placement.nodes == {"a", "p", "f", "y"}
    assert placement.tensors == ("x", "a", "p", "f")


def test_a_layer_with_computed_weights_stays_float() -> None:
    assert candidates(graph("k = Relu (w) y = Conv <pads = [1, 1, 1, 1]> (x, k)")) == []


def test_a_gemm_that_scales_or_transposes_its_input_stays_float() -> None:
    for attributes in ("transB = 1, alpha = 0.5", "transB = 1, beta = 2.0"):
        model = graph(
            f"p = GlobalAveragePool (x) f = Flatten (p) y = Gemm <{attributes}> (f, gemm, one)",
            "float[N, 10] y",
        )
        assert all("y" not in candidate.nodes for candidate in candidates(model))


def test_a_placement_by_hand_quantizes_what_its_nodes_touch() -> None:
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (r, w) y = Relu (c)"
    )
    assert placement(model, "last", ["c"]).tensors == ("r",)
    assert placement(model, "first", ["a"]).tensors == ("x", "r")
    assert placement(model, "none", []).tensors == ()


MOVED = (
    "s, t = Split <axis = 1, num_outputs = 2> (x)"
    " c = Concat <axis = 1> (t, s)"
    " p = MaxPool <kernel_shape = [2, 2]> (c)"
    " y = Conv <pads = [1, 1, 1, 1]> (p, w, b)"
)


def test_without_output_pairs_only_what_is_computed_with_has_a_pair() -> None:
    """The second convolution writes float, and so does a sum that stays in float."""
    model = graph(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) b2 = Conv <pads = [1, 1, 1, 1]> (a, w)"
        " y = Mul (a, b2)"
    )
    space = PlacementSpace(model, load_scheme("openvino-cpu"))
    assert space.placement("layers", {"a", "b2"}).tensors == ("x", "a")


def test_without_output_pairs_the_pair_stands_before_moves() -> None:
    space = PlacementSpace(graph(MOVED), load_scheme("openvino-cpu"))
    placement = space.placement("all", {"s", "c", "p", "y"})
    assert placement.tensors == ("x",)
    assert placement.moved == (("p", "x"),)
    assert placement.quantized == ("x", "p")


def test_without_output_pairs_a_move_in_float_has_its_pair_behind_it() -> None:
    space = PlacementSpace(graph(MOVED), load_scheme("openvino-cpu"))
    assert space.placement("no pooling", {"s", "c", "y"}).tensors == ("p",)
    assert space.placement("no split", {"c", "p", "y"}).tensors == ("t", "s")


def test_many_diamonds_of_moves_are_followed_once_each() -> None:
    """40 of them have 2 ** 40 paths."""
    body = ""
    before = "x"
    for index in range(40):
        body += f"s{index}, t{index} = Split <axis = 1, num_outputs = 2> ({before})"
        body += f" c{index} = Concat <axis = 1> (s{index}, t{index})"
        before = f"c{index}"
    model = graph(f"{body} y = Conv <pads = [1, 1, 1, 1]> ({before}, w)")
    space = PlacementSpace(model, load_scheme("openvino-cpu"))
    moves = {f"{letter}{index}" for letter in "sc" for index in range(40)}
    assert space.placement("all", {*moves, "y"}).tensors == ("x",)
