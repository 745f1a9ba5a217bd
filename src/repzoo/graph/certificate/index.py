"""A graph as a proof reads it: by tensor names, seeing through what repeats a tensor and what computes it once more."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.graph.certificate.operators import Array, Stored
from repzoo.graph.tools.constant_folding import KnownValues

NEUTRAL_SIZE = 2**18  # of zeros that are added, or of ones
COMPARED = 64  # elements of constants that are compared by value where nodes are
# Not those of graph.twins, on purpose: a proof shares no rule with the fold that it proves.
NEVER_ALIKE = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "Dropout",
        "Constant",
    }
)


@dataclass(frozen=True)
class TensorIndex:
    """A graph by tensor names.

    types    element types of what its Casts read, where they were inferred
    repeats  for a tensor that is another in the very shape that it has, that one
    twins    for a tensor that is computed a second time, where it is first
    """

    producers: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]
    types: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    duplicates: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        graph: onnx.GraphProto,
        computed: KnownValues | None = None,
        types: Mapping[str, int] | None = None,
    ) -> TensorIndex:
        """`computed`: what is known of the graph before it runs."""
        computed = computed or KnownValues({}, {})
        producers = {name: node for node in graph.node for name in node.output if name}
        given = {item.name for item in graph.input}  # may be other than their defaults
        constants = {item.name: item for item in graph.initializer if item.name not in given}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
        twins: dict[str, str] = {}
        made = cls(
            producers, constants | dict(computed.values), types or {}, computed.repeats, twins
        )
        made._find_twins(graph.node, twins)
        return made

    def resolve(self, name: str) -> str:
        """The tensor that `name` merely repeats, or computes once more."""
        while name not in self.constants and (
            source := self._repeated(name) or self.duplicates.get(name)
        ):
            name = source
        return name

    def _find_twins(self, nodes: Iterable[onnx.NodeProto], found: dict[str, str]) -> None:
        """Equal operators with equal settings on equal tensors, in order; two that draw at random differ."""
        first: dict[Hashable, Sequence[str]] = {}
        for node in nodes:
            if (
                node.op_type in NEVER_ALIKE
                or node.domain not in ("", "ai.onnx")
                or any(map(_holds_graph, node.attribute))
            ):
                continue
            settings = sorted(item.SerializeToString(deterministic=True) for item in node.attribute)
            key = (
                node.op_type,
                len(node.output),
                tuple(map(self._content, node.input)),
                tuple(settings),
            )
            earlier = first.setdefault(key, node.output)
            if earlier is not node.output:
                found.update(
                    (two, one) for one, two in zip(earlier, node.output, strict=True) if two
                )

    def _content(self, name: str) -> Hashable:
        """What stands for a tensor: the number type and the values of a small constant, or the name it first has."""
        held = self.constants.get(source := self.resolve(name))
        if held is None or math.prod(held.dims) > COMPARED:
            return source
        return held.data_type, tuple(held.dims), numpy_helper.to_array(held).tobytes()

    def between(self, source: str, target: str) -> list[onnx.NodeProto]:
        """Copies of the nodes from `source` to `target`, in order, reading each other without what merely repeats."""
        made: dict[str, onnx.NodeProto] = {}
        stack = [target]
        while stack:
            name = stack[-1]
            node = self.producers.get(name)
            if name in made or name == source or name in self.constants or node is None:
                stack.pop()
            elif missing := [
                item
                for item in map(self.resolve, filter(None, node.input))
                if item not in made
                and item != source
                and item not in self.constants
                and item in self.producers
            ]:
                stack += missing
            else:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                copy.input[:] = [self.resolve(item) if item else "" for item in node.input]
                made.update(dict.fromkeys(node.output, copy))
        return list({id(node): node for node in made.values()}.values())

    def _repeated(self, name: str) -> str:
        """The input that the node of `name` gives back as it is, or nothing."""
        node = self.producers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or name != node.output[0]:
            return ""
        if name in self.aliases:
            return self.aliases[name]
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            flag = self.values(node.input[2])
            return node.input[0] if flag is not None and not flag.any() else ""
        if node.op_type == "Cast":
            to = next((item.i for item in node.attribute if item.name == "to"), 0)
            return str(node.input[0]) if self.types.get(node.input[0]) == to else ""
        if node.op_type in ("Add", "Mul") and self._is_all(
            node.input[0], int(node.op_type == "Mul")
        ):
            return str(node.input[1])
        neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(node.op_type)
        passes = node.op_type in ("Identity", "Dropout") or (
            neutral is not None and self._is_all(node.input[1], neutral)
        )
        return node.input[0] if passes else ""

    def _is_all(self, name: str, number: int) -> bool:
        held = self.constants.get(name)
        if held is None or math.prod(held.dims) > NEUTRAL_SIZE:
            return False
        return bool(np.all(numpy_helper.to_array(held) == number))

    def values(self, name: str) -> Array | None:
        stored = self.stored(name)
        return None if stored is None else np.asarray(stored, np.float64)

    def stored(self, name: str) -> Stored | None:
        """As `values`, of the type in the file."""
        item = self.constants.get(self.resolve(name))
        return None if item is None else numpy_helper.to_array(item)


def _holds_graph(item: onnx.AttributeProto) -> bool:
    return item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
