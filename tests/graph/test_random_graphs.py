"""Random linear graphs: branches, sums, borders, Split and Concat, linear layers, duplicates.

The graphs are the same in each run. To look for new faults, draw many new ones:

    pytest tests/graph/test_random_graphs.py --random-graphs 50000 --random-graphs-seed random
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from repzoo.graph.certificate.proof import prove
from repzoo.graph.fold.engine import fold

Array = npt.NDArray[Any]
Execute = Callable[[onnx.ModelProto, Array], list[Array]]


class GraphBuilder:
    """A random graph under construction: `random` draws its values, hypothesis its structure."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.numbers = itertools.count()

    def constant(self, values: Array) -> str:
        name = f"c{next(self.numbers)}"
        self.weights.append(
            numpy_helper.from_array(np.asarray(values, np.float32), name)
        )
        return name

    def integers(self, values: Sequence[int]) -> str:
        name = f"c{next(self.numbers)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def nodes_of(
        self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any
    ) -> list[str]:
        names = [f"t{next(self.numbers)}" for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=names[0], **attributes)
        )
        return names

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"t{next(self.numbers)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=name, **attributes)
        )
        return name

    def model(self, output: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Flatten", [output], ["output"]))
        data = helper.make_tensor_value_info("data", 1, ["N", 4, 9, 10])
        result = helper.make_tensor_value_info("output", 1, ["N", "K"])
        graph = helper.make_graph(self.nodes, "g", [data], [result], self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )


@dataclass(frozen=True)
class Feature:
    """A tensor and its [channels, height, width]."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def conv(draw: st.DrawFn, build: GraphBuilder, at: Feature, stride: int) -> Feature:
    groups, out = draw(
        st.sampled_from([(1, 4), (1, 4), (1, 2), (2, 4), (at.channels, at.channels)])
    )
    groups = groups if at.channels % groups == 0 else 1
    k, d = (
        [draw(st.sampled_from([1, 1, 2, 3])) for _ in "hw"],
        [draw(st.sampled_from([1, 1, 2])) for _ in "hw"],
    )
    spans = [(k[a] - 1) * d[a] for a in (0, 1)]
    same = draw(st.booleans())
    before = [draw(st.integers(0, spans[a])) for a in (0, 1)]
    pads = (
        [*before, spans[0] - before[0], spans[1] - before[1]]
        if same
        else [draw(st.sampled_from([0, 1])) for _ in range(4)]
    )
    height, width = (
        (side + pads[a] + pads[a + 2] - spans[a] - 1) // stride + 1
        for a, side in enumerate((at.height, at.width))
    )
    if min(height, width) < 1:
        return at
    inputs = [
        at.name,
        build.constant(build.random.standard_normal((out, at.channels // groups, *k))),
    ]
    if draw(st.booleans()):
        inputs.append(build.constant(build.random.standard_normal(out)))
    name = build.node(
        "Conv", inputs, pads=pads, strides=[stride] * 2, dilations=d, group=groups
    )
    return Feature(name, out, height, width)


def per_channel(draw: st.DrawFn, build: GraphBuilder, at: Feature) -> Feature:
    kind, values = (
        draw(st.sampled_from(["BatchNormalization", "Mul", "Add", "Sub"])),
        build.random,
    )
    if kind == "BatchNormalization":
        rest = [build.constant(values.standard_normal(at.channels)) for _ in range(3)]
        rest.append(build.constant(values.uniform(0.2, 2, at.channels)))
        return Feature(build.node(kind, [at.name, *rest]), *at.size)
    inputs = [at.name, build.constant(values.standard_normal((at.channels, 1, 1)))]
    return Feature(
        build.node(kind, inputs[:: draw(st.sampled_from([1, -1]))]), *at.size
    )


def pool(draw: st.DrawFn, build: GraphBuilder, at: Feature) -> Feature:
    counted = draw(st.integers(0, 1))
    if min(at.height, at.width) < 2:
        return at
    name = build.node(
        "AveragePool",
        [at.name],
        kernel_shape=[3, 3],
        pads=[1] * 4,
        count_include_pad=counted,
    )
    return Feature(name, *at.size)


def frame(draw: st.DrawFn, build: GraphBuilder, at: Feature) -> Feature:
    top, left, bottom, right = (draw(st.integers(0, 2)) for _ in range(4))
    pads = build.integers([0, 0, top, left, 0, 0, bottom, right])
    return Feature(
        build.node("Pad", [at.name, pads]),
        at.channels,
        at.height + top + bottom,
        at.width + left + right,
    )


def parts(draw: st.DrawFn, build: GraphBuilder, at: Feature, depth: int) -> Feature:
    """Channels split, each part on its own way, joined again where the sizes still agree."""
    if at.channels < 2:
        return at
    first = draw(st.integers(1, at.channels - 1))
    names = build.nodes_of(
        "Split", [at.name, build.integers([first, at.channels - first])], 2, axis=1
    )
    counts = first, at.channels - first
    ends = [
        chain(draw, build, Feature(name, count, at.height, at.width), depth)
        for name, count in zip(names, counts, strict=True)
    ]
    if ends[0].size[1:] != ends[1].size[1:]:
        return ends[0]
    ends = ends[:: draw(st.sampled_from([1, -1]))]
    name = build.node("Concat", [end.name for end in ends], axis=1)
    return Feature(
        name, ends[0].channels + ends[1].channels, ends[0].height, ends[0].width
    )


def chain(draw: st.DrawFn, build: GraphBuilder, at: Feature, depth: int) -> Feature:
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(
            st.sampled_from(
                [
                    "conv",
                    "conv",
                    "scale",
                    "scale",
                    "pool",
                    "branches",
                    "relu",
                    "frame",
                    "parts",
                    "again",
                ]
            )
        )
        if kind == "conv":
            at = conv(draw, build, at, draw(st.sampled_from([1, 1, 1, 2])))
        elif kind == "scale":
            at = per_channel(draw, build, at)
        elif kind == "pool":
            at = pool(draw, build, at)
        elif kind == "frame":
            at = frame(draw, build, at)
        elif kind == "again":
            at = Feature(repeat_node(build, at.name), *at.size)
        elif kind == "parts" and depth:
            at = parts(draw, build, at, depth - 1)
        elif kind == "relu":
            at = (
                Feature(build.node("Relu", [at.name]), *at.size)
                if draw(st.integers(0, 3)) == 0
                else at
            )
        elif depth:
            at = branches(draw, build, at, depth - 1)
    return at


def branches(draw: st.DrawFn, build: GraphBuilder, at: Feature, depth: int) -> Feature:
    """Two to six branches of one tensor; those of equal size are summed, the rest are unused."""
    ends = [chain(draw, build, at, depth) for _ in range(draw(st.integers(2, 6)))]
    total = ends[0]
    for end in ends[1:]:
        if end.size == total.size:
            pair = [total.name, end.name][:: draw(st.sampled_from([1, -1]))]
            total = Feature(
                build.node(draw(st.sampled_from(["Add", "Add", "Sub"])), pair),
                *total.size,
            )
    return total


def repeat_node(build: GraphBuilder, name: str) -> str:
    """What gave `name`, a second time, and the sum of both."""
    producer = next((node for node in build.nodes if list(node.output) == [name]), None)
    if producer is None:
        return name
    twin = f"t{next(build.numbers)}"
    build.nodes.append(onnx.NodeProto.FromString(producer.SerializeToString()))
    build.nodes[-1].output[0] = build.nodes[-1].name = twin
    return build.node("Add", [name, twin])


def rows(
    draw: st.DrawFn, build: GraphBuilder, name: str, width: int, depth: int
) -> tuple[str, int]:
    """Linear layers, scales and BatchNormalizations on [N, 36, width], and sums of branches."""
    values = build.random
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(
            st.sampled_from(
                ["linear", "linear", "scale", "normal", "branches", "relu", "again"]
            )
        )
        if kind == "linear":
            out = draw(st.sampled_from([4, 10, 12]))
            name, width = (
                build.node(
                    "MatMul",
                    [name, build.constant(values.standard_normal((width, out)))],
                ),
                out,
            )
        elif kind == "scale":
            shape = draw(st.sampled_from([(width,), (1, 1, width), (1,), ()]))
            pair = [name, build.constant(values.uniform(0.5, 2, shape))][
                :: draw(st.sampled_from([1, -1]))
            ]
            name = build.node(draw(st.sampled_from(["Add", "Sub", "Mul"])), pair)
        elif kind == "normal":
            flat = build.node("Flatten", [name], axis=2)
            rest = [build.constant(values.standard_normal(width)) for _ in range(3)]
            normal = build.node(
                "BatchNormalization",
                [flat, *rest, build.constant(values.uniform(0.2, 2, width))],
            )
            name = build.node(
                "Reshape",
                [
                    normal,
                    build.integers(
                        draw(st.sampled_from([[-1, 36, width], [-1, 9, width]]))
                    ),
                ],
            )
            name = build.node("Reshape", [name, build.integers([-1, 36, width])])
        elif kind == "again":
            name = repeat_node(build, name)
        elif kind == "relu":
            name = build.node("Relu", [name]) if draw(st.integers(0, 3)) == 0 else name
        elif depth:
            ends = [rows(draw, build, name, width, depth - 1) for _ in range(2)]
            name, width = ends[0]
            if ends[0][1] == ends[1][1]:
                name = build.node("Add", [end[0] for end in ends])
    return name, width


@st.composite
def linear_graphs(draw: st.DrawFn) -> onnx.ModelProto:
    build = GraphBuilder(draw(st.integers(0, 2**32 - 1)))
    if draw(st.integers(0, 3)) == 0:
        return build.model(
            rows(
                draw,
                build,
                build.node("Reshape", ["data", build.integers([0, 36, 10])]),
                10,
                1,
            )[0]
        )
    at = branches(draw, build, Feature("data", 4, 9, 10), 1)
    return build.model(chain(draw, build, at, 0).name)


@pytest.mark.timeout(7200)
def test_random_linear_graphs_fold_correctly(
    execute: Execute, request: pytest.FixtureRequest
) -> None:
    chosen_seed = request.config.getoption("--random-graphs-seed")

    @given(model=linear_graphs())
    @settings(
        max_examples=request.config.getoption("--random-graphs"),
        deadline=None,
        derandomize=chosen_seed is None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def folds_correctly(model: onnx.ModelProto) -> None:
        _assert_correct(model, execute)

    if chosen_seed not in (None, "random"):
        folds_correctly = seed(int(chosen_seed))(folds_correctly)
    folds_correctly()


def _assert_correct(model: onnx.ModelProto, execute: Execute) -> None:
    result = fold(model)
    onnx.checker.check_model(result.model, full_check=True)
    data = np.random.default_rng(7).standard_normal((2, 4, 9, 10)).astype(np.float32)
    (expected,), (got,) = execute(model, data), execute(result.model, data)
    assert expected.shape == got.shape
    assert np.abs(expected - got).max(initial=0) <= 1e-4 * max(
        np.abs(expected).max(initial=0), 1
    )
    prove(model, result.model, result.outputs)
    again = fold(result.model)
    assert not again.folds
    assert again.model.SerializeToString(
        deterministic=True
    ) == result.model.SerializeToString(deterministic=True)
    assert all(item.macs_after <= item.macs_before for item in result.folds)
