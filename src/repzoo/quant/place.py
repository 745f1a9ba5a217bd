"""Where Q/DQ pairs go: which nodes compute in INT8 and which tensors are therefore quantised.

A Placement is data: the names of the nodes that run in INT8. The tensors follow: what such a node reads, and what it writes
once the activation that the engine fuses into it (ReLU, Clip) has been applied.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import onnx

WEIGHTED = frozenset({"Conv", "Gemm"})
ELEMENTWISE = frozenset({"Add"})
MOVING = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Concat", "Split", "Transpose"})
FUSED = frozenset({"Relu", "Clip"})
WIDTHS = (32, 64, 128)  # least of input and output channels


@dataclass(frozen=True)
class Placement:
    """nodes: names of outputs of the nodes that run in INT8; tensors: activations with a Q/DQ pair, in graph order."""

    name: str
    nodes: frozenset[str]
    tensors: tuple[str, ...]


def candidates(model: onnx.ModelProto) -> list[Placement]:
    """Placements worth measuring, the most quantised first; empty ones, and those that write the same, are dropped.

    Narrow and depthwise convolutions often cost more in INT8 than they save, so each next candidate leaves more of them float.
    """
    weights = {item.name: min(item.dims[:2], default=0) for item in model.graph.initializer}
    floats = _float_tensors(model)
    weighted = [node for node in model.graph.node if node.input[:1] and node.input[0] in floats and _is_plain(node, weights)]
    dense = [node for node in weighted if not _is_grouped(node)]
    around = [node for node in model.graph.node if node.op_type in MOVING and {node.input[0], *node.output} <= floats]
    around += [node for node in model.graph.node if node.op_type in ELEMENTWISE and {*node.input, *node.output} <= floats]
    named = {"everything": [*weighted, *around], "dense": dense}
    named |= {f"dense, {width}+ channels": [node for node in dense if weights[node.input[1]] >= width] for width in WIDTHS}
    found: dict[tuple[frozenset[str], tuple[str, ...]], Placement] = {}
    for name, nodes in named.items():
        one = placement(model, name, (node.output[0] for node in nodes))
        heavy = frozenset(node.output[0] for node in nodes if node.op_type in WEIGHTED)
        found.setdefault((heavy, one.tensors), one)
    return [one for (heavy, _), one in found.items() if heavy]


def placement(model: onnx.ModelProto, name: str, nodes: Iterable[str]) -> Placement:
    """The placement that runs `nodes` (by first output) in INT8."""
    chosen, floats = frozenset(nodes), _float_tensors(model)
    fused = _fused_outputs(model, chosen)
    tensors: dict[str, None] = {}
    for node in model.graph.node:
        if node.output[0] in chosen:
            reads = node.input[:1] if node.op_type in WEIGHTED else node.input
            tensors |= dict.fromkeys(value for value in reads if value in floats)
            tensors |= dict.fromkeys(fused.get(value, value) for value in node.output if value)
    outputs = {value.name for value in model.graph.output}
    return Placement(name, chosen, tuple(value for value in tensors if value not in outputs))


def _fused_outputs(model: onnx.ModelProto, chosen: frozenset[str]) -> dict[str, str]:
    """Output of an INT8 node -> output of the activation fused into it, when that is its only reader."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    alone = {value: found[0] for value, found in readers.items() if len(found) == 1 and value in chosen}
    return {value: node.output[0] for value, node in alone.items() if node.op_type in FUSED}


def _constants(model: onnx.ModelProto) -> set[str]:
    made = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    return made | {item.name for item in model.graph.initializer}


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the activations that are known to be float32; shapes and indices, which a graph may compute too, are not."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT} - _constants(model)


def _is_plain(node: onnx.NodeProto, weights: Container[str]) -> bool:
    """Whether it is a Conv or Gemm of constant weights and bias that computes nothing but their product and sum (a Gemm may also scale)."""
    factors = all(item.f == 1.0 for item in node.attribute if item.name in ("alpha", "beta"))
    turned = any(item.name == "transA" and item.i for item in node.attribute)
    return node.op_type in WEIGHTED and factors and not turned and all(value in weights for value in node.input[1:] if value)


def _is_grouped(node: onnx.NodeProto) -> bool:
    return any(item.name == "group" and item.i > 1 for item in node.attribute)
