"""Placements: which nodes compute in INT8, and which tensors are therefore quantized.

A Placement is data: the nodes that run in INT8. The tensors follow from it: what such a node
reads, and what it writes after the activation that the target fuses into it (ReLU; on some
targets also GELU and hard-swish).

The scheme says which operators may run in INT8 (`quantized`) and which activations are fused
(`fused`). The nodes of a composite activation never run in INT8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from repzoo.quant.network.composites import find_composites
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.scheme import DATA_MOVEMENT, POOLING, QuantScheme

WEIGHTED = frozenset({"Conv", "Gemm"})
ELEMENTWISE = frozenset({"Add", "Mul"})
# Lower limits of channels for starting placements: narrow convolutions gain little in INT8.
WIDTHS = (32, 64, 128)
DEFAULT = QuantScheme("default", "operators and activations of ONNX Runtime")


@dataclass(frozen=True)
class Placement:
    """Which nodes run in INT8.

    nodes          first outputs of the nodes that run in INT8
    tensors        activations with a Q/DQ pair, in graph order
    int16_tensors  those of `tensors` that take 16 bits
    """

    name: str
    nodes: frozenset[str]
    tensors: tuple[str, ...]
    int16_tensors: frozenset[str] = frozenset()


class PlacementSpace:
    """What may run in INT8 in one float `model` on the target of `scheme`.

    layers  convolutions and linear layers with constant weights, in graph order
    around  other nodes that may run in INT8, in graph order
    """

    def __init__(self, model: onnx.ModelProto, scheme: QuantScheme = DEFAULT) -> None:
        self.model = model
        self.scheme = scheme
        self._view = GraphView(model)
        self._floats = self._view.floats
        self._shapes = {
            name: tuple(item.dims) for name, item in self._view.constants.items()
        }
        self._composites = find_composites(self._view, self._floats)
        self.layers = [node for node in self._view.nodes if self._is_layer(node)]
        inside: set[str] = set()
        for composite in self._composites.values():
            inside.update(composite.nodes)
        others = [node for node in self._view.nodes if node.output[0] not in inside]
        self.around = [node for node in others if self._is_around(node)]

    def placement(self, name: str, nodes: Iterable[str]) -> Placement:
        """The placement that runs `nodes` (by first output) in INT8."""
        chosen = frozenset(nodes)
        tensors: dict[str, None] = {}
        for node in self._view.nodes:
            if node.output[0] not in chosen:
                continue
            reads = node.input[:1] if node.op_type in WEIGHTED else node.input
            tensors |= dict.fromkeys(value for value in reads if value in self._floats)
            tensors |= dict.fromkeys(
                self._after_fusion(value) for value in node.output if value
            )
        inner = tuple(value for value in tensors if value not in self._view.outputs)
        return Placement(name, chosen, inner)

    def count(self, placement: Placement) -> int:
        """Number of layers that `placement` runs in INT8."""
        return sum(node.output[0] in placement.nodes for node in self.layers)

    def starting_placements(self) -> list[Placement]:
        """Placements to begin a search with, the most quantized first, without duplicates.

        Narrow and depthwise convolutions, and operators without weights, often cost more in INT8
        than they save.
        """
        dense = [
            node for node in self.layers if _kind(node, self._shapes) != "depthwise"
        ]
        named = {
            "everything": [*self.layers, *self.around],
            "everything but depthwise": [*dense, *self.around],
            "layers": self.layers,
            "dense": dense,
        }
        for width in WIDTHS:
            wide = [node for node in dense if self._width(node) >= width]
            named[f"dense, {width}+ channels"] = wide

        # Two placements with the same layers and tensors write the same file.
        distinct: dict[tuple[frozenset[str], tuple[str, ...]], Placement] = {}
        for name, nodes in named.items():
            placement = self.placement(name, (node.output[0] for node in nodes))
            layers = frozenset(
                node.output[0] for node in nodes if node.op_type in WEIGHTED
            )
            if layers:
                distinct.setdefault((layers, placement.tensors), placement)
        return list(distinct.values())

    def groups(self) -> dict[str, frozenset[str]]:
        """Nodes by kind and resolution ("depthwise at 28 px"), which a search moves at once."""
        members: dict[str, set[str]] = {}
        for node in (*self.layers, *self.around):
            name = _kind(node, self._shapes)
            side = self._side(node.output[0])
            if side > 1:
                name = f"{name} at {side} px"
            members.setdefault(name, set()).add(node.output[0])
        return {name: frozenset(nodes) for name, nodes in members.items()}

    def _after_fusion(self, value: str) -> str:
        """`value`, or the output of the activation that the target fuses into its layer."""
        consumer = self._view.sole_consumer(value)
        if consumer is not None and consumer.op_type in self.scheme.fused:
            return str(consumer.output[0])
        composite = self._composites.get(value)
        if composite and composite.kind in self.scheme.fused:
            return composite.output
        return value

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether it is a Conv or Gemm with constant weights and bias, and nothing else."""
        may_run = node.op_type in WEIGHTED and node.op_type in self.scheme.quantized
        if not may_run or node.input[0] not in self._floats:
            return False
        for item in node.attribute:
            if item.name in ("alpha", "beta") and item.f != 1.0:
                return False
            if item.name == "transA" and item.i:
                return False
        return all(value in self._shapes for value in node.input[1:] if value)

    def _is_around(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in self.scheme.quantized:
            return False
        if node.op_type in ELEMENTWISE:
            return {*node.input, *node.output} <= self._floats.keys()
        is_known = node.op_type in (*DATA_MOVEMENT, *POOLING)
        return is_known and {node.input[0], *node.output} <= self._floats.keys()

    def _side(self, name: str) -> int:
        """The height of an activation of rank 4; 0 if unknown."""
        shape = self._view.shapes.get(name, [])
        return shape[2] if len(shape) == 4 else 0

    def _width(self, node: onnx.NodeProto) -> int:
        """The smaller of its output and input channels per group."""
        return min(self._shapes[node.input[1]][:2], default=0)


def candidates(
    model: onnx.ModelProto, scheme: QuantScheme = DEFAULT
) -> list[Placement]:
    """See PlacementSpace.starting_placements."""
    return PlacementSpace(model, scheme).starting_placements()


def placement(
    model: onnx.ModelProto,
    name: str,
    nodes: Iterable[str],
    scheme: QuantScheme = DEFAULT,
) -> Placement:
    """See PlacementSpace.placement."""
    return PlacementSpace(model, scheme).placement(name, nodes)


def _kind(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A name for nodes that are likely to gain or lose alike in INT8."""
    if node.op_type in DATA_MOVEMENT:
        return "moving"
    if node.op_type in POOLING:
        return "pooling"
    if node.op_type != "Conv":
        return str(node.op_type)
    if any(item.name == "group" and item.i > 1 for item in node.attribute):
        return "depthwise"
    kernel = shapes[node.input[1]][2:]
    return "x".join(map(str, kernel)) + " convolution"
