"""Evaluate a part of a graph in float64, from tensors whose values are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from repzoo.graph.certificate.attributes import is_standard
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.operators import (
    ARITHMETIC,
    MOVES,
    scatter,
)
from repzoo.graph.certificate.window import Array, UnknownExpression

# Roundings in a border constant, which a BatchNormalization of four parameters computed.
BORDER_ROUNDINGS = 8
# Roundings in a constant that the graph computes, such as a standardized weight. The fold and the
# certificate each compute it in the graph's number type, but not in the same order.
COMPUTED_ROUNDINGS = 8

# Operators whose other inputs must be constants.
WITH_ONE_OPERAND = frozenset({*MOVES, "ScatterND"})


@dataclass(frozen=True)
class Evaluated:
    """A tensor in float64, and how often the graph rounds it on the way where float64 does not."""

    values: Array
    roundings: int


@dataclass
class Evaluation:
    """One evaluation of a graph.

    index         the graph
    values        what is known so far, by tensor name
    casts         how often folds rounded a tensor that no longer exists, by its name
    absolute      compute error bounds instead of values, see operators.py
    has_scatter   whether constants were written into a tensor; the graph computed them in its
                  number type
    has_computed  whether a constant was used that the graph computes
    visited       the tensors that the last evaluation read
    """

    index: TensorIndex
    values: dict[str, Array]
    casts: Mapping[str, int] = field(default_factory=dict)
    absolute: bool = False
    has_scatter: bool = False
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
        return Evaluated(values, self._roundings())

    def _roundings(self) -> int:
        """How often the graph rounds what the last evaluation read, where float64 does not."""
        roundings = sum(self.casts.get(name, 0) for name in self.visited)
        if self.has_scatter:
            roundings += BORDER_ROUNDINGS
        if self.has_computed:
            roundings += COMPUTED_ROUNDINGS
        return roundings

    def _value(self, name: str) -> Array:
        # Not by recursion: an expression may be a chain of thousands of nodes.
        stack = [name]
        while stack:
            current = self.index.resolve(stack[-1])
            self.visited.update((stack[-1], current))
            missing = self._missing_operands(current)
            if missing:
                stack += missing
                continue
            if current not in self.values:
                self.values[current] = self._compute(current)
            stack.pop()
        return self.values[self.index.resolve(name)]

    def _missing_operands(self, name: str) -> list[str]:
        """The tensors that must be computed before `name`; none where it is known itself."""
        if name in self.values:
            return []
        missing = []
        for operand in self._operand_names(name):
            if self.index.resolve(operand) not in self.values:
                missing.append(operand)
        return missing

    def _operand_names(self, name: str) -> list[str]:
        """The tensors that must have values before `name` can be computed."""
        node = self.index.producers.get(name)
        if name in self.index.constants or node is None:
            return []
        if node.op_type not in ARITHMETIC:
            return [node.input[0]] if node.op_type in WITH_ONE_OPERAND else []
        names = [item for item in node.input if item]
        has_weight = node.op_type in ("Conv", "Gemm")
        if has_weight and self.index.stored(names[1]) is not None:
            del names[1]
        return names

    def _compute(self, name: str) -> Array:
        constant = self.index.values(name)
        if constant is not None:
            self._note_computed(name)
            return np.abs(constant) if self.absolute else constant
        node = self.index.producers.get(name)
        if node is None or not is_standard(node):
            raise UnknownExpression(name)
        if node.op_type in MOVES:
            output = list(node.output).index(name)
            move = MOVES[node.op_type]
            return move(node, self._first(node), self._settings(node), output)
        if node.op_type == "ScatterND":
            self.has_scatter = True
            image = self._first(node)
            return scatter(node, image, self._settings(node), self.absolute)
        if node.op_type in ARITHMETIC:
            compute = ARITHMETIC[node.op_type]
            return compute(node, self._operands(node), self.absolute)
        raise UnknownExpression(name)

    def _note_computed(self, name: str) -> None:
        """Remember whether the graph computes the constant `name`."""
        self.has_computed |= self.index.resolve(name) in self.index.computed

    def _first(self, node: onnx.NodeProto) -> Array:
        """The input through which the expression goes on."""
        return self._value(node.input[0])

    def _settings(self, node: onnx.NodeProto) -> list[Array]:
        """All inputs but the first, which must be constants; an omitted one is empty."""
        settings = []
        for name in node.input[1:]:
            values = self.index.values(name) if name else np.zeros(0)
            if values is None:
                raise UnknownExpression(name)
            settings.append(values)
        return settings

    def _operands(self, node: onnx.NodeProto) -> list[Array]:
        """All inputs. A weight stays in its number type, for the operator converts it in blocks."""
        if node.op_type == "BatchNormalization":
            # It needs the sign of a mean and of a scale, so its parameters come as they are, also
            # where bounds are computed.
            return [self._first(node), *self._settings(node)]
        names = [name for name in node.input if name]
        if node.op_type not in ("Conv", "Gemm"):
            return [self._value(name) for name in names]
        weight = self.index.stored(names[1])
        if weight is None:
            # Nodes of the graph compute the weight, in its number type.
            self.has_computed = True
            weight = self._value(names[1])
        else:
            self._note_computed(names[1])
        biases = [self._value(name) for name in names[2:]]
        return [self._value(names[0]), weight, *biases]
