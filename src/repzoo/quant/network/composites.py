"""Composite activations: GELU, swish and hard-swish that a graph spells as several nodes.

Opset 20 has Gelu, opset 14 HardSwish and opset 24 Swish. Exporters to older opsets write them in
simpler operators, for example GELU as Div, Erf, Add, Mul, Mul. Targets fuse these nodes into one
activation again, so the tensors between them are never quantized.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from repzoo.quant.network.graph_view import GraphView

# How often each operator occurs in a spelling, for every known spelling of an activation.
SPELLINGS = {
    "Gelu": (Counter(Div=1, Erf=1, Add=1, Mul=2), Counter(Erf=1, Add=1, Mul=3)),
    "Swish": (Counter(Sigmoid=1, Mul=1),),
    "HardSwish": (
        Counter(HardSigmoid=1, Mul=1),
        Counter(Add=1, Clip=1, Mul=1, Div=1),
        Counter(Add=1, Clip=1, Mul=2),
    ),
}
_ALL_SPELLINGS = list(itertools.chain.from_iterable(SPELLINGS.values()))
SPELLING_OPERATORS = frozenset().union(*_ALL_SPELLINGS)
MAX_NODES = max(counts.total() for counts in _ALL_SPELLINGS)


@dataclass(frozen=True)
class CompositeActivation:
    """One activation that is spelled as several nodes.

    Attributes:
        kind: a key of SPELLINGS.
        nodes: first outputs of its nodes.
        output: the tensor with its result.
    """

    kind: str
    nodes: tuple[str, ...]
    output: str


def find_composites(
    view: GraphView, names: Iterable[str]
) -> dict[str, CompositeActivation]:
    """The composite activations of those tensors that are read by one and by nothing else."""
    composites: dict[str, CompositeActivation] = {}
    for name in names:
        composite = _composite_of(view, name)
        if composite is not None:
            composites[name] = composite
    return composites


def _composite_of(view: GraphView, name: str) -> CompositeActivation | None:
    """The composite activation that reads the tensor `name`.

    A region grows from the tensor, node by node, until its operators are those of a spelling and
    only its last output is read outside.
    """
    region: dict[str, None] = {name: None}  # a dict keeps the order, a set does not
    nodes: list[onnx.NodeProto] = []
    outputs: list[str] = []
    while len(nodes) < MAX_NODES:
        node = _next_node(view, region)
        if node is None:
            return None
        nodes.append(node)
        output = str(node.output[0])
        outputs.append(output)
        region[output] = None
        kind = _kind_of(nodes)
        if kind and _only_output_is_read(view, region, output):
            return CompositeActivation(kind, tuple(outputs), output)
    return None


def _next_node(view: GraphView, region: Mapping[str, None]) -> onnx.NodeProto | None:
    """A node that reads only the region and constants, and that a spelling may contain."""
    for value in region:
        for node in view.consumers.get(value, []):
            if node.op_type not in SPELLING_OPERATORS or node.output[0] in region:
                continue
            if all(name in region for name in view.activations(node)):
                return node
    return None


def _only_output_is_read(
    view: GraphView,
    region: Mapping[str, None],
    output: str,
) -> bool:
    """Whether nodes outside of the region read `output` and no other tensor of it."""
    for value in region:
        is_read = view.has_consumer_outside(value, region)
        if is_read != (value == output):
            return False
    return True


def _kind_of(nodes: Sequence[onnx.NodeProto]) -> str:
    """The activation whose spelling consists of these operators; "" if there is none."""
    counts = Counter(node.op_type for node in nodes)
    for kind, spellings in SPELLINGS.items():
        if counts in spellings:
            return kind
    return ""
