"""Write an affine map as ONNX nodes: a Conv, a Gemm, or a MatMul with an Add."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from repzoo.graph.fold.algebra import AffineMap
from repzoo.graph.fold.expression import Expression, has_bias, weight_count
from repzoo.graph.fold.geometry import Geometry
from repzoo.graph.fold.tensors import node_name, rank_of

# Arrays of at least this many bytes get memory pages of their own.
OWN_PAGES = 2**16


class LayerNames(NamedTuple):
    """The names of a layer that is written."""

    node: str
    weight: str
    bias: str


def nodes_for(
    expression: Expression, affine: AffineMap, like: ir.Value, names: LayerNames
) -> list[ir.Node]:
    """The nodes that compute `affine` of the expression's source, in order.

    like  the tensor that they replace; gives rank and number type
    """
    dtype = like.dtype.numpy() if like.dtype is not None else np.dtype(np.float32)
    kernel = affine.kernel[:, :, 0, 0] if expression.flat else affine.kernel
    inputs = [expression.source, _initializer(names.weight, kernel.astype(dtype))]
    had_bias = any(has_bias(node) for node in expression.nodes)
    if had_bias or np.any(affine.bias != 0):
        inputs.append(_initializer(names.bias, affine.bias.astype(dtype)))
    if expression.flat:
        return _linear_nodes(inputs, like, names)
    return [_convolution(inputs, affine.geometry, names.node)]


def _convolution(inputs: list[ir.Value], geometry: Geometry, name: str) -> ir.Node:
    """The Conv of [source, weight, bias]."""
    # Typed: onnx-ir takes longer to find out the type of a value than all else here.
    attributes = {
        "kernel_shape": ir.AttrInt64s("kernel_shape", geometry.kernel),
        "strides": ir.AttrInt64s("strides", geometry.strides),
        "pads": ir.AttrInt64s("pads", geometry.pads),
        "dilations": ir.AttrInt64s("dilations", geometry.dilations),
        "group": ir.AttrInt64("group", geometry.groups),
    }
    return ir.node("Conv", inputs, attributes=attributes, name=name)


def _linear_nodes(
    inputs: list[ir.Value], like: ir.Value, names: LayerNames
) -> list[ir.Node]:
    """The linear layer of [source, weight [O, I], bias].

    A Gemm for matrices. For rows with more axes a MatMul, and an Add if there is a bias.
    """
    if rank_of(like) == 2:
        return [ir.node("Gemm", inputs, attributes={"transB": 1}, name=names.node)]
    source, weight, *bias = inputs
    assert weight.const_value is not None
    transposed = _initializer(names.weight, weight.const_value.numpy().T)
    product = ir.node("MatMul", [source, transposed], name=names.node)
    if not bias:
        return [product]
    output = product.outputs[0]
    output.name = f"{names.bias}.product"
    output.shape = like.shape
    output.type = like.type
    shift = ir.node("Add", [output, *bias], name=f"{names.node}.shift")
    return [product, shift]


@dataclass
class UsedNames:
    """The names of the tensors of a graph, up to date without reading all of it for each fold."""

    graph: ir.Graph
    computed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Read the graph once."""
        self.computed.update(str(value.name) for value in self.graph.inputs)
        for node in self.graph:
            self.add(node)

    def add(self, node: ir.Node) -> None:
        """Take in what `node` computes."""
        self.computed.update(str(value.name) for value in node.outputs)

    def remove(self, node: ir.Node) -> None:
        """Forget what `node` computed."""
        self.computed.difference_update(str(value.name) for value in node.outputs)

    def unused(self, name: str) -> str:
        """`name`, with a number appended if a tensor of that name exists."""
        unused = name
        number = 2
        while unused in self.computed or unused in self.graph.initializers:
            unused = f"{name}.{number}"
            number += 1
        return unused


def replace(
    graph: ir.Graph,
    root: ir.Node,
    expression: Expression,
    affine: AffineMap,
    names: UsedNames,
) -> None:
    """Replace the nodes of `expression`, whose last one is `root`, by one layer.

    names  of the tensors of `graph`; kept up to date
    """
    old = root.outputs[0]
    nodes = nodes_for(expression, affine, old, _choose_names(names, expression))
    new = nodes[-1].outputs[0]
    new.name = old.name
    new.shape = old.shape
    new.type = old.type
    for node in nodes:
        _register_weights(graph, node)
    replaced = list(expression.nodes[::-1])
    ir.convenience.replace_nodes_and_values(graph, root, replaced, nodes, [old], [new])
    for node in replaced:
        names.remove(node)
    for node in nodes:
        names.add(node)


def _register_weights(graph: ir.Graph, node: ir.Node) -> None:
    """Make initializers of the constants that `node` reads."""
    for value in node.inputs[1:]:
        if value is not None:
            # A new weight takes the name of the old one.
            graph.initializers.pop(str(value.name), None)
            graph.register_initializer(value)


def _choose_names(names: UsedNames, expression: Expression) -> LayerNames:
    """Unused names, after the layer with the most weights among the replaced nodes."""
    heaviest = max(expression.nodes, key=weight_count)
    name = node_name(heaviest)
    old = heaviest.inputs[1] if weight_count(heaviest) else None
    weight = names.unused(f"{name}.weight") if old is None else str(old.name)
    stem = weight.removesuffix(".weight")
    return LayerNames(name, weight, names.unused(f"{stem}.folded_bias"))


def _initializer(name: str, values: npt.NDArray[Any]) -> ir.Value:
    tensor = ir.Tensor(_in_own_pages(values), name=name)
    return ir.Value(
        name=name,
        shape=ir.Shape(values.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )


def _in_own_pages(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A contiguous copy whose memory returns to the system when it is freed.

    The heap would keep freed memory between arrays that live longer.
    """
    if values.nbytes < OWN_PAGES:
        return np.ascontiguousarray(values)
    pages = mmap.mmap(-1, values.nbytes)
    copy = np.frombuffer(pages, values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
