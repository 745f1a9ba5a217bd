"""Older opsets: the same function, in a form that the older version of each operator has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.graph.tools.older_opset import limit_version

HEAD = """<ir_version: 10, opset_import: ["" : {opset}]>
    g (float[N, 4, 6, 6] data) => ({result} output)
    <int64[2] spatial = {{2, 3}}, int64[2] halves = {{1, 3}}, float low = {{-0.5}},
     float high = {{0.5}}, int64[2] flat = {{0, 144}}> {{
"""


def graph(body: str, result: str = "float[N, 4]", opset: int = 20) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD.format(opset=opset, result=result) + body + "}")


def run(model: onnx.ModelProto) -> npt.NDArray[np.float32]:
    images = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    return engine("onnxruntime").open(model, exact=True).run(images)


@pytest.mark.parametrize("opset", [11, 10])
@pytest.mark.parametrize(
    ("body", "result"),
    [
        ("output = Relu (data)", "float[N, 4, 6, 6]"),
        ("output = HardSwish (data)", "float[N, 4, 6, 6]"),
        ("output = Gelu (data)", "float[N, 4, 6, 6]"),
        ("output = Clip (data, low, high)", "float[N, 4, 6, 6]"),
        ("output = Clip (data, , high)", "float[N, 4, 6, 6]"),
        ("output = ReduceMean <keepdims = 0> (data, spatial)", "float[N, 4]"),
        ("output = ReduceMean (data)", "float[1, 1, 1, 1]"),
        ("m = ReduceMean (data, spatial) output = Squeeze (m, spatial)", "float[N, 4]"),
        ("a, output = Split <axis = 1> (data, halves)", "float[N, 3, 6, 6]"),
        ("output = Softmax <axis = 3> (data)", "float[N, 4, 6, 6]"),
        ("output = Softmax (data)", "float[N, 4, 6, 6]"),
        ("output = Reshape <allowzero = 0> (data, flat)", "float[N, 144]"),
        (
            "output = AveragePool <kernel_shape = [2, 2], dilations = [1, 1]> (data)",
            "float[N, 4, 5, 5]",
        ),
    ],
)
def test_it_computes_the_same(body: str, result: str, opset: int) -> None:
    model = graph(body, result)
    older = limit_version(model, opset, 7)
    onnx.checker.check_model(older)
    assert (older.opset_import[0].version, older.ir_version) == (opset, 7)
    assert np.abs(run(older) - run(model)).max() < 1e-6


@pytest.mark.parametrize(
    ("body", "result", "words"),
    [
        (
            "output = Mish (data)",
            "float[N, 4, 6, 6]",
            "Mish output .* no such operator",
        ),
        (
            "output = Softmax <axis = 1> (data)",
            "float[N, 4, 6, 6]",
            "not known to be the last",
        ),
        ('output = Gelu <approximate = "tanh"> (data)', "float[N, 4, 6, 6]", "by tanh"),
        (
            "output = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (data)",
            "float[N, 4, 4, 4]",
            "has no attribute dilations there",
        ),
        (
            "m = ReduceMean <keepdims = 0> (data) high2 = Abs (m) "
            "output = Clip (data, low, high2)",
            "float[N, 4, 6, 6]",
            "its input high2 is computed, and must be constant there",
        ),
    ],
)
def test_what_has_no_older_form_is_refused(body: str, result: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        limit_version(graph(body, result), 10, 7)


def test_a_model_within_the_limits_is_returned_as_it_is() -> None:
    model = graph("output = Relu (data)", "float[N, 4, 6, 6]", opset=11)
    model.ir_version = 6
    assert limit_version(model, 11, 7) is model
    assert limit_version(model, 0, 0) is model


def test_the_model_itself_is_not_changed() -> None:
    model = graph("output = HardSwish (data)", "float[N, 4, 6, 6]")
    before: Any = model.SerializeToString()
    limit_version(model, 11, 7)
    assert model.SerializeToString() == before
