"""How channels go through one operator after another: what is asked of a graph's nodes besides its layers' weights."""

from __future__ import annotations

import math
from collections import Counter

import onnx

from repzoo.graph.pieces import skeleton
from repzoo.quant.layers import constants


class Wiring:
    """The shapes and constants of one `model`, and what they say of its nodes.

    shapes  of activations, where they are known; a size that is not is 0
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.constants = constants(model)
        inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        self.shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in values}

    def width(self, name: str) -> int:
        """Channels of an activation; 0 where they are not known."""
        shape = self.shapes.get(name, [])
        return shape[1] if len(shape) > 1 else 0

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of `node` that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def read_once(self) -> dict[str, onnx.NodeProto]:
        """Activations that one node reads, once, and nobody outside: that node."""
        readers = [(name, node) for node in self.nodes for name in self.activations(node)]
        counts = Counter(name for name, _ in readers)
        return {name: node for name, node in readers if counts[name] == 1 and name not in self.outputs}

    def flattens_pixels(self, node: onnx.NodeProto) -> bool:
        """Whether it turns [N, C, 1, 1] into [N, C] or back, or takes means over pixels alone."""
        before, after = self.shapes.get(node.input[0], []), self.shapes.get(node.output[0], [])
        if node.op_type == "ReduceMean":
            return len(before) == 4 and len(after) in (2, 4) and before[1] == after[1] > 0 and all(d == 1 for d in after[2:])
        if node.op_type not in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
            return False
        known = len(before) > 1 and len(after) > 1 and before[1] == after[1] > 0
        return known and all(d == 1 for d in (*before[2:], *after[2:]))

    def pixels(self, node: onnx.NodeProto) -> int:
        """Of what turns [N, C, H, W] into [N, C H W], a channel's pixels side by side: H W. 0 of any other."""
        before, after = self.shapes.get(node.input[0], []), self.shapes.get(node.output[0], [])
        flat = node.op_type in ("Flatten", "Reshape") and len(before) > 2 and len(after) == 2
        return math.prod(before[2:]) if flat and after[1] == math.prod(before[1:]) else 0

    def gated(self, node: onnx.NodeProto) -> str:
        """The input of a Mul whose other input is one number for each channel; "" where there is none."""
        sizes = {name: self.shapes.get(name, []) for name in self.activations(node)}
        gates = [name for name, shape in sizes.items() if len(shape) == 4 and shape[2:] == [1, 1]]
        others = [name for name in sizes if name not in gates]
        return others[0] if len(gates) == len(others) == 1 else ""

    def ends(self, node: onnx.NodeProto) -> tuple[float | None, float | None]:
        """(low, high) of a Clip, None where it has none; NaN where an end is computed.

        Source: ONNX operators Clip-6 (attributes) and Clip-13 (inputs).
        """
        given = {item.name: item.f for item in node.attribute}
        low, high = [*node.input[1:], "", ""][:2]
        return self._end(low, given.get("min")), self._end(high, given.get("max"))

    def _end(self, name: str, attribute: float | None) -> float | None:
        if not name:
            return attribute
        return float(self.constants[name].reshape(-1)[0]) if name in self.constants else float("nan")


def axis(node: onnx.NodeProto) -> int:
    """Of a Concat or Split."""
    return next((item.i for item in node.attribute if item.name == "axis"), 0)
