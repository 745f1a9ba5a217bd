"""Composites: functions such as GELU and layer normalization that a graph spells as several nodes.

Opset 20 has Gelu, opset 14 HardSwish, opset 17 LayerNormalization and opset 24 Swish. Exporters to
older opsets write them in simpler operators, for example GELU as Div, Erf, Add, Mul, Mul. Runtimes
fuse exactly these nodes into one kernel again. So the fold must not take a node out of them. Of
activation functions, the tensors between the nodes are never quantized.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# How often each operator occurs in a spelling, for every known spelling of a function.
SPELLINGS = {
    "Gelu": (
        Counter(Div=1, Erf=1, Add=1, Mul=2),
        Counter(Div=2, Erf=1, Add=1, Mul=1),
        Counter(Erf=1, Add=1, Mul=3),
    ),
    # The approximation by tanh; a power may be written as two products.
    "GeluTanh": (
        Counter(Pow=1, Mul=4, Add=2, Tanh=1),
        Counter(Mul=6, Add=2, Tanh=1),
    ),
    "Swish": (Counter(Sigmoid=1, Mul=1),),
    "HardSwish": (
        Counter(HardSigmoid=1, Mul=1),
        Counter(Add=1, Clip=1, Mul=1, Div=1),
        Counter(Add=1, Clip=1, Mul=2),
    ),
    "HardSigmoid": (Counter(Add=1, Clip=1, Div=1), Counter(Add=1, Clip=1, Mul=1)),
    "LayerNorm": (
        Counter(ReduceMean=2, Sub=1, Pow=1, Add=2, Sqrt=1, Div=1, Mul=1),
        Counter(ReduceMean=2, Sub=1, Add=2, Sqrt=1, Div=1, Mul=2),
    ),
}
# Functions with a constant for each channel; all others have single numbers only, so that a scale
# of channels in front of GELU is no part of it.
WITH_VECTORS = ("LayerNorm",)
# Functions that read their argument once. All others use it twice: a half of a sigmoid is no swish.
WITH_ONE_READER = ("HardSigmoid",)
# A scale, a shift and a Clip: the layer before takes in the first two, which is better still.
WITHOUT_CLIP_AT_END = ("HardSigmoid",)


@dataclass(frozen=True)
class Operation:
    """A node, as far as composites are concerned.

    Attributes:
        kind: its operator; "" for one that is not ONNX's own.
        inputs: names of the tensors that it reads, without constants.
        outputs: names of the tensors that it computes.
        has_vector: whether it reads a constant of more than one number.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    has_vector: bool = False


@dataclass(frozen=True)
class Composite:
    """One function that is spelled as several nodes.

    Attributes:
        kind: a key of SPELLINGS.
        nodes: first outputs of its nodes.
        output: the tensor with its result.
        is_sole_reader: whether nothing else reads the tensor that it is a function of.
    """

    kind: str
    nodes: tuple[str, ...]
    output: str
    is_sole_reader: bool


def find_composites(
    operations: Sequence[Operation],
    graph_outputs: Iterable[str],
    kinds: Iterable[str] = SPELLINGS,
) -> dict[str, Composite]:
    """The composites of a graph, by the tensor that they are functions of.

    Args:
        operations: all nodes of the graph, in graph order.
        graph_outputs: names of the tensors that the caller reads.
        kinds: keys of SPELLINGS to look for.
    """
    graph = _Graph(operations, frozenset(graph_outputs))
    composites: dict[str, Composite] = {}
    taken: set[str] = set()
    # From the end: a product in front of the first node may belong to a spelling too.
    for name in reversed(graph.readers):
        for kind in kinds:
            composite = _composite_of(graph, name, kind)
            if composite is not None and taken.isdisjoint(composite.nodes):
                composites[name] = composite
                taken.update(composite.nodes)
                break
    return dict(reversed(composites.items()))


class _Graph:
    """Who reads what.

    Attributes:
        readers: of each tensor: the nodes that read it.
        outputs: of the graph.
    """

    def __init__(
        self, operations: Sequence[Operation], outputs: frozenset[str]
    ) -> None:
        self.outputs = outputs
        self.readers: dict[str, list[Operation]] = {}
        for operation in operations:
            for name in operation.inputs:
                self.readers.setdefault(name, []).append(operation)

    def is_read_outside(self, name: str, region: Mapping[str, None]) -> bool:
        """Whether the caller reads a tensor, or a node that is not of the region."""
        if name in self.outputs:
            return True
        readers = self.readers.get(name, [])
        return any(reader.outputs[0] not in region for reader in readers)


def _composite_of(graph: _Graph, name: str, kind: str) -> Composite | None:
    """The composite of this kind that reads the tensor `name`.

    A region grows from the tensor, node by node, until its operators are those of a spelling and
    only its last output is read outside.
    """
    spellings = SPELLINGS[kind]
    most_nodes = max(counts.total() for counts in spellings)
    region: dict[str, None] = {name: None}  # a dict keeps the order, a set does not
    counts: Counter[str] = Counter()
    nodes: list[str] = []
    while len(nodes) < most_nodes:
        node = _next_node(graph, region, kind)
        if node is None:
            return None
        counts[node.kind] += 1
        output = node.outputs[0]
        nodes.append(output)
        region[output] = None
        if node.kind == "Clip" and kind in WITHOUT_CLIP_AT_END:
            is_complete = False
        else:
            is_complete = counts in spellings
        if is_complete and _is_closed(graph, region, kind):
            is_sole_reader = not graph.is_read_outside(name, region)
            return Composite(kind, tuple(nodes), output, is_sole_reader)
    return None


def _next_node(
    graph: _Graph, region: Mapping[str, None], kind: str
) -> Operation | None:
    """A node that reads only the region and constants, and that a spelling may contain."""
    operators = frozenset(itertools.chain.from_iterable(SPELLINGS[kind]))
    for value in region:
        for node in graph.readers.get(value, []):
            if node.kind not in operators or node.outputs[0] in region:
                continue
            if node.has_vector and kind not in WITH_VECTORS:
                continue
            if all(name in region for name in node.inputs):
                return node
    return None


def _is_closed(graph: _Graph, region: Mapping[str, None], kind: str) -> bool:
    """Whether the region uses its source as the function does, and only its end is read outside."""
    source, *inner, output = region
    readers = graph.readers.get(source, [])
    used = sum(reader.outputs[0] in region for reader in readers)
    if used < 2 and kind not in WITH_ONE_READER:
        return False
    if any(graph.is_read_outside(value, region) for value in inner):
        return False
    return graph.is_read_outside(output, region)
