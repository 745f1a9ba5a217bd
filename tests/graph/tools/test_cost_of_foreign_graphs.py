"""Counts of graphs that other tools wrote: integer operators, subgraphs, images of open size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from repzoo.artifact import Artifact
from repzoo.graph.tools.cost import count
from repzoo.graph.tools.cost_result import Cost

Run = Callable[..., Any]

OPERATORS = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (uint8[n,3,4,4] x) => (int32[n,2,4,4] y)
<uint8[2,3,1,1] w = {1, 2, 3, 4, 5, 6}> { y = ConvInteger (x, w) }
"""
QUANTIZED = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (uint8[n,3,4,4] x) => (uint8[n,2,4,4] y)
<uint8[2,3,1,1] w = {1, 2, 3, 4, 5, 6}, float s = {1.0}, uint8 z = {0}, int32[2] b = {1, 2}>
{ y = QLinearConv (x, s, z, w, s, z, s, z, b) }
"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[n,3] x, bool c) => (float[n,k] y) {
  y = If (c) <
    then_branch = yes () => (float[n,k] a) <float[3,2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>
      { a = MatMul (x, w) },
    else_branch = no () => (float[n,k] b) <float[3,1] w = {1.0, 2.0, 3.0}> { b = MatMul (x, w) }
  >
}
"""
# Not a classifier: its output is a map.
DETECTOR = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[n,{sides}] x) => (float[n,c,h,w] y)
<float[2,3,1,1] k = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0}}> {{ {body} }}
"""
CHANNELS_FIRST = DETECTOR.format(sides="3,h,w", body="y = Conv (x, k)")
CHANNELS_LAST = DETECTOR.format(
    sides="h,w,3", body="t = Transpose <perm = [0, 3, 1, 2]> (x)\n y = Conv (t, k)"
)


def cost_of(text: str) -> Cost:
    return count(Artifact(onnx.parser.parse_model(text), "foreign"))


@pytest.mark.parametrize(("text", "parameters"), [(OPERATORS, 6), (QUANTIZED, 8)])
def test_operators_on_integers_count_as_their_float_forms(
    text: str, parameters: int
) -> None:
    cost = cost_of(text)
    assert cost.macs == 4 * 4 * 6
    assert cost.parameters == parameters
    assert not cost.uncounted


def test_weights_of_subgraphs_are_counted_and_may_share_a_name() -> None:
    cost = cost_of(BRANCHES)
    assert cost.parameters == 9
    assert cost.bytes == 4 * 9
    assert cost.uncounted == {"If": 1}


@pytest.mark.parametrize("text", [CHANNELS_FIRST, CHANNELS_LAST])
def test_open_sizes_are_said_and_given(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "map.onnx"
    onnx.save(onnx.parser.parse_model(text), file)
    open_size = run("count", file)
    assert "unknown" in open_size.out
    assert "macs lack 1 Conv" in open_size.err
    assert "give --size" in open_size.err
    sized = run("count", file, "--size", "5x7", "--json")
    assert sized.document["macs"] == 5 * 7 * 6
    assert not sized.err.strip()


def test_bench_takes_the_size_of_a_graph_that_is_no_classifier(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "map.onnx"
    onnx.save(onnx.parser.parse_model(CHANNELS_FIRST), file)
    refused = run("bench", file, "--seconds", "0.01")
    assert refused.code == 2
    assert "leaves the size of its images open; give it with --size" in refused.err
    timed = run("bench", file, "--seconds", "0.01", "--size", "8", "--json")
    assert timed.code == 0
    assert timed.document["runs"]


def test_a_size_is_refused_where_nothing_is_open(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "map.onnx"
    onnx.save(onnx.parser.parse_model(CHANNELS_FIRST.replace("3,h,w", "3,4,4")), file)
    refused = run("count", file, "--size", "8")
    assert refused.code == 2
    assert "leave out --size" in refused.err
