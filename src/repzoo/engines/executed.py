"""What a runtime executes for a graph: its own operators, how long they take, what they compute.

Runtimes fuse, split, convert and reorder. A profile says so operator by operator, and names the
ONNX nodes that each one computes. Nodes get labels for this, because names may be missing, repeat,
or hold characters that a runtime changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from repzoo.protobuf_stream import clone

_LABEL = re.compile(r"repzoo_node_(\d+)_")
# Operators that only change the form of a tensor, by parts of their names in any runtime.
CONVERSIONS = ("quantizelinear", "convert", "reorder", "transpose", "cast")


@dataclass(frozen=True)
class ExecutedOperator:
    """One operator of a runtime.

    kind          the runtime's name, such as QLinearConv or Convolution
    kernel        more of it where the runtime tells, such as jit_avx2_1x1_I8
    nodes         first outputs of the ONNX nodes that it computes, in the graph's order; none for
                  what the runtime added
    microseconds  of the fastest of the runs: others were held up
    """

    kind: str
    kernel: str
    nodes: tuple[str, ...]
    microseconds: float

    @property
    def is_conversion(self) -> bool:
        """Whether it only quantizes, dequantizes, converts or reorders."""
        kind = self.kind.lower()
        return any(part in kind for part in CONVERSIONS)


class LabeledModel:
    """A copy of `model` whose nodes are named by labels.

    model  the copy
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = clone(model)
        self._nodes: list[str] = []  # first outputs
        self._writers: dict[str, int] = {}  # index of the node that writes a tensor
        for index, node in enumerate(self.model.graph.node):
            node.name = f"repzoo_node_{index}_"
            self._nodes.append(node.output[0])
            self._writers.update(dict.fromkeys(node.output, index))

    def nodes_in(self, names: Iterable[str]) -> tuple[str, ...]:
        """First outputs of the nodes that a runtime's `names` speak of, in the graph's order.

        A name holds the labels of what was fused, or is that of a tensor that a node writes.
        """
        indices: set[int] = set()
        for name in names:
            indices.update(int(number) for number in _LABEL.findall(name))
            if name in self._writers:
                indices.add(self._writers[name])
        return tuple(self._nodes[index] for index in sorted(indices))


def time_by_kind(operators: Sequence[ExecutedOperator]) -> Mapping[str, float]:
    """Microseconds by kind and kernel, the longest first."""
    total: dict[str, float] = {}
    for operator in operators:
        name = " ".join(part for part in (operator.kind, operator.kernel) if part)
        total[name] = total.get(name, 0.0) + operator.microseconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))
