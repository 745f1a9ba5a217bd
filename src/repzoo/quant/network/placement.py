"""Where Q/DQ pairs go: which nodes compute in INT8 and which tensors are therefore quantized.

A Placement is data: the names of the nodes that run in INT8. The tensors follow: what such a node reads, and what it writes
once the activation that the target applies within it (ReLU, for some targets GELU and hard-swish too) has been applied.

Which operators may be INT8 and which activations belong to the layer before is the scheme's to say (`quantized`, `fused`). Of an
activation that is spelt in several nodes (GELU by Erf, swish by Sigmoid and Mul) none runs in INT8 on any target.
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
WIDTHS = (32, 64, 128)  # least of input and output channels
DEFAULT = QuantScheme("default", "operators and activations of ONNX Runtime")


@dataclass(frozen=True)
class Placement:
    """nodes: names of outputs of the nodes that run in INT8; tensors: activations with a Q/DQ pair, in graph order.

    wide  of `tensors`, those that take 16 bits
    """

    name: str
    nodes: frozenset[str]
    tensors: tuple[str, ...]
    int16_tensors: frozenset[str] = frozenset()


class PlacementSpace:
    """What may run in INT8 in one float `model` on the target of `scheme`.

    layers  convolutions and linear layers of constant weights, around: what else may; both by output, in graph order
    """

    def __init__(self, model: onnx.ModelProto, scheme: QuantScheme = DEFAULT) -> None:
        self.model, self.scheme = model, scheme
        self._wiring = GraphView(model)
        self._nodes, self._floats = self._wiring.nodes, self._wiring.floats
        self._shapes = {name: tuple(item.dims) for name, item in self._wiring.constants.items()}
        self._spelt = find_composites(self._wiring, self._floats)
        self.layers = [node for node in self._nodes if self._is_plain(node)]
        inside = {value for one in self._spelt.values() for value in one.nodes}
        self.around = [
            node for node in self._nodes if self._is_around(node) and node.output[0] not in inside
        ]

    def placement(self, name: str, nodes: Iterable[str]) -> Placement:
        """The placement that runs `nodes` (by first output) in INT8."""
        chosen = frozenset(nodes)
        tensors: dict[str, None] = {}
        for node in self._nodes:
            if node.output[0] in chosen:
                reads = node.input[:1] if node.op_type in WEIGHTED else node.input
                tensors |= dict.fromkeys(value for value in reads if value in self._floats)
                tensors |= dict.fromkeys(self._written(value) for value in node.output if value)
        return Placement(
            name, chosen, tuple(value for value in tensors if value not in self._wiring.outputs)
        )

    def count(self, placement: Placement) -> int:
        """Layers that `placement` has in INT8."""
        return sum(node.output[0] in placement.nodes for node in self.layers)

    def starting_placements(self) -> list[Placement]:
        """Placements to begin a search with, the most quantized first; empty ones, and those that write the same, are dropped.

        Narrow and depthwise convolutions, and operators without weights, often cost more in INT8 than they save.
        """
        dense = [node for node in self.layers if _kind(node, self._shapes) != "depthwise"]
        named = {
            "everything": [*self.layers, *self.around],
            "everything but depthwise": [*dense, *self.around],
            "layers": self.layers,
            "dense": dense,
        }
        named |= {
            f"dense, {width}+ channels": [node for node in dense if self._width(node) >= width]
            for width in WIDTHS
        }
        found: dict[tuple[frozenset[str], tuple[str, ...]], Placement] = {}
        for name, nodes in named.items():
            one = self.placement(name, (node.output[0] for node in nodes))
            heavy = frozenset(node.output[0] for node in nodes if node.op_type in WEIGHTED)
            found.setdefault((heavy, one.tensors), one)
        return [one for (heavy, _), one in found.items() if heavy]

    def groups(self) -> dict[str, frozenset[str]]:
        """What may run in INT8 by kind and resolution, such as "depthwise at 28 px": what a search moves as one."""
        found: dict[str, set[str]] = {}
        for node in (*self.layers, *self.around):
            kind, side = _kind(node, self._shapes), self._side(node.output[0])
            found.setdefault(f"{kind} at {side} px" if side > 1 else kind, set()).add(
                node.output[0]
            )
        return {name: frozenset(nodes) for name, nodes in found.items()}

    def _written(self, value: str) -> str:
        """`value`, or what the activation that the target fuses into the layer makes of it."""
        reader = self._wiring.sole_consumer(value)
        if reader is not None and reader.op_type in self.scheme.fused:
            return str(reader.output[0])
        one = self._spelt.get(value)
        return one.end if one and one.kind in self.scheme.fused else value

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Whether it is a Conv or Gemm of constant weights and bias that computes their product and sum alone (a Gemm may scale)."""
        if (
            node.op_type not in WEIGHTED & {*self.scheme.quantized}
            or node.input[0] not in self._floats
        ):
            return False
        factors = all(item.f == 1.0 for item in node.attribute if item.name in ("alpha", "beta"))
        turned = any(item.name == "transA" and item.i for item in node.attribute)
        return (
            factors
            and not turned
            and all(value in self._shapes for value in node.input[1:] if value)
        )

    def _is_around(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in self.scheme.quantized:
            return False
        if node.op_type in ELEMENTWISE:
            return {*node.input, *node.output} <= self._floats.keys()
        return (
            node.op_type in (*DATA_MOVEMENT, *POOLING)
            and {node.input[0], *node.output} <= self._floats.keys()
        )

    def _side(self, name: str) -> int:
        """The height of an activation of rank 4, where it is known, else 0."""
        shape = self._wiring.shapes.get(name, [])
        return shape[2] if len(shape) == 4 else 0

    def _width(self, node: onnx.NodeProto) -> int:
        return min(self._shapes[node.input[1]][:2], default=0)


def candidates(model: onnx.ModelProto, scheme: QuantScheme = DEFAULT) -> list[Placement]:
    """See Places.candidates."""
    return PlacementSpace(model, scheme).starting_placements()


def placement(
    model: onnx.ModelProto, name: str, nodes: Iterable[str], scheme: QuantScheme = DEFAULT
) -> Placement:
    """See Places.placement."""
    return PlacementSpace(model, scheme).placement(name, nodes)


def _kind(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a node is alike to in speed."""
    if node.op_type in DATA_MOVEMENT:
        return "moving"
    if node.op_type in POOLING:
        return "pooling"
    if node.op_type != "Conv":
        return node.op_type
    if any(item.name == "group" and item.i > 1 for item in node.attribute):
        return "depthwise"
    return "x".join(map(str, shapes[node.input[1]][2:])) + " convolution"
