"""Edits of graphs: names that are free, and initializers that something reads."""

from __future__ import annotations

import numpy as np
import onnx

from repzoo.graph.tools.onnx_edit import (
    add_initializer,
    redirect_readers,
    remove_unused_initializers,
    tensor_names,
    unused_name,
)

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[1] x, bool c) => (float[1] y, float[1] kept)
<float[1] read = {1.0}, float[1] inner = {2.0}, float[1] kept = {3.0}, float[1] unused = {4.0}> {
  s = Add (x, read)
  d = If (c) <
    then_branch = then_graph () => (float[1] t) { t = Add (s, inner) },
    else_branch = else_graph () => (float[1] s) { }
  >
  y = Identity (d)
}
"""


def test_an_initializer_stays_if_a_node_a_branch_or_an_output_reads_it() -> None:
    graph = onnx.parser.parse_model(BRANCHES).graph
    remove_unused_initializers(graph)
    assert [item.name for item in graph.initializer] == ["read", "inner", "kept"]


def test_unused_names_count_upwards() -> None:
    assert unused_name("w", {"v"}) == "w"
    assert unused_name("w", {"w", "w_0"}) == "w_1"
    assert unused_name("w", {"w"}, separator=".", first=2) == "w.2"


def test_an_added_initializer_takes_its_name() -> None:
    graph = onnx.GraphProto()
    used = {"w"}
    assert add_initializer(graph, "w", np.ones(2, np.float32), used) == "w_0"
    assert add_initializer(graph, "w", np.ones(3, np.float32), used) == "w_1"
    assert [list(item.dims) for item in graph.initializer] == [[2], [3]]


def test_tensors_are_inputs_initializers_and_what_nodes_compute() -> None:
    graph = onnx.parser.parse_model(BRANCHES).graph
    expected = {"x", "c", "y", "s", "d", "read", "inner", "kept", "unused"}
    assert tensor_names(graph) == expected


def test_readers_in_branches_are_redirected_and_names_of_their_own_are_not() -> None:
    graph = onnx.parser.parse_model(BRANCHES).graph
    redirect_readers(graph.node, "s", "z")
    assert list(graph.node[0].output) == ["s"]
    then_branch, else_branch = (item.g for item in graph.node[1].attribute)
    assert list(then_branch.node[0].input) == ["z", "inner"]
    assert [item.name for item in else_branch.output] == ["z"]
    redirect_readers(graph.node, "t", "z")
    assert [item.name for item in then_branch.output] == ["t"]
