"""Activations that a graph spells in several nodes: GELU by Erf, swish by Sigmoid and a product, hard-swish by either of two ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from repzoo.quant.network.graph_view import GraphView

FORMS = {  # how often each operator stands in them
    "Gelu": (Counter(Div=1, Erf=1, Add=1, Mul=2), Counter(Erf=1, Add=1, Mul=3)),
    "Swish": (Counter(Sigmoid=1, Mul=1),),
    "HardSwish": (
        Counter(HardSigmoid=1, Mul=1),
        Counter(Add=1, Clip=1, Mul=1, Div=1),
        Counter(Add=1, Clip=1, Mul=2),
    ),
}
SPELLING = frozenset().union(*(form for forms in FORMS.values() for form in forms))
LONGEST = max(sum(form.values()) for forms in FORMS.values() for form in forms)


@dataclass(frozen=True)
class CompositeActivation:
    """One activation of several nodes: its name in FORMS, the first outputs of its nodes, and its result."""

    kind: str
    nodes: tuple[str, ...]
    end: str


def find_composites(wiring: GraphView, values: Iterable[str]) -> dict[str, CompositeActivation]:
    """Those of the tensors `values` that go through such an activation and nothing else, each with it."""
    found = ((value, _spelling(wiring, value)) for value in values)
    return {value: one for value, one in found if one}


def _spelling(wiring: GraphView, value: str) -> CompositeActivation | None:
    region, nodes = {value: None}, list[onnx.NodeProto]()
    while len(nodes) < LONGEST:
        grown = next(
            (
                node
                for at in region
                for node in wiring.consumers.get(at, [])
                if _joins(wiring, node, region)
            ),
            None,
        )
        if grown is None:
            return None
        nodes.append(grown)
        region[grown.output[0]] = None
        kinds = Counter(node.op_type for node in nodes)
        kind = next((name for name, forms in FORMS.items() if kinds in forms), "")
        if kind and [at for at in region if wiring.has_consumer_outside(at, region)] == [
            grown.output[0]
        ]:
            return CompositeActivation(
                kind, tuple(node.output[0] for node in nodes), grown.output[0]
            )
    return None


def _joins(wiring: GraphView, node: onnx.NodeProto, region: Mapping[str, None]) -> bool:
    inside = all(name in region for name in wiring.activations(node))
    return node.op_type in SPELLING and inside and node.output[0] not in region
