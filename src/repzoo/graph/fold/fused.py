"""Nodes that the fold must leave alone, since runtimes fuse them into one kernel.

GELU ends in a factor 0.5 that the next convolution could absorb. What is left of it,
x (1 + erf(x / sqrt(2))), is a pattern that ONNX Runtime and MNN do not know: one kernel becomes
four. With fewer nodes, RepViT-m0.9 and FasterNet-T0 then took 10 % longer in ONNX Runtime and
twice as long in MNN (224 pixels, one thread, AVX2). OpenVINO, which compiles such chains, took as
long as before.
"""

from __future__ import annotations

import onnx_ir as ir

from repzoo.graph.tools.composites import Composite, Operation, find_composites
from repzoo.graph.tools.ir_facts import constant_tensor, is_standard


def fused_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes of all composites of `graph`."""
    fused: set[ir.Node] = set()
    for _, nodes in composites_with_nodes(graph):
        fused.update(nodes)
    return fused


def composites_with_nodes(graph: ir.Graph) -> list[tuple[Composite, list[ir.Node]]]:
    """The composites of `graph`, each with its nodes in order; the last computes its result."""
    producers: dict[str, ir.Node] = {}
    operations: list[Operation] = []
    for node in graph:
        operation = _operation(node)
        operations.append(operation)
        producers[operation.outputs[0]] = node
    outputs = [str(value.name) for value in graph.outputs]
    composites: list[tuple[Composite, list[ir.Node]]] = []
    for composite in find_composites(operations, outputs).values():
        nodes = [producers[name] for name in composite.nodes]
        composites.append((composite, nodes))
    return composites


def _operation(node: ir.Node) -> Operation:
    inputs: list[str] = []
    has_vector = False
    for value in node.inputs:
        if value is None:
            continue
        tensor = constant_tensor(value)
        if tensor is None:
            inputs.append(str(value.name))
        elif tensor.size > 1:
            has_vector = True
    kind = node.op_type if is_standard(node) else ""
    outputs = tuple(str(item.name) for item in node.outputs)
    return Operation(kind, tuple(inputs), outputs, has_vector)
