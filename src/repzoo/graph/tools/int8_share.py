"""How much of a model runs in INT8: the share of its layers, of its arithmetic and of its weights.

"INT8" alone says little: a placement that is fastest on one host may run a single layer of a
hundred in INT8. So everything that says INT8 also says this share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.graph.tools.onnx_edit import nodes_by_output

# Index of the weight among the inputs, of layers in float or between Q/DQ pairs.
LAYERS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
# The same for operators that take integers themselves.
# Source: ONNX operators; QGemm is ONNX Runtime's.
INTEGER_LAYERS = {
    "ConvInteger": 1,
    "MatMulInteger": 1,
    "QGemm": 3,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
# Operators between a DequantizeLinear and the layer that do not change the values.
VIEWS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
EIGHT_BITS = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer with a stored weight of `size` elements."""

    node: onnx.NodeProto
    size: int
    is_int8: bool


@dataclass(frozen=True, kw_only=True)
class Int8Share:
    """What runs in INT8: a layer does where its input and its weight both have 8 bits.

    layers       convolutions and linear layers with stored weights
    int8_layers  those in INT8
    macs         their share of all layers' multiply-accumulates, 0..1; NaN where the graph leaves
                 sizes open
    bytes        their share of all layers' weights, 0..1, each counted by its bytes in the float
                 model
    """

    layers: int
    int8_layers: int
    macs: float
    bytes: float

    def __str__(self) -> str:
        """The share in words, such as "INT8: 1 of 96 layers, 15 % of MACs, 46 % of bytes"."""
        shares = [f"{self.int8_layers} of {self.layers} layers"]
        if not math.isnan(self.macs):
            shares.append(f"{percent_of_share(self.macs)} of MACs")
        shares.append(f"{percent_of_share(self.bytes)} of bytes")
        return f"INT8: {', '.join(shares)}"

    @property
    def is_everything(self) -> bool:
        """Whether every layer runs in INT8."""
        return self.int8_layers == self.layers > 0


def int8_share(artifact: Artifact) -> Int8Share:
    """The share of `artifact` that runs in INT8; none of it in a float model."""
    layers = _find_layers(artifact.model.graph)
    int8 = [layer for layer in layers if layer.is_int8]
    return Int8Share(
        layers=len(layers),
        int8_layers=len(int8),
        macs=_macs_share(artifact, layers),
        bytes=_share(_total_size(int8), _total_size(layers)),
    )


def _find_layers(graph: onnx.GraphProto) -> list[_Layer]:
    """The convolutions and linear layers with stored weights, in order."""
    types = _Types(graph)
    layers: list[_Layer] = []
    for node in graph.node:
        is_integer = node.op_type in INTEGER_LAYERS
        indices = INTEGER_LAYERS if is_integer else LAYERS
        index = indices.get(node.op_type)
        if index is None or index >= len(node.input):
            continue
        weight = node.input[index]
        size = types.stored_size(weight)
        if not size:
            continue  # two activations that are multiplied, as in attention
        is_int8 = is_integer or types.are_eight_bits(node.input[0], weight)
        layers.append(_Layer(node, size, is_int8))
    return layers


def _macs_share(artifact: Artifact, layers: Sequence[_Layer]) -> float:
    """The share of INT8 in the arithmetic of `layers`; NaN where it cannot be counted."""
    # onnx-ir takes long to import, and whoever only shows a share needs none of it.
    from repzoo.graph.tools.cost import macs_by_node

    total = 0
    int8 = 0
    try:
        macs = macs_by_node(artifact)
        for layer in layers:
            layer_macs = macs[layer.node.output[0]]
            total += layer_macs
            if layer.is_int8:
                int8 += layer_macs
    except (InputError, KeyError):
        # No classifier, sizes that are open, or operators on integers, which are not counted.
        return math.nan
    return _share(int8, total)


class _Types:
    """Which tensors of a graph are stored, and which are dequantized from 8 bits."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = nodes_by_output(graph)
        self._stored = {item.name: item for item in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self._stored[node.output[0]] = attribute.t

    def stored_size(self, name: str) -> int:
        """Elements of the constant behind views and Q/DQ pairs; 0 for an activation."""
        origin = self._origin(name, VIEWS | {"QuantizeLinear", "DequantizeLinear"})
        item = self._stored.get(origin)
        return math.prod(item.dims) if item is not None else 0

    def are_eight_bits(self, *names: str) -> bool:
        """Whether all of the tensors `names` are dequantized from 8 bits."""
        return all(self._is_eight_bits(name) for name in names)

    def _is_eight_bits(self, name: str) -> bool:
        node = self._nodes.get(self._origin(name, VIEWS))
        if node is None or node.op_type != "DequantizeLinear":
            return False
        # The type of a zero point is that of the integers; without one they are stored, or uint8.
        for source in (*node.input[2:3], node.input[0]):
            if source in self._stored:
                return self._stored[source].data_type in EIGHT_BITS
        return True

    def _origin(self, name: str, operators: set[str]) -> str:
        """The tensor that `name` is made from by `operators` alone."""
        node = self._nodes.get(name)
        while node is not None and node.op_type in operators and node.input:
            name = node.input[0]
            node = self._nodes.get(name)
        return name


def _total_size(layers: Sequence[_Layer]) -> int:
    return sum(layer.size for layer in layers)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def percent_of_share(share: float) -> str:
    """A share (0..1) as whole percent; 0 % and 100 % only where they are exact, "?" for NaN."""
    if math.isnan(share):
        return "?"
    if 0 < share < 0.005:
        return "< 1 %"
    if 0.995 <= share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"
