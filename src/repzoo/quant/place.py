"""Where Q/DQ pairs go: which nodes compute in INT8 and which tensors are therefore quantised.

A Placement is data: the names of the nodes that run in INT8. The tensors follow: what such a node reads, and what it writes
once the activation that the target applies within it (ReLU, for some targets GELU and hard-swish too) has been applied.

Which operators may be INT8 and which activations belong to the layer before is the scheme's to say (`quantised`, `fused`). Of an
activation that is spelt in several nodes (GELU by Erf, swish by Sigmoid and Mul) none runs in INT8 on any target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from repzoo.graph.pieces import skeleton
from repzoo.quant.scheme import MOVING, POOLING, QuantScheme
from repzoo.quant.spelling import spelt

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
    wide: frozenset[str] = frozenset()


class Places:
    """What may run in INT8 in one float `model` on the target of `scheme`.

    layers  convolutions and linear layers of constant weights, around: what else may; both by output, in graph order
    """

    def __init__(self, model: onnx.ModelProto, scheme: QuantScheme = DEFAULT) -> None:
        self.model, self.scheme = model, scheme
        self._nodes = list(model.graph.node)
        self._sides, self._floats = _known(model)
        self._shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for value in node.input:
                self._readers.setdefault(value, []).append(node)
        self._outputs = {value.name for value in model.graph.output}
        self._spelt = spelt(model, self._floats)
        self.layers = [node for node in self._nodes if self._is_plain(node)]
        inside = {value for one in self._spelt.values() for value in one.nodes}
        self.around = [node for node in self._nodes if self._is_around(node) and node.output[0] not in inside]

    def placement(self, name: str, nodes: Iterable[str]) -> Placement:
        """The placement that runs `nodes` (by first output) in INT8."""
        chosen = frozenset(nodes)
        tensors: dict[str, None] = {}
        for node in self._nodes:
            if node.output[0] in chosen:
                reads = node.input[:1] if node.op_type in WEIGHTED else node.input
                tensors |= dict.fromkeys(value for value in reads if value in self._floats)
                tensors |= dict.fromkeys(self._written(value) for value in node.output if value)
        return Placement(name, chosen, tuple(value for value in tensors if value not in self._outputs))

    def candidates(self) -> list[Placement]:
        """Placements to begin a search with, the most quantised first; empty ones, and those that write the same, are dropped.

        Narrow and depthwise convolutions, and operators without weights, often cost more in INT8 than they save.
        """
        dense = [node for node in self.layers if _kind(node, self._shapes) != "depthwise"]
        named = {
            "everything": [*self.layers, *self.around],
            "everything but depthwise": [*dense, *self.around],
            "layers": self.layers,
            "dense": dense,
        }
        named |= {f"dense, {width}+ channels": [node for node in dense if self._width(node) >= width] for width in WIDTHS}
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
            kind, side = _kind(node, self._shapes), self._sides.get(node.output[0], 0)
            found.setdefault(f"{kind} at {side} px" if side > 1 else kind, set()).add(node.output[0])
        return {name: frozenset(nodes) for name, nodes in found.items()}

    def _written(self, value: str) -> str:
        """`value`, or what the activation that the target fuses into the layer makes of it."""
        readers = self._readers.get(value, [])
        if len(readers) == 1 and readers[0].op_type in self.scheme.fused and value not in self._outputs:
            return str(readers[0].output[0])
        one = self._spelt.get(value)
        return one.end if one and one.kind in self.scheme.fused else value

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Whether it is a Conv or Gemm of constant weights and bias that computes their product and sum alone (a Gemm may scale)."""
        if node.op_type not in WEIGHTED & {*self.scheme.quantised} or node.input[0] not in self._floats:
            return False
        factors = all(item.f == 1.0 for item in node.attribute if item.name in ("alpha", "beta"))
        turned = any(item.name == "transA" and item.i for item in node.attribute)
        return factors and not turned and all(value in self._shapes for value in node.input[1:] if value)

    def _is_around(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in self.scheme.quantised:
            return False
        if node.op_type in ELEMENTWISE:
            return {*node.input, *node.output} <= self._floats.keys()
        return node.op_type in (*MOVING, *POOLING) and {node.input[0], *node.output} <= self._floats.keys()

    def _width(self, node: onnx.NodeProto) -> int:
        return min(self._shapes[node.input[1]][:2], default=0)


def candidates(model: onnx.ModelProto, scheme: QuantScheme = DEFAULT) -> list[Placement]:
    """See Places.candidates."""
    return Places(model, scheme).candidates()


def placement(model: onnx.ModelProto, name: str, nodes: Iterable[str], scheme: QuantScheme = DEFAULT) -> Placement:
    """See Places.placement."""
    return Places(model, scheme).placement(name, nodes)


def _kind(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a node is alike to in speed."""
    if node.op_type in MOVING:
        return "moving"
    if node.op_type in POOLING:
        return "pooling"
    if node.op_type != "Conv":
        return node.op_type
    if any(item.name == "group" and item.i > 1 for item in node.attribute):
        return "depthwise"
    return "x".join(map(str, shapes[node.input[1]][2:])) + " convolution"


def _known(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, None]]:
    """(height of each activation of rank 4 whose height is known, activations that are known to be float32).

    Shapes and indices, which a graph may compute too, are not float32.
    """
    graph = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    constants = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    constants |= {item.name for item in model.graph.initializer}
    sides, floats = dict[str, int](), dict[str, None]()
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.FLOAT and value.name not in constants:
            floats[value.name] = None
        if len(tensor.shape.dim) == 4:
            sides[value.name] = tensor.shape.dim[2].dim_value
    return sides, floats
