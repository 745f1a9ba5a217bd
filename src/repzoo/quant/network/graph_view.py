"""What is asked of a graph besides its layers' weights: shapes, readers, constants, and how channels go through a node."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.graph.tools.pieces import without_weights


class GraphView:
    """The shapes, readers and constants of one `model`, and what they say of its nodes.

    shapes     of activations, where they are known; a size that is not is 0
    readers    of each tensor, the nodes that read it, one that does so twice being there twice
    constants  initializers, as they are stored: most are asked for their names alone
    floats     activations that are known to be float32, in graph order: shapes and indices, which a graph may compute too, are not
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.constants = {item.name: item for item in model.graph.initializer}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        self.shapes = {
            item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in values
        }
        fixed = self.constants.keys() | {
            node.output[0] for node in self.nodes if node.op_type == "Constant"
        }
        float32 = [
            item.name
            for item in values
            if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        ]
        self.floats = dict.fromkeys(name for name in float32 if name not in fixed)

    def width(self, name: str) -> int:
        """Channels of an activation; 0 where they are not known."""
        shape = self.shapes.get(name, [])
        return shape[1] if len(shape) > 1 else 0

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of `node` that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def values(self, name: str) -> npt.NDArray[Any]:
        """Of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """The node that reads a tensor, where it is one, once, and nobody outside reads it."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def has_consumer_outside(self, name: str, nodes: Iterable[str]) -> bool:
        """Whether anybody reads a tensor but the nodes whose first outputs are `nodes`."""
        return name in self.outputs or any(
            node.output[0] not in nodes for node in self.consumers.get(name, [])
        )

    def flattens_pixels(self, node: onnx.NodeProto) -> bool:
        """Whether it turns [N, C, 1, 1] into [N, C] or back, or takes means over pixels alone."""
        before, after = self.shapes.get(node.input[0], []), self.shapes.get(node.output[0], [])
        if node.op_type == "ReduceMean":
            return (
                len(before) == 4
                and len(after) in (2, 4)
                and before[1] == after[1] > 0
                and all(d == 1 for d in after[2:])
            )
        if node.op_type not in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
            return False
        known = len(before) > 1 and len(after) > 1 and before[1] == after[1] > 0
        return known and all(d == 1 for d in (*before[2:], *after[2:]))

    def pixels_per_channel(self, node: onnx.NodeProto) -> int:
        """Of what turns [N, C, H, W] into [N, C H W], a channel's pixels side by side: H W. 0 of any other."""
        before, after = self.shapes.get(node.input[0], []), self.shapes.get(node.output[0], [])
        flat = node.op_type in ("Flatten", "Reshape") and len(before) > 2 and len(after) == 2
        return math.prod(before[2:]) if flat and after[1] == math.prod(before[1:]) else 0

    def gated_input(self, node: onnx.NodeProto) -> str:
        """The input of a Mul whose other input is one number for each channel; "" where there is none."""
        sizes = {name: self.shapes.get(name, []) for name in self.activations(node)}
        gates = [name for name, shape in sizes.items() if len(shape) == 4 and shape[2:] == [1, 1]]
        others = [name for name in sizes if name not in gates]
        return others[0] if len(gates) == len(others) == 1 else ""

    def clip_bounds(self, node: onnx.NodeProto) -> tuple[float | None, float | None]:
        """(low, high) of a Clip, None where it has none; NaN where an end is computed.

        Source: ONNX operators Clip-6 (attributes) and Clip-13 (inputs).
        """
        given = {item.name: item.f for item in node.attribute}
        low, high = [*node.input[1:], "", ""][:2]
        return self._end(low, given.get("min")), self._end(high, given.get("max"))

    def _end(self, name: str, attribute: float | None) -> float | None:
        if not name:
            return attribute
        return float(self.values(name).reshape(-1)[0]) if name in self.constants else float("nan")


def axis_of(node: onnx.NodeProto) -> int:
    """Of a Concat or Split."""
    return next((item.i for item in node.attribute if item.name == "axis"), 0)
