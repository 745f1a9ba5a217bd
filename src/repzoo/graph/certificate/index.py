"""A graph by tensor names, as the proof reads it.

It sees through nodes that pass a tensor on (Identity, Dropout, an added zero) and through nodes
that compute a tensor again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.graph.certificate.attributes import has_subgraph, integer, is_standard
from repzoo.graph.certificate.known_values import RANDOM, KnownValues, Shape
from repzoo.graph.certificate.operators import Stored
from repzoo.graph.certificate.window import Array

NEUTRAL_SIZE = (
    2**18
)  # elements of a tensor of zeros or ones that is read to see whether it is one
COMPARED_SIZE = (
    64  # elements of a constant that is compared by value when two nodes are
)
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
COMMUTATIVE = frozenset({"Add", "Mul"})


@dataclass(frozen=True)
class TensorIndex:
    """A graph by tensor names.

    producers   the node that computes each tensor
    constants   values that are known before the graph runs
    computed    those of them that the graph computes
    types       element types of what Cast nodes read, where they could be inferred
    aliases     outputs of Reshape and Transpose that equal their input: the name of that input
    duplicates  tensors that are computed a second time: the name of the first
    shapes      as far as they are known; 0 for a side that is open
    """

    producers: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]
    computed: frozenset[str] = frozenset()
    types: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    duplicates: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        graph: onnx.GraphProto,
        known: KnownValues | None = None,
        types: Mapping[str, int] | None = None,
    ) -> TensorIndex:
        """The index of `graph`, with what is `known` of it and the `types` that its Casts read."""
        known = known or KnownValues()
        producers = {name: node for node in graph.node for name in node.output if name}
        replaceable = {
            item.name for item in graph.input
        }  # a caller may replace their defaults
        constants = {
            item.name: item
            for item in graph.initializer
            if item.name not in replaceable
        }
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
        duplicates: dict[str, str] = {}
        index = cls(
            producers,
            constants={**constants, **known.values},
            computed=frozenset(known.values),
            types=types or {},
            aliases=known.aliases,
            duplicates=duplicates,
            shapes=known.shapes,
        )
        index._find_duplicates(graph.node, duplicates)
        return index

    def resolve(self, name: str) -> str:
        """The tensor that `name` passes on, or computes again; itself where it does neither."""
        while name not in self.constants:
            source = self._passed_on(name) or self.duplicates.get(name)
            if not source:
                break
            name = source
        return name

    def stored(self, name: str) -> Stored | None:
        """The constant `name` in the number type of the file; None where it is not constant."""
        tensor = self.constants.get(self.resolve(name))
        return None if tensor is None else numpy_helper.to_array(tensor)

    def values(self, name: str) -> Array | None:
        """As `stored`, in float64."""
        stored = self.stored(name)
        return None if stored is None else np.asarray(stored, np.float64)

    def between(self, source: str, target: str) -> list[onnx.NodeProto]:
        """Copies of the nodes from `source` to `target`, in order, with resolved inputs."""
        copies: dict[str, onnx.NodeProto] = {}
        stack = [target]
        while stack:
            name = stack[-1]
            node = self.producers.get(name)
            if (
                name in copies
                or name == source
                or name in self.constants
                or node is None
            ):
                stack.pop()
                continue
            inputs = [self.resolve(item) if item else "" for item in node.input]
            missing = [
                item for item in inputs if self._is_computed(item, source, copies)
            ]
            if missing:
                stack += missing
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = inputs
            copies.update(dict.fromkeys(node.output, copy))
        return list({id(node): node for node in copies.values()}.values())

    def _is_computed(
        self, name: str, source: str, copies: Mapping[str, onnx.NodeProto]
    ) -> bool:
        """Whether a node that is not in `copies` yet must compute `name` first."""
        if name in ("", source) or name in copies or name in self.constants:
            return False
        return name in self.producers

    def _find_duplicates(
        self, nodes: Iterable[onnx.NodeProto], duplicates: dict[str, str]
    ) -> None:
        """Equal operators with equal attributes on equal tensors, in order."""
        first: dict[Hashable, Sequence[str]] = {}
        for node in nodes:
            if node.op_type == "Constant" or node.op_type in RANDOM:
                continue
            if not is_standard(node) or has_subgraph(node):
                continue
            outputs = first.setdefault(self._signature(node), node.output)
            if outputs is node.output:
                continue
            pairs = zip(outputs, node.output, strict=True)
            duplicates.update({again: name for name, again in pairs if again})

    def _signature(self, node: onnx.NodeProto) -> Hashable:
        """What two nodes have in common when they compute the same."""
        attributes = sorted(
            item.SerializeToString(deterministic=True) for item in node.attribute
        )
        inputs = tuple(map(self._content, node.input))
        return node.op_type, len(node.output), inputs, tuple(attributes)

    def _content(self, name: str) -> Hashable:
        """What identifies a tensor: the values of a small constant, or the resolved name."""
        source = self.resolve(name)
        tensor = self.constants.get(source)
        if tensor is None or math.prod(tensor.dims) > COMPARED_SIZE:
            return source
        return (
            tensor.data_type,
            tuple(tensor.dims),
            numpy_helper.to_array(tensor).tobytes(),
        )

    def _passed_on(self, name: str) -> str:
        """The input that the node of `name` passes on unchanged; empty where it does not."""
        node = self.producers.get(name)
        if node is None or not is_standard(node) or name != node.output[0]:
            return ""
        if name in self.aliases:
            return self.aliases[name]
        match node.op_type:
            case "Identity":
                return node.input[0]
            case "Dropout":
                return node.input[0] if self._is_inference(node) else ""
            case "Cast":
                same = self.types.get(node.input[0]) == integer(node, "to", 0)
                return node.input[0] if same else ""
            case "Add" | "Sub" | "Mul" | "Div":
                return self._neutral_operand(node)
        return ""

    def _is_inference(self, dropout: onnx.NodeProto) -> bool:
        if len(dropout.input) < 3 or not dropout.input[2]:
            return True
        training = self.values(dropout.input[2])
        return training is not None and not training.any()

    def _neutral_operand(self, node: onnx.NodeProto) -> str:
        """The operand that arithmetic with zeros or ones leaves as it is; empty where none is."""
        left, right = node.input
        neutral = NEUTRAL[node.op_type]
        if node.op_type in COMMUTATIVE and self._is_neutral(left, neutral, right):
            return right
        return left if self._is_neutral(right, neutral, left) else ""

    def _is_neutral(self, name: str, number: int, operand: str) -> bool:
        """Whether every element of `name` is `number`, and it does not widen `operand`."""
        tensor = self.constants.get(name)
        if tensor is None or math.prod(tensor.dims) > NEUTRAL_SIZE:
            return False
        sides = self.shapes.get(operand, ())
        if len(tensor.dims) > len(sides):
            return False
        # Broadcasting aligns the last axes.
        pairs = zip(reversed(tensor.dims), reversed(sides), strict=False)
        if any(side not in (1, operand_side) for side, operand_side in pairs):
            return False
        return bool(np.all(numpy_helper.to_array(tensor) == number))
