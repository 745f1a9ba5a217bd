"""A node that a fold may have written, with its weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from repzoo.graph.certificate.attributes import integer
from repzoo.graph.certificate.evaluation import Evaluation
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.operators import Stored
from repzoo.graph.certificate.window import Array


@dataclass(frozen=True)
class FoldedNode:
    """A Conv, Gemm or MatMul of the folded graph.

    node    a MatMul may have its bias as a third input, see unchanged.changed_nodes
    index   of the folded graph
    weight  [outputs, inputs per group, ...], in the number type of the graph
    """

    node: onnx.NodeProto
    index: TensorIndex
    weight: Stored

    @classmethod
    def of(cls, node: onnx.NodeProto, index: TensorIndex) -> FoldedNode | None:
        """`node` with its weight; None if it is none that a fold writes."""
        weight = weight_of(node, index)
        if weight is None:
            return None
        return cls(node, index, weight)

    @property
    def element_type(self) -> int:
        """The ONNX element type of the weight."""
        name = self.index.resolve(self.node.input[1])
        return self.index.constants[name].data_type

    def bias_magnitude(self) -> Array:
        """The magnitude of the bias, [outputs]; zeros where there is none."""
        if len(self.node.input) > 2:
            bias = self.index.values(self.node.input[2])
            if bias is not None:
                return np.abs(bias)
        return np.zeros(len(self.weight))

    def evaluate(self, probes: Array, absolute: bool = False) -> Array:
        """What the node computes on `probes`; for `absolute` see operators.py."""
        source = self.index.resolve(self.node.input[0])
        evaluation = Evaluation(self.index, {source: probes}, absolute=absolute)
        return evaluation.evaluate(self.node.output[0]).values


def weight_of(node: onnx.NodeProto, index: TensorIndex) -> Stored | None:
    """The weight [outputs, inputs per group, ...] of a node that a fold may have written."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = index.stored(node.input[1])
    if weight is None:
        return None
    if node.op_type == "MatMul":
        return weight.T if weight.ndim == 2 else None
    if node.op_type == "Gemm" and not integer(node, "transB", 0):
        return weight.T
    return weight
