"""Small questions and edits of ONNX graphs that several modules need."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.onnx_file import names_read


def add_initializer(
    graph: onnx.GraphProto, name: str, values: npt.NDArray[Any], used: set[str]
) -> str:
    """Store `values` under `name`, or under a name like it where `used` holds that one.

    Returns the name, which is added to `used`.
    """
    name = unused_name(name, used)
    used.add(name)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def unused_name(
    name: str, used: Container[str], separator: str = "_", first: int = 0
) -> str:
    """`name`, with a number from `first` on appended where `used` holds it already."""
    unused = name
    number = first
    while unused in used:
        unused = f"{name}{separator}{number}"
        number += 1
    return unused


def tensor_names(graph: onnx.GraphProto) -> set[str]:
    """The names of all tensors of `graph`, those of subgraphs left out."""
    outputs = {item.name for item in graph.output}
    return outputs | _names_defined(graph)


def _names_defined(graph: onnx.GraphProto) -> set[str]:
    """The tensors that `graph` takes, stores or computes; not those of a graph around it."""
    names = {item.name for item in graph.input}
    names.update(item.name for item in graph.initializer)
    for node in graph.node:
        names.update(node.output)
    return names


def nodes_by_output(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The nodes of `graph`, each under the names of all tensors that it computes."""
    nodes: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        nodes.update(dict.fromkeys(node.output, node))
    return nodes


def redirect_readers(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let every reader of the tensor `old` read `new`, in place, in subgraphs too."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for graph in subgraphs(node):
            # A tensor of the subgraph's own may have that name.
            if old in _names_defined(graph):
                continue
            redirect_readers(graph.node, old, new)
            # A branch may hand out a tensor of the outer graph unchanged.
            for item in graph.output:
                if item.name == old:
                    item.name = new


def remove_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove, in place, the initializers that no node, subgraph or output reads."""
    read = {item.name for item in graph.output}
    for node in graph.node:
        read.update(names_read(node))
    used = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in the attributes of `node`, such as the branches of an If."""
    for item in node.attribute:
        if item.HasField("g"):
            yield item.g
        yield from item.graphs
