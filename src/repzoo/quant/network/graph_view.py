"""GraphView: shapes, consumers and constants of a graph, and simple questions about its nodes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.graph.tools.composites import Composite, Operation, find_composites
from repzoo.graph.tools.skeleton import without_weights
from repzoo.quant.network.scheme import MOVES

# Activation functions that may be composites and that quantization passes in one step.
ACTIVATIONS = ("Gelu", "Swish", "HardSwish")
RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


class GraphView:
    """A read-only view of one `model`.

    Attributes:
        nodes: in graph order, which is topological.
        outputs: names of the graph outputs.
        constants: initializers by name, as stored.
        consumers: of each tensor: the nodes that read it. A node that reads it twice is there
            twice.
        producers: of each activation but the graph inputs: the node that writes it.
        shapes: of activations where they are known; an unknown size is 0.
        floats: float32 activations in graph order (keys only). Shapes and indices, which a graph
            may compute too, are not among them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.constants = {item.name: item for item in model.graph.initializer}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        for node in self.nodes:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

        self.shapes: dict[str, list[int]] = {}
        self.floats: dict[str, None] = {}
        self._infer_types()

    def _infer_types(self) -> None:
        """Fill `shapes` and `floats` by ONNX's shape inference."""
        constants = set(self.constants)
        for node in self.nodes:
            if node.op_type == "Constant":
                constants.update(node.output)
        # Shape inference copies the model, so it gets one without weights.
        light = without_weights(self.model)
        inferred = onnx.shape_inference.infer_shapes(light).graph
        for item in (*inferred.input, *inferred.value_info, *inferred.output):
            tensor = item.type.tensor_type
            self.shapes[item.name] = [dim.dim_value for dim in tensor.shape.dim]
            is_float = tensor.elem_type == onnx.TensorProto.FLOAT
            if is_float and item.name not in constants:
                self.floats[item.name] = None

    def shape(self, name: str) -> list[int]:
        """The shape of an activation; empty if it is unknown."""
        return self.shapes.get(name, [])

    def width(self, name: str) -> int:
        """Channels of an activation; 0 if unknown."""
        shape = self.shape(name)
        return shape[1] if len(shape) > 1 else 0

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of `node` that are not constants."""
        # an optional input that is left out has the name ""
        names: list[str] = []
        for name in node.input:
            if name and name not in self.constants:
                names.append(name)
        return names

    def composite_activations(self) -> dict[str, Composite]:
        """The composite activations, by the float tensor that they alone read."""
        operations: list[Operation] = []
        for node in self.nodes:
            operations.append(self._operation(node))
        found = find_composites(operations, self.outputs, ACTIVATIONS)
        return {
            name: composite
            for name, composite in found.items()
            if composite.is_sole_reader and name in self.floats
        }

    def _operation(self, node: onnx.NodeProto) -> Operation:
        """`node` as the search for composites sees it."""
        inputs = tuple(self.activations(node))
        constants = [
            self.constants[name] for name in node.input if name in self.constants
        ]
        has_vector = any(math.prod(item.dims) > 1 for item in constants)
        return Operation(node.op_type, inputs, tuple(node.output), has_vector)

    def values(self, name: str) -> npt.NDArray[Any]:
        """The values of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor, if there is exactly one and it is no graph output."""
        consumers = self.consumers.get(name, [])
        if len(consumers) != 1 or name in self.outputs:
            return None
        return consumers[0]

    def before_moves(self, name: str, nodes: Collection[str]) -> list[str]:
        """`name`, or the tensors whose values those of `nodes` that move data move into it."""
        sources: dict[str, None] = {}
        seen: set[str] = set()
        pending = [name]
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            seen.add(value)
            node = self.producers.get(value)
            if node is None or node.op_type not in MOVES or node.output[0] not in nodes:
                sources[value] = None
            elif node.op_type == "Concat":
                pending.extend(reversed(node.input))
            else:
                pending.append(node.input[0])
        return list(sources)

    def has_consumer_outside(self, name: str, nodes: Collection[str]) -> bool:
        """Whether a node other than `nodes` (by first output), or the caller, reads a tensor."""
        if name in self.outputs:
            return True
        consumers = self.consumers.get(name, [])
        return any(node.output[0] not in nodes for node in consumers)

    def leaves_one_pixel(self, node: onnx.NodeProto) -> bool:
        """Whether `node` keeps the channels and leaves one pixel of each.

        It then averages the pixels, or turns [N, C, 1, 1] into [N, C] or back.
        """
        before = self.shape(node.input[0])
        after = self.shape(node.output[0])
        if len(before) < 2 or len(after) < 2:
            return False
        # A reshape may also fold pixels into channels: that is `pixels_per_channel`.
        keeps_channels = after[1] > 0 and before[1] == after[1]
        if not keeps_channels or not _is_one_pixel(after):
            return False
        if node.op_type == "ReduceMean":
            # with keepdims or without
            return len(before) == 4 and len(after) in (2, 4)
        return node.op_type in RESHAPING and _is_one_pixel(before)

    def pixels_per_channel(self, node: onnx.NodeProto) -> int:
        """H W of a node that turns [N, C, H, W] into [N, C H W]; 0 for any other node."""
        before = self.shape(node.input[0])
        after = self.shape(node.output[0])
        is_reshape = node.op_type in ("Flatten", "Reshape")
        if not is_reshape or len(before) <= 2 or len(after) != 2:
            return 0
        channels, *size = before[1:]
        pixels = math.prod(size)
        # A Reshape may also move pixels into the batch. It then has fewer columns.
        return pixels if after[1] == channels * pixels else 0

    def gated_input(self, node: onnx.NodeProto) -> str:
        """The input of a Mul whose other input has one number per channel; "" if there is none.

        This is the product of squeeze-and-excitation: [N, C, H, W] times [N, C, 1, 1].
        """
        gates: list[str] = []
        others: list[str] = []
        # without repeats: x * x has no gate
        for name in dict.fromkeys(self.activations(node)):
            shape = self.shape(name)
            is_gate = len(shape) == 4 and _is_one_pixel(shape)
            group = gates if is_gate else others
            group.append(name)
        if len(gates) == 1 and len(others) == 1:
            return others[0]
        return ""

    def clip_bounds(self, node: onnx.NodeProto) -> tuple[float | None, float | None]:
        """(low, high) of a Clip. None for a missing bound, NaN for a computed one.

        Source: ONNX operators Clip-6 (attributes) and Clip-13 (inputs).
        """
        attributes = {item.name: item.f for item in node.attribute}
        low = self._clip_bound(node, 1, attributes.get("min"))
        high = self._clip_bound(node, 2, attributes.get("max"))
        return low, high

    def _clip_bound(
        self,
        node: onnx.NodeProto,
        index: int,
        attribute: float | None,
    ) -> float | None:
        """The value of a Clip's input number `index`, or `attribute` where it has none."""
        name = node.input[index] if len(node.input) > index else ""
        if not name:
            return attribute
        if name not in self.constants:
            return math.nan
        values = self.values(name).reshape(-1)
        return float(values[0])


def _is_one_pixel(shape: Sequence[int]) -> bool:
    """Whether all axes after the channels have size 1. True for [N, C]."""
    return all(side == 1 for side in shape[2:])


def axis_of(node: onnx.NodeProto) -> int:
    """The axis of a Concat or Split."""
    return integer_attribute(node, "axis", 0)


def hard_sigmoid_constants(node: onnx.NodeProto) -> tuple[float, float]:
    """alpha and beta of a HardSigmoid, with the defaults of ONNX operator HardSigmoid-6."""
    values = {item.name: float(item.f) for item in node.attribute}
    return values.get("alpha", 0.2), values.get("beta", 0.5)


def integer_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """The integer attribute `name` of `node`; `default` if it has none of that name."""
    for item in node.attribute:
        if item.name == name:
            return int(item.i)
    return default
