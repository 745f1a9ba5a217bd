"""Whether a fold that saves multiplications costs time, measured on two small models.

Fewer multiplications in another shape can take longer: groups that became dense, or two small
windows that became a large one. Only such folds are timed, and only where the caller gives a Timer
and the size of the image is known. The engine that runs the models belongs to a higher layer, so
it comes in as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from repzoo.graph.fold.affine_node import AffineNode
from repzoo.graph.fold.geometry import Geometry
from repzoo.graph.fold.rules import as_affine
from repzoo.graph.fold.tensors import channels_of, rank_of, sides_of

WINDOWED = ("Conv", "AveragePool")
DEFAULT_OPSET = 17  # of nodes that belong to no graph


@dataclass(frozen=True)
class Timing:
    """The time of two models that ran in turns.

    before_ms   of the nodes that would be replaced, milliseconds
    after_ms    of the new node
    ratio_low   lower end of the interval of after / before; noise widens the interval
    ratio_high  upper end
    engine      that ran them
    """

    before_ms: float
    after_ms: float
    ratio_low: float
    ratio_high: float
    engine: str = ""


# Each model has one input of a fixed shape.
Timer = Callable[[onnx.ModelProto, onnx.ModelProto], Timing]


@dataclass
class Stopwatch:
    """`timer` with a memory: layers of one shape are timed once."""

    timer: Timer
    seen: dict[object, Timing] = field(default_factory=dict)

    def refusal(
        self,
        source: ir.Value,
        nodes: Sequence[ir.Node],
        new: ir.Node,
        geometry: Geometry,
    ) -> str:
        """Why `new` must not replace `nodes`; "" if it may.

        source    the tensor that both read
        nodes     all that lies between `source` and the result, in graph order
        geometry  of `new`
        """
        shape = _image_shape(source)
        if not shape or not may_be_slower(nodes, geometry):
            return ""
        replaced = tuple((node.op_type, _geometry(node)) for node in nodes)
        key = (shape, geometry, replaced)
        if key not in self.seen:
            before = _model(source, shape, nodes)
            after = _model(source, shape, [new])
            self.seen[key] = self.timer(before, after)
        timing = self.seen[key]
        if timing.ratio_low <= 1:
            return ""
        return _explain(timing, shape, len(nodes), geometry)


def _explain(
    timing: Timing, shape: tuple[int, ...], node_count: int, geometry: Geometry
) -> str:
    """The sentence that refuses a fold of `node_count` nodes that was slower."""
    height, width = geometry.kernel
    image = "x".join(map(str, shape))
    where = f"in {timing.engine}" if timing.engine else "here"
    return (
        f"one {height}x{width} convolution in place of {node_count} "
        f"nodes takes {timing.after_ms:.3g} ms {where} on "
        f"{image}; they take {timing.before_ms:.3g} ms (ratio "
        f"{timing.ratio_low:.3g} .. {timing.ratio_high:.3g})"
    )


def may_be_slower(nodes: Sequence[ir.Node], geometry: Geometry) -> bool:
    """Whether a node of `geometry` in place of `nodes` may be slower, with fewer multiplications.

    It has fewer groups than one of their convolutions and pools, or a larger window than all.
    """
    replaced: list[Geometry] = []
    for node in nodes:
        old = _geometry(node) if node.op_type in WINDOWED else None
        if old is not None:
            replaced.append(old)
    if len(replaced) < 2:
        return False
    most_groups = max(old.groups for old in replaced)
    largest_window = max(old.taps for old in replaced)
    return geometry.groups < most_groups or geometry.taps > largest_window


def _geometry(node: ir.Node) -> Geometry | None:
    affine = as_affine(node)
    return affine.geometry if isinstance(affine, AffineNode) else None


def _image_shape(source: ir.Value) -> tuple[int, ...]:
    """[1, C, H, W]; empty if it is not known."""
    channels = channels_of(source)
    height, width = sides_of(source)
    if rank_of(source) != 4 or not channels or height is None or width is None:
        return ()
    return 1, channels, height, width


def _model(
    source: ir.Value, shape: tuple[int, ...], nodes: Sequence[ir.Node]
) -> onnx.ModelProto:
    """`nodes` as a model that takes one image of `shape`."""
    value_info = onnx.helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    output = nodes[-1].outputs[0]
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "timed",
        [value_info(str(source.name), float32, shape)],
        [value_info(str(output.name), float32, None)],
        _weights(nodes),
    )
    opset = onnx.helper.make_opsetid("", _opset(nodes))
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _opset(nodes: Sequence[ir.Node]) -> int:
    for node in nodes:
        if node.version:
            return node.version
    graph = nodes[0].graph
    if not isinstance(graph, ir.Graph):
        return DEFAULT_OPSET
    return graph.opset_imports.get("", DEFAULT_OPSET)


def _weights(nodes: Sequence[ir.Node]) -> list[onnx.TensorProto]:
    """The constants that `nodes` read, each once."""
    weights: dict[str, onnx.TensorProto] = {}
    for node in nodes:
        for value in node.inputs:
            tensor = None if value is None else ir.convenience.get_const_tensor(value)
            if value is None or tensor is None:
                continue
            name = str(value.name)
            weights[name] = ir.to_proto(ir.Tensor(tensor.numpy(), name=name))
    return list(weights.values())
