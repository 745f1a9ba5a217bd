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
from repzoo.graph.certificate.known_values import (
    RANDOM,
    KnownValues,
    Shape,
    stored_constants,
)
from repzoo.graph.certificate.operators import Stored
from repzoo.graph.certificate.window import Array
from repzoo.protobuf_stream import clone

# Elements of a tensor that is read to see whether it is all zeros or ones.
NEUTRAL_SIZE = 2**18
# Elements of a constant that counts by its values, not by its name, when two nodes are compared.
COMPARED_SIZE = 64
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
    resolved    answers of `resolve` so far; it fills as they are asked for
    """

    producers: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]
    computed: frozenset[str] = frozenset()
    types: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    duplicates: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    resolved: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        graph: onnx.GraphProto,
        known: KnownValues | None = None,
        types: Mapping[str, int] | None = None,
    ) -> TensorIndex:
        """The index of `graph`, with what is `known` of it and the `types` that its Casts read."""
        known = known or KnownValues()
        duplicates: dict[str, str] = {}
        index = cls(
            _producers(graph),
            constants={**stored_constants(graph), **known.values},
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
        path = []
        while name not in self.constants and name not in self.resolved:
            source = self._pass_through(name) or self.duplicates.get(name)
            if not source:
                break
            path.append(name)
            name = source
        name = self.resolved.get(name, name)
        # Long chains of such nodes are walked once.
        for passed in path:
            self.resolved[passed] = name
        return name

    def stored(self, name: str) -> Stored | None:
        """The constant `name` in the number type of the file; None where it is not constant."""
        tensor = self.constants.get(self.resolve(name))
        if tensor is None:
            return None
        return numpy_helper.to_array(tensor)

    def values(self, name: str) -> Array | None:
        """The constant `name` in float64; None where it is not constant."""
        stored = self.stored(name)
        if stored is None:
            return None
        return np.asarray(stored, np.float64)

    # --- the nodes between two tensors ---

    def between(self, source: str, target: str) -> list[onnx.NodeProto]:
        """Copies of the nodes from `source` to `target`, in order, with resolved inputs."""
        nodes: list[onnx.NodeProto] = []
        done = {source}
        # Depth first, without recursion: a graph may be deeper than Python's stack.
        stack = [target]
        while stack:
            name = stack[-1]
            if not self._must_compute(name, done):
                stack.pop()
                continue
            node = self.producers[name]
            inputs = [self.resolve(item) if item else "" for item in node.input]
            missing = [item for item in inputs if self._must_compute(item, done)]
            if missing:
                stack += missing
                continue
            nodes.append(_with_inputs(node, inputs))
            done.update(node.output)
        return nodes

    def _must_compute(self, name: str, done: set[str]) -> bool:
        """Whether a node computes `name`, and its output is not there yet."""
        if not name or name in done or name in self.constants:
            return False
        return name in self.producers

    # --- nodes that compute the same ---

    def _find_duplicates(
        self,
        nodes: Iterable[onnx.NodeProto],
        duplicates: dict[str, str],
    ) -> None:
        """Fill `duplicates`: equal operators with equal attributes on equal tensors.

        It is the dictionary of this index, so that a node counts as equal to another also where it
        reads a duplicate.
        """
        first: dict[Hashable, Sequence[str]] = {}
        for node in nodes:
            if not _is_repeatable(node):
                continue
            outputs = first.setdefault(self._signature(node), node.output)
            if outputs is node.output:
                continue
            duplicates.update(zip(node.output, outputs, strict=True))
            duplicates.pop("", None)  # an omitted output has no name

    def _signature(self, node: onnx.NodeProto) -> Hashable:
        """What two nodes have in common when they compute the same."""
        inputs = tuple(map(self._content, node.input))
        return node.op_type, len(node.output), inputs, _attributes(node)

    def _content(self, name: str) -> Hashable:
        """What identifies a tensor: the values of a small constant, or the resolved name."""
        source = self.resolve(name)
        tensor = self.constants.get(source)
        if tensor is None or math.prod(tensor.dims) > COMPARED_SIZE:
            return source
        values = numpy_helper.to_array(tensor).tobytes()
        return tensor.data_type, tuple(tensor.dims), values

    # --- nodes that pass a tensor on ---

    def _pass_through(self, name: str) -> str:
        """The input that the node of `name` passes on unchanged; empty where it does not."""
        node = self.producers.get(name)
        if node is None or not is_standard(node) or name != node.output[0]:
            return ""
        if name in self.aliases:
            return self.aliases[name]
        source = node.input[0] if node.input else ""
        match node.op_type:
            case "Identity":
                return source
            case "Dropout":
                return source if self._is_inference(node) else ""
            case "Cast":
                same = self.types.get(source) == integer(node, "to", 0)
                return source if same else ""
            case "Add" | "Sub" | "Mul" | "Div":
                return self._neutral_operand(node)
        return ""

    def _is_inference(self, dropout: onnx.NodeProto) -> bool:
        if len(dropout.input) < 3 or not dropout.input[2]:
            return True
        training_mode = self.values(dropout.input[2])
        return training_mode is not None and not training_mode.any()

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
        if not _broadcasts_to(tensor.dims, self.shapes.get(operand, ())):
            return False
        return bool(np.all(numpy_helper.to_array(tensor) == number))


def _producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    producers = {}
    for node in graph.node:
        for name in filter(None, node.output):
            producers[name] = node
    return producers


def _is_repeatable(node: onnx.NodeProto) -> bool:
    """Whether two such nodes compute the same from the same inputs, as far as is known."""
    if node.op_type == "Constant" or node.op_type in RANDOM:
        return False
    return is_standard(node) and not has_subgraph(node)


def _attributes(node: onnx.NodeProto) -> tuple[bytes, ...]:
    """The attributes of `node`, in an order of their own."""
    items = [item.SerializeToString(deterministic=True) for item in node.attribute]
    return tuple(sorted(items))


def _with_inputs(node: onnx.NodeProto, inputs: Sequence[str]) -> onnx.NodeProto:
    copy = clone(node)
    copy.input[:] = inputs
    return copy


def _broadcasts_to(dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a constant of `dims` broadcasts to `shape`; a side of 0 is open."""
    if len(dims) > len(shape):
        return False
    # Broadcasting aligns the last axes.
    for side, wanted in zip(reversed(dims), reversed(shape), strict=False):
        if side not in (1, wanted):
            return False
    return True
