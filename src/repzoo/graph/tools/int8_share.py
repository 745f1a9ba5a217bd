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
from repzoo.graph.tools.cost import macs_by_node

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

Layer = tuple[onnx.NodeProto, int]  # with the number of its weight's elements


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
        shares = [f"{percent_of_share(self.bytes)} of bytes"]
        if not math.isnan(self.macs):
            shares.insert(0, f"{percent_of_share(self.macs)} of MACs")
        return f"INT8: {self.int8_layers} of {self.layers} layers, {', '.join(shares)}"

    @property
    def is_everything(self) -> bool:
        """Whether every layer runs in INT8."""
        return self.int8_layers == self.layers > 0


def int8_share(artifact: Artifact) -> Int8Share:
    """The share of `artifact` that runs in INT8; none of it in a float model."""
    graph = artifact.model.graph
    types = _Types(graph)
    layers: list[Layer] = []
    int8: list[Layer] = []
    for node in graph.node:
        index = LAYERS.get(node.op_type, INTEGER_LAYERS.get(node.op_type))
        if index is None or index >= len(node.input):
            continue
        size = types.stored_size(node.input[index])
        if not size:
            continue  # two activations that are multiplied, as in attention
        layers.append((node, size))
        if node.op_type in INTEGER_LAYERS or types.are_eight_bits(
            node.input[0], node.input[index]
        ):
            int8.append((node, size))
    return Int8Share(
        layers=len(layers),
        int8_layers=len(int8),
        macs=_macs_share(artifact, layers, int8),
        bytes=_share(_sizes(int8), _sizes(layers)),
    )


def _macs_share(
    artifact: Artifact, layers: Sequence[Layer], int8: Sequence[Layer]
) -> float:
    """The share of `int8` in the arithmetic of `layers`; NaN where it cannot be counted."""
    try:
        macs = macs_by_node(artifact)
        parts = [macs[node.output[0]] for node, _ in int8]
        return _share(sum(parts), sum(macs[node.output[0]] for node, _ in layers))
    except (InputError, KeyError):
        # No classifier, sizes that are open, or operators on integers, which are not counted.
        return math.nan


class _Types:
    """Which tensors of a graph are stored, and which are dequantized from 8 bits."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producers = {name: node for node in graph.node for name in node.output}
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
        node = self._producers.get(self._origin(name, VIEWS))
        if node is None or node.op_type != "DequantizeLinear":
            return False
        # The type of a zero point is that of the integers; without one they are stored, or uint8.
        for source in (*node.input[2:3], node.input[0]):
            if source in self._stored:
                return self._stored[source].data_type in EIGHT_BITS
        return True

    def _origin(self, name: str, operators: set[str]) -> str:
        """The tensor that `name` is made from by `operators` alone."""
        node = self._producers.get(name)
        while node is not None and node.op_type in operators and node.input:
            name = node.input[0]
            node = self._producers.get(name)
        return name


def _sizes(layers: Sequence[Layer]) -> int:
    return sum(size for _, size in layers)


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
