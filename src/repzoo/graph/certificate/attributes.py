"""Attributes of an ONNX node, with the defaults of the specification."""

from __future__ import annotations

import onnx

from repzoo.onnx_file import STANDARD_DOMAINS


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    """The attribute called `name`, or None where the node leaves it out."""
    for item in node.attribute:
        if item.name == name:
            return item
    return None


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    item = attribute(node, name)
    return default if item is None else int(item.i)


def integers(
    node: onnx.NodeProto,
    name: str,
    default: tuple[int, ...],
) -> tuple[int, ...]:
    """A list of integers, or its default where it is left out or empty."""
    item = attribute(node, name)
    return default if item is None else tuple(item.ints) or default


def real(node: onnx.NodeProto, name: str, default: float) -> float:
    """A float attribute, or its default."""
    item = attribute(node, name)
    return default if item is None else item.f


def text(node: onnx.NodeProto, name: str, default: str) -> str:
    """A string attribute, or its default."""
    item = attribute(node, name)
    return default if item is None else item.s.decode(errors="replace")


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether the operator is one of ONNX's own domain."""
    return node.domain in STANDARD_DOMAINS


def has_subgraph(node: onnx.NodeProto) -> bool:
    """Whether an attribute holds a graph, which may read any tensor by name."""
    kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    return any(item.type in kinds for item in node.attribute)
