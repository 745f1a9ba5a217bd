"""GraphView answers questions about single nodes; near misses are told apart."""

from __future__ import annotations

import math

import onnx
import pytest

from repzoo.quant.network.graph_view import GraphView, integer_attribute


def view(body: str, constants: str = "") -> GraphView:
    """A graph over `data` [2, 3, 4, 4]. `body` computes `z`; `constants` are initializers."""
    held = f"<{constants}>" if constants else ""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3, 4, 4] data) => (float[] z) {held} {{ {body} }}"""
    )
    return GraphView(model)


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        ("z = Clip (data)", "", (None, None)),
        ("z = Clip (data, low)", "float low = {0}", (0.0, None)),
        ("z = Clip (data, , high)", "float high = {6}", (None, 6.0)),
        ("z = Clip <min = -1.0, max = 1.0> (data)", "", (-1.0, 1.0)),
    ],
)
def test_the_bounds_of_a_clip(
    body: str, constants: str, expected: tuple[float | None, float | None]
) -> None:
    graph = view(body, constants)
    assert graph.clip_bounds(graph.nodes[-1]) == expected


def test_a_computed_bound_is_not_a_number() -> None:
    graph = view("m = ReduceMax <keepdims = 0> (data) z = Clip (data, , m)")
    low, high = graph.clip_bounds(graph.nodes[-1])
    assert low is None
    assert high is not None
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("body", "one_pixel", "pixels"),
    [
        ("z = ReduceMean <axes = [2, 3]> (data)", True, 0),
        ("z = ReduceMean <axes = [2, 3], keepdims = 0> (data)", True, 0),
        ("z = ReduceMean <axes = [1]> (data)", False, 0),
        ("z = Flatten (data)", False, 16),
        ("p = GlobalAveragePool (data) z = Flatten (p)", True, 1),
        ("z = Flatten <axis = 2> (data)", False, 0),  # moves channels into the batch
        ("z = Relu (data)", False, 0),
    ],
)
def test_nodes_that_drop_or_unfold_pixels(
    body: str, one_pixel: bool, pixels: int
) -> None:
    graph = view(body)
    node = graph.nodes[-1]
    assert graph.leaves_one_pixel(node) == one_pixel
    assert graph.pixels_per_channel(node) == pixels


def test_an_attribute_that_is_missing_has_its_default() -> None:
    graph = view("z = Flatten <axis = 2> (data)")
    assert integer_attribute(graph.nodes[0], "axis", 1) == 2
    assert integer_attribute(graph.nodes[0], "group", 1) == 1
