"""Evaluate a part of a graph in float64, from tensors whose values are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from repzoo.graph.certificate.attributes import is_standard
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.operators import (
    ARITHMETIC,
    MOVES,
    batch_normalize,
    scatter,
)
from repzoo.graph.certificate.window import Array, UnknownExpression

# Roundings in a border constant, which a BatchNormalization of four parameters computed.
BORDER_ROUNDINGS = 8
# Roundings in a constant that the graph computes, such as a standardized weight. The fold and the
# certificate each compute it in the graph's number type, but not in the same order.
COMPUTED_ROUNDINGS = 8


@dataclass(frozen=True)
class Evaluated:
    """A tensor in float64, and how often the graph rounds it on the way where float64 does not."""

    values: Array
    roundings: int


@dataclass
class Evaluation:
    """One evaluation of a graph.

    index      the graph
    values     what is known so far, by tensor name
    casts      how often folds cast a tensor that no longer exists, by its name
    absolute   compute error bounds instead of values, see operators.py
    scattered  whether constants were written into a tensor; the graph computed them in its number
               type
    has_computed  whether a constant was used that the graph computes
    """

    index: TensorIndex
    values: dict[str, Array]
    casts: Mapping[str, int] = field(default_factory=dict)
    absolute: bool = False
    scattered: bool = False
    has_computed: bool = False
    visited: set[str] = field(default_factory=set)

    def evaluate(self, name: str) -> Evaluated:
        """The tensor `name`.

        Raises:
            UnknownExpression: it depends on something that no fold replaces.
        """
        self.visited.clear()
        try:
            values = self._value(name)
        except ValueError:  # shapes that do not fit, which a wrong fold may have
            raise UnknownExpression(name) from None
        roundings = sum(self.casts.get(item, 0) for item in self.visited)
        if self.scattered:
            roundings += BORDER_ROUNDINGS
        if self.has_computed:
            roundings += COMPUTED_ROUNDINGS
        return Evaluated(values, roundings)

    def _value(self, name: str) -> Array:
        self.visited.add(name)
        name = self.index.resolve(name)
        self.visited.add(name)
        if name not in self.values:
            self.values[name] = self._compute(name)
        return self.values[name]

    def _compute(self, name: str) -> Array:
        constant = self.index.values(name)
        if constant is not None:
            self.has_computed |= name in self.index.computed
            return np.abs(constant) if self.absolute else constant
        node = self.index.producers.get(name)
        if node is None or not is_standard(node):
            raise UnknownExpression(name)
        if node.op_type in MOVES:
            image = self._value(node.input[0])
            output = list(node.output).index(name)
            return MOVES[node.op_type](node, image, list(self._constants(node)), output)
        if node.op_type == "ScatterND":
            self.scattered = True
            image = self._value(node.input[0])
            return scatter(node, image, list(self._constants(node)), self.absolute)
        if node.op_type == "BatchNormalization":
            # The sign of a mean and the magnitude of a variance matter: the operator takes them as
            # they are.
            inputs = [self._value(node.input[0]), *self._constants(node)]
            return batch_normalize(node, inputs, self.absolute)
        if node.op_type in ARITHMETIC:
            return ARITHMETIC[node.op_type](node, self._operands(node), self.absolute)
        raise UnknownExpression(name)

    def _operands(self, node: onnx.NodeProto) -> list[Array]:
        """All inputs. A weight stays in its number type, for the operator converts it in blocks."""
        names = [name for name in node.input if name]
        if node.op_type in ("Conv", "Gemm"):
            weight = self.index.stored(names[1])
            if weight is not None:
                self.has_computed |= self.index.resolve(names[1]) in self.index.computed
                biases = [self._value(name) for name in names[2:]]
                return [self._value(names[0]), weight, *biases]
            self.has_computed = True  # the nodes before this one compute the weight
        return [self._value(name) for name in names]

    def _constants(self, node: onnx.NodeProto) -> Iterator[Array]:
        """All inputs but the first, which must be constants; an omitted one is empty."""
        for name in node.input[1:]:
            values = self.index.values(name) if name else np.zeros(0)
            if values is None:
                raise UnknownExpression(name)
            yield values
