"""Placements: which nodes compute in INT8, and which tensors are therefore quantized.

A Placement is data: the nodes that run in INT8. The tensors follow from it: what such a node
reads, and what it writes after the activation that the target fuses into it (ReLU; on some
targets also GELU and hard-swish).

Some targets need no pair behind an INT8 operator (`output_pairs` of the scheme is off). Then only
what computing nodes read is quantized. A node that moves data passes integers on: the pair of
what it moves stands in front of it.

The scheme says which operators may run in INT8 (`quantized`) and which activations are fused
(`fused`). The nodes of a composite activation run in INT8 only where the scheme has all of their
operators: SiLU in ONNX Runtime, a table for its sigmoid and a product of integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from repzoo.quant.network.graph_view import (
    GraphView,
    hard_sigmoid_constants,
    integer_attribute,
)
from repzoo.quant.network.layers import WEIGHTED, is_scaled_product
from repzoo.quant.network.scheme import DATA_MOVEMENT, MOVES, POOLING, QuantScheme

ELEMENTWISE = frozenset({"Add", "Mul"})
# Lower limits of channels for starting placements: narrow convolutions gain little in INT8.
WIDTHS = (32, 64, 128)
DEFAULT = QuantScheme("default", "operators and activations of ONNX Runtime")


@dataclass(frozen=True)
class Placement:
    """Which nodes run in INT8.

    Attributes:
        name: for reports.
        nodes: first outputs of the nodes that run in INT8.
        tensors: activations with a Q/DQ pair, in graph order.
        int16_tensors: those of `tensors` that take 16 bits.
        moved: (activation in INT8 without a pair, one of `tensors` whose pair serves it).
    """

    name: str
    nodes: frozenset[str]
    tensors: tuple[str, ...]
    int16_tensors: frozenset[str] = frozenset()
    moved: tuple[tuple[str, str], ...] = ()

    @property
    def quantized(self) -> tuple[str, ...]:
        """All activations in INT8, with a pair of their own or without."""
        return (*self.tensors, *(name for name, _ in self.moved))


class PlacementSpace:
    """What may run in INT8 in one float `model` on the target of `scheme`.

    Attributes:
        layers: convolutions and linear layers with constant weights, in graph order.
        around: other nodes that may run in INT8, in graph order.
    """

    def __init__(self, model: onnx.ModelProto, scheme: QuantScheme = DEFAULT) -> None:
        self.model = model
        self.scheme = scheme
        self._view = GraphView(model)
        self._floats = self._view.floats
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, item in self._view.constants.items():
            self._shapes[name] = tuple(item.dims)
        self._composites = self._view.composite_activations()
        self._kinds: dict[str, str] = {}  # of composites in INT8, by first outputs
        self.layers: list[onnx.NodeProto] = []
        self.around: list[onnx.NodeProto] = []
        self._sort_nodes()

    def _sort_nodes(self) -> None:
        """Fill `layers` and `around`."""
        in_float: set[str] = set()
        for composite in self._composites.values():
            nodes = [self._view.producers[name] for name in composite.nodes]
            if all(self._is_around(node) for node in nodes):
                self._kinds.update(dict.fromkeys(composite.nodes, composite.kind))
            else:
                in_float.update(composite.nodes)
        for node in self._view.nodes:
            if self._is_layer(node):
                self.layers.append(node)
            elif node.output[0] not in in_float and self._is_around(node):
                self.around.append(node)

    def placement(self, name: str, nodes: Iterable[str]) -> Placement:
        """The placement that runs `nodes` (by first output) in INT8."""
        chosen = frozenset(nodes)
        # a dict keeps the order in which the tensors come up
        tensors: dict[str, None] = {}
        moved: dict[str, str] = {}
        for node in self._view.nodes:
            if node.output[0] in chosen:
                tensors.update(dict.fromkeys(self._pairs_of(node, chosen, moved)))
        # the caller reads graph outputs, and wants them in float
        inner = [value for value in tensors if value not in self._view.outputs]
        return Placement(name, chosen, tuple(inner), moved=tuple(moved.items()))

    def _pairs_of(
        self, node: onnx.NodeProto, chosen: frozenset[str], moved: dict[str, str]
    ) -> list[str]:
        """The tensors that `node`, one of the `chosen` that run in INT8, needs pairs on.

        What it reads behind nodes that move data is added to `moved`.
        """
        inputs = self._quantized_inputs(node)
        if self.scheme.output_pairs:
            return inputs + self._quantized_outputs(node)
        if node.op_type in MOVES:
            return []  # whoever reads what it moves asks for the pair
        names: list[str] = []
        for value in inputs:
            sources = self._view.before_moves(value, chosen)
            if sources != [value]:
                moved[value] = sources[0]
            names.extend(sources)
        return names

    def _quantized_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The activations that `node` reads."""
        inputs = list(node.input)
        if node.op_type in WEIGHTED:
            inputs = inputs[:1]  # the others are its weight and bias
        return [value for value in inputs if value in self._floats]

    def _quantized_outputs(self, node: onnx.NodeProto) -> list[str]:
        """The activations that `node` writes, behind a fused activation function."""
        return [self._after_fusion(value) for value in node.output if value]

    def count(self, placement: Placement) -> int:
        """Number of layers that `placement` runs in INT8."""
        inside = _first_outputs(self.layers) & placement.nodes
        return len(inside)

    def starting_placements(self) -> list[Placement]:
        """Placements to begin a search with, the most quantized first, without duplicates.

        Narrow and depthwise convolutions, and operators without weights, often cost more in INT8
        than they save.
        """
        dense = [node for node in self.layers if self._kind(node) != "depthwise"]
        named = {
            "everything": [*self.layers, *self.around],
            "layers": self.layers,
            "everything but depthwise": [*dense, *self.around],
            "dense": dense,
        }
        for width in WIDTHS:
            wide = [node for node in dense if self._width(node) >= width]
            named[f"dense, {width}+ channels"] = wide
        return self._without_duplicates(named)

    def _without_duplicates(
        self, named: Mapping[str, Iterable[onnx.NodeProto]]
    ) -> list[Placement]:
        """The placements of these nodes that hold a layer, each file once."""
        layers = _first_outputs(self.layers)
        placements: list[Placement] = []
        written: set[tuple[frozenset[str], tuple[str, ...]]] = set()
        for name, nodes in named.items():
            placement = self.placement(name, _first_outputs(nodes))
            layers_inside = placement.nodes & layers
            # Two placements with the same layers and tensors write the same file.
            file = (layers_inside, placement.tensors)
            if layers_inside and file not in written:
                placements.append(placement)
                written.add(file)
        return placements

    def groups(self) -> dict[str, frozenset[str]]:
        """Nodes by kind and resolution ("depthwise at 28 px"), which a search moves at once."""
        members: dict[str, set[str]] = {}
        for node in (*self.layers, *self.around):
            name = self._kind(node)
            side = self._height(node.output[0])
            if side > 1:
                name = f"{name} at {side} px"
            members.setdefault(name, set()).add(node.output[0])
        groups: dict[str, frozenset[str]] = {}
        for name, outputs in members.items():
            groups[name] = frozenset(outputs)
        return groups

    def read(self, node: onnx.NodeProto) -> list[str]:
        """The activations that `node`, one of the space, reads."""
        return self._quantized_inputs(node)

    def written(self, node: onnx.NodeProto) -> str:
        """The activation that `node`, one of the space, writes, behind a fused function."""
        return self._after_fusion(node.output[0])

    def writes(self, name: str) -> bool:
        """Whether `name` is the first output of a node of the float model."""
        return name in self._view.producers

    def readers(self, name: str) -> list[str]:
        """First outputs of the nodes that read an activation; "" for the caller."""
        names = [node.output[0] for node in self._view.consumers.get(name, [])]
        return [*names, ""] if name in self._view.outputs else names

    def sources(self, name: str) -> list[str]:
        """First outputs of the nodes that write what the node of `name` reads."""
        node = self._view.producers.get(name)
        writers = (
            [self._view.producers.get(value) for value in node.input] if node else []
        )
        return [writer.output[0] for writer in writers if writer is not None]

    def elements(self, name: str) -> int:
        """Numbers in an activation for one image; an unknown side counts as 1."""
        return math.prod(max(1, side) for side in self._view.shape(name))

    def signature(self, node: onnx.NodeProto) -> str:
        """The same for nodes that cost the same: operator, attributes, weights and shapes."""
        weights = [self._shapes.get(name, ()) for name in node.input[1:2]]
        shapes = [self._view.shape(name) for name in (*node.input[:1], *node.output)]
        attributes = sorted(str(item) for item in node.attribute)
        return f"{node.op_type} {weights} {shapes} {attributes}"

    def _after_fusion(self, value: str) -> str:
        """`value`, or the output of the activation that the target fuses into its layer."""
        consumer = self._view.sole_consumer(value)
        if consumer is not None and consumer.op_type in self.scheme.fused:
            return str(consumer.output[0])
        composite = self._composites.get(value)
        if composite is not None and composite.kind in self.scheme.fused:
            return composite.output
        return value

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether it is a Conv or Gemm with constant weights and bias, and nothing else.

        `layers.find_layers` knows fewer: no Conv with one or three spatial axes. Such a Conv may
        run in INT8 too, but without corrections: its weights are rounded to nearest.
        """
        if node.op_type not in WEIGHTED or node.op_type not in self.scheme.quantized:
            return False
        if node.input[0] not in self._floats:
            return False
        # a Gemm that scales or transposes its input is more than rows times column
        if is_scaled_product(node) or integer_attribute(node, "transA", 0):
            return False
        parameters = {value for value in node.input[1:] if value}
        return parameters <= self._shapes.keys()

    def _is_around(self, node: onnx.NodeProto) -> bool:
        """Whether it is a node without weights that the target runs in INT8."""
        if node.op_type not in self.scheme.quantized:
            return False
        if node.op_type in ELEMENTWISE:
            # a sum with a constant would need a scale for the constant
            activations = {*node.input, *node.output}
        elif node.op_type == "HardSigmoid":
            alpha, beta = hard_sigmoid_constants(node)
            # It becomes a sum in INT8: of its scaled input, and of this constant.
            if alpha <= 0 or beta <= 0:
                return False
            activations = {*node.input, *node.output}
        elif node.op_type in (*DATA_MOVEMENT, *POOLING, "Sigmoid"):
            # further inputs are shapes, axes and split sizes
            activations = {node.input[0], *node.output}
        else:
            return False
        return activations <= self._floats.keys()

    def _height(self, name: str) -> int:
        """The height of an activation of rank 4; 0 if unknown."""
        shape = self._view.shape(name)
        return shape[2] if len(shape) == 4 else 0

    def _width(self, node: onnx.NodeProto) -> int:
        """The smaller of its output and input channels per group."""
        channels = self._shapes[node.input[1]][:2]
        return min(channels, default=0)

    def _kind(self, node: onnx.NodeProto) -> str:
        """A name for nodes that are likely to gain or lose alike in INT8."""
        if node.output[0] in self._kinds:
            return self._kinds[node.output[0]]
        if node.op_type in DATA_MOVEMENT:
            return "moving"
        if node.op_type in POOLING:
            return "pooling"
        if node.op_type != "Conv":
            return str(node.op_type)
        # A grouped convolution counts as depthwise: it too has few weights for each value it reads.
        if integer_attribute(node, "group", 1) > 1:
            return "depthwise"
        kernel = self._shapes[node.input[1]][2:]
        return "x".join(map(str, kernel)) + " convolution"


def _first_outputs(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    """The names by which placements know `nodes`."""
    return frozenset(node.output[0] for node in nodes)
