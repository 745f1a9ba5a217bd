"""Whether a fold that saves multiplications costs time: the expression and the node that would
replace it, as two small models.

Fewer multiplications in another shape can take longer: groups that became dense, two small
windows that became a large one. Only such folds are timed, and only where a caller gives a
Timer and the size of the image is known. The timer stands above this layer, as the runner of a
certificate does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from repzoo.graph.fold.algebra import Geometry
from repzoo.graph.fold.rules import AffineNode, as_affine


@dataclass(frozen=True)
class Timing:
    """Milliseconds of both models, and the interval of after / before: taken in turns, so noise
    widens it.
    """

    before_ms: float
    after_ms: float
    ratio_low: float
    ratio_high: float


Timer = Callable[
    [onnx.ModelProto, onnx.ModelProto], Timing
]  # each has one input of a fixed shape


@dataclass
class Stopwatch:
    """`timer` with a memory: layers of one shape are timed once."""

    timer: Timer
    seen: dict[object, Timing] = field(default_factory=dict)

    def refusal(
        self, source: ir.Value, nodes: Sequence[ir.Node], new: ir.Node, shape: Geometry
    ) -> str:
        """Why `new` (of `shape`) must not replace `nodes` (in graph order, all that is between
        it and `source`); or nothing.
        """
        sides = _sides(source)
        if not sides or not is_doubtful(nodes, shape):
            return ""
        key = (sides, shape, tuple((node.op_type, _geometry(node)) for node in nodes))
        if key not in self.seen:
            self.seen[key] = self.timer(
                _model(source, sides, nodes), _model(source, sides, [new])
            )
        found = self.seen[key]
        if found.ratio_low <= 1:
            return ""
        return (
            f"one {shape.kernel[0]}x{shape.kernel[1]} convolution in place of {len(nodes)} "
            f"nodes takes {found.after_ms:.3g} ms here on "
            f"{'x'.join(map(str, sides))}; they take {found.before_ms:.3g} ms (ratio "
            f"{found.ratio_low:.3g} .. {found.ratio_high:.3g})"
        )


def is_doubtful(nodes: Sequence[ir.Node], shape: Geometry) -> bool:
    """Whether the new node has fewer groups, or a larger window, than some or all of the
    convolutions and pools that it replaces.
    """
    olds = [
        old
        for node in nodes
        if node.op_type in ("Conv", "AveragePool")
        and (old := _geometry(node)) is not None
    ]
    area = shape.kernel[0] * shape.kernel[1]
    return len(olds) > 1 and (
        any(old.groups > shape.groups for old in olds)
        or area > max(old.kernel[0] * old.kernel[1] for old in olds)
    )


def _geometry(node: ir.Node) -> Geometry | None:
    seen = as_affine(node)
    return seen.geometry if isinstance(seen, AffineNode) else None


def _sides(source: ir.Value) -> tuple[int, ...]:
    """[1, C, H, W]; empty where it is not known."""
    shape = list(source.shape or ())
    known = [side for side in shape[1:] if isinstance(side, int)]
    return (1, *known) if len(shape) == 4 and len(known) == 3 else ()


def _model(
    source: ir.Value, sides: tuple[int, ...], nodes: Sequence[ir.Node]
) -> onnx.ModelProto:
    given = onnx.helper.make_tensor_value_info(
        str(source.name), onnx.TensorProto.FLOAT, sides
    )
    result = onnx.helper.make_tensor_value_info(
        str(nodes[-1].outputs[0].name), onnx.TensorProto.FLOAT, None
    )
    weights = {item.name: item for item in _weights(nodes)}
    graph = onnx.helper.make_graph(
        list(map(ir.to_proto, nodes)),
        "timed",
        [given],
        [result],
        list(weights.values()),
    )
    version = next((node.version for node in nodes if node.version), None) or _opset(
        nodes
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=8
    )


def _opset(nodes: Sequence[ir.Node]) -> int:
    graph = nodes[0].graph
    return graph.opset_imports.get("", 17) if isinstance(graph, ir.Graph) else 17


def _weights(nodes: Sequence[ir.Node]) -> Iterator[onnx.TensorProto]:
    for value in (
        value for node in nodes for value in node.inputs if value is not None
    ):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            yield ir.to_proto(ir.Tensor(tensor.numpy(), name=value.name))
