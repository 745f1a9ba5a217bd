"""GraphView: shapes, consumers and constants of a graph, and simple questions about its nodes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.graph.tools.pieces import without_weights

RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


class GraphView:
    """A read-only view of one `model`.

    shapes     of activations where they are known; an unknown size is 0
    consumers  of each tensor: the nodes that read it. A node that reads it twice is there twice
    constants  initializers by name, as stored
    floats     float32 activations in graph order (keys only). Shapes and indices, which a graph may
               compute too, are not among them
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.constants = {item.name: item for item in model.graph.initializer}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

        constants = set(self.constants)
        constants.update(
            node.output[0] for node in self.nodes if node.op_type == "Constant"
        )
        self.shapes: dict[str, list[int]] = {}
        self.floats: dict[str, None] = {}
        # Shape inference copies the model, so it gets one without weights.
        inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
        for item in (*inferred.input, *inferred.value_info, *inferred.output):
            tensor = item.type.tensor_type
            self.shapes[item.name] = [dim.dim_value for dim in tensor.shape.dim]
            if (
                tensor.elem_type == onnx.TensorProto.FLOAT
                and item.name not in constants
            ):
                self.floats[item.name] = None

    def width(self, name: str) -> int:
        """Channels of an activation; 0 if unknown."""
        shape = self.shapes.get(name, [])
        return shape[1] if len(shape) > 1 else 0

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of `node` that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def values(self, name: str) -> npt.NDArray[Any]:
        """The values of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads a tensor, if there is exactly one and it is no graph output."""
        consumers = self.consumers.get(name, [])
        return (
            consumers[0] if len(consumers) == 1 and name not in self.outputs else None
        )

    def has_consumer_outside(self, name: str, nodes: Iterable[str]) -> bool:
        """Whether a node other than `nodes` (by first output), or the caller, reads a tensor."""
        if name in self.outputs:
            return True
        return any(node.output[0] not in nodes for node in self.consumers.get(name, []))

    def flattens_pixels(self, node: onnx.NodeProto) -> bool:
        """Whether `node` averages pixels only, or turns [N, C, 1, 1] into [N, C] or back."""
        before = self.shapes.get(node.input[0], [])
        after = self.shapes.get(node.output[0], [])
        if len(before) < 2 or len(after) < 2:
            return False
        keeps_channels = before[1] == after[1] > 0
        has_one_pixel_after = all(side == 1 for side in after[2:])
        if node.op_type == "ReduceMean":
            has_image_ranks = len(before) == 4 and len(after) in (2, 4)
            return has_image_ranks and keeps_channels and has_one_pixel_after
        if node.op_type not in RESHAPING:
            return False
        has_one_pixel_before = all(side == 1 for side in before[2:])
        return keeps_channels and has_one_pixel_before and has_one_pixel_after

    def pixels_per_channel(self, node: onnx.NodeProto) -> int:
        """H W of a node that turns [N, C, H, W] into [N, C H W]; 0 for any other node."""
        before = self.shapes.get(node.input[0], [])
        after = self.shapes.get(node.output[0], [])
        is_reshape = node.op_type in ("Flatten", "Reshape")
        if not is_reshape or len(before) <= 2 or len(after) != 2:
            return 0
        return math.prod(before[2:]) if after[1] == math.prod(before[1:]) else 0

    def gated_input(self, node: onnx.NodeProto) -> str:
        """The input of a Mul whose other input has one number per channel; "" if there is none."""
        gates: list[str] = []
        others: list[str] = []
        for name in dict.fromkeys(self.activations(node)):
            shape = self.shapes.get(name, [])
            is_gate = len(shape) == 4 and shape[2:] == [1, 1]
            (gates if is_gate else others).append(name)
        return others[0] if len(gates) == len(others) == 1 else ""

    def clip_bounds(self, node: onnx.NodeProto) -> tuple[float | None, float | None]:
        """(low, high) of a Clip. None for a missing bound, NaN for a computed one.

        Source: ONNX operators Clip-6 (attributes) and Clip-13 (inputs).
        """
        attributes = {item.name: item.f for item in node.attribute}
        low, high = [*node.input[1:], "", ""][:2]
        return self._bound(low, attributes.get("min")), self._bound(
            high, attributes.get("max")
        )

    def _bound(self, name: str, attribute: float | None) -> float | None:
        if not name:
            return attribute
        if name not in self.constants:
            return float("nan")
        return float(self.values(name).reshape(-1)[0])


def axis_of(node: onnx.NodeProto) -> int:
    """The axis of a Concat or Split."""
    return next((item.i for item in node.attribute if item.name == "axis"), 0)
