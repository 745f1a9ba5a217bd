"""Compare the training form and its fold in float64, for networks in which float32 cannot tell.

Some networks amplify rounding until it fills the outputs. In float32 any fold of them would pass.
Here the whole graph is converted to float64 and folded again, so that the folded weights are not
rounded to float32 either, and both graphs run on a small image. The second fold speaks for the
first because it is the same: it has the same nodes, and the same weights but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from repzoo.errors import CertificateError, RepzooError
from repzoo.graph.certificate.attributes import has_subgraph
from repzoo.graph.certificate.comparison import (
    Equality,
    GraphComparison,
    Outputs,
    combine,
    compare,
)
from repzoo.graph.certificate.jitter import jitter, jitter_constants
from repzoo.graph.certificate.number_types import (
    FLOATS,
    smallest_number,
    unit_roundoff,
)
from repzoo.graph.certificate.operators import convolve
from repzoo.graph.certificate.window import Array, UnknownExpression
from repzoo.graph.tools.fold_result import FoldResult
from repzoo.graph.tools.functions import inline_functions
from repzoo.graph.tools.pieces import trim_heap
from repzoo.onnx_file import classifier_input
from repzoo.printable import one_line
from repzoo.protobuf_stream import clone

Folder = Callable[[onnx.ModelProto], FoldResult]

# Pixels; a model for larger images gets images of this size where it takes them.
SMALL_SIDE = 32
# 1 GiB in float64 for each of the two graphs. As each weight meets at most SMALL_SIDE**2 pixels,
# this limits time as well.
MOST_WEIGHTS = 2**27
IMAGES = 2
# Folded weights are rounded to float32 up to a few times, relative to the largest weight of their
# layer.
SAME_WEIGHTS = 2.0**-12

NARROW = FLOATS - {TensorProto.DOUBLE}

VERDICTS = {
    Equality.EQUAL: "agrees",
    Equality.DIFFERENT: "DIFFERS",
    Equality.INCONCLUSIVE: "cannot be told apart from rounding either",
}


@dataclass(frozen=True)
class Float64Comparison:
    """The whole graph in float64.

    comparison  what it shows; None where it was not made
    shape       of the input
    reason      why it was not made, in one clause
    """

    comparison: GraphComparison | None
    shape: tuple[int, ...] = ()
    reason: str = ""

    @property
    def equality(self) -> Equality:
        """What it shows; INCONCLUSIVE where it was not made."""
        if self.comparison is None:
            return Equality.INCONCLUSIVE
        return self.comparison.equality

    def to_json(self) -> dict[str, Any]:
        """A plain JSON document."""
        document: dict[str, Any] = {
            "equal": self.equality.to_json(),
            "shape": list(self.shape),
            "reason": self.reason,
        }
        if self.comparison is not None:
            document["max_abs_error"] = self.comparison.max_abs_error
            document["bound"] = self.comparison.bound
            document["spread"] = self.comparison.spread
        return document

    def sentence(self) -> str:
        """What it shows, as the end of a sentence."""
        if self.comparison is None:
            return f"the whole graph was not compared in float64: {self.reason}"
        size = "x".join(map(str, self.shape[2:]))
        verdict = VERDICTS[self.comparison.equality]
        summary = self.comparison.summary()
        return f"in float64 at {size} the whole graph {verdict}: {summary}"


class _NotComparable(Exception):
    """The graphs cannot be compared in float64; says why in one clause."""


def compare_in_float64(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    fold: Folder,
    seed: int,
) -> Float64Comparison:
    """Compare `before` and its fold `after` in float64, on noise of a small size.

    fold  what made `after` of `before`

    Raises:
        CertificateError: the weights of `after` are not those of the fold in float64.
    """
    weights = sum(math.prod(item.dims) for item in before.graph.initializer)
    try:
        if weights > MOST_WEIGHTS:
            raise _NotComparable(
                f"it has {weights:,} weights, and at most {MOST_WEIGHTS:,} are converted"
            )
        return _compare(before, after, fold, seed)
    except _NotComparable as reason:
        return Float64Comparison(None, reason=str(reason))


def _compare(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    fold: Folder,
    seed: int,
) -> Float64Comparison:
    wide = to_float64(before)
    shape = _shrink(wide)
    try:
        folded = fold(wide).model
    except RepzooError as error:
        raise _NotComparable(f"it does not fold at {list(shape)} ({error})") from None
    _require_same_fold(after, folded)
    inputs = np.random.default_rng(seed).standard_normal(shape)
    expected = _run(wide, inputs)
    actual = _run(folded, inputs)
    del folded
    # In place, for a second copy would take as much memory again.
    _jitter_weights(wide.graph, np.random.default_rng(seed + 1))
    jittered = _run(wide, inputs)
    trim_heap()
    roundoff = unit_roundoff(TensorProto.DOUBLE)
    comparison = compare(expected, actual, jittered, roundoff)
    return Float64Comparison(combine([comparison]), shape)


def _jitter_weights(graph: onnx.GraphProto, random: np.random.Generator) -> None:
    """Move every weight by one unit in the last place, in place."""
    for tensor in graph.initializer:
        tensor.CopyFrom(jitter(tensor, random))
    jitter_constants(graph, random)


# --- the graph in float64 -------------------------------------------------------------------------


def to_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that computes in float64.

    Raises:
        _NotComparable: it has subgraphs, or takes bytes.
    """
    wide = clone(inline_functions(model))
    graph = wide.graph
    if any(has_subgraph(node) for node in graph.node):
        raise _NotComparable("it has control flow")
    if classifier_input(wide).type.tensor_type.elem_type not in NARROW:
        raise _NotComparable("its input is not of floating-point numbers")
    # Sizes and types that were stored for the old graph do not hold.
    graph.ClearField("value_info")
    for item in (*graph.input, *graph.output):
        if item.type.tensor_type.elem_type in NARROW:
            item.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        _widen_attributes(node)
    return wide


def _widen_attributes(node: onnx.NodeProto) -> None:
    """Constants, and the target of a Cast."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen(attribute.t)
        is_target = node.op_type == "Cast" and attribute.name == "to"
        if is_target and attribute.i in NARROW:
            attribute.i = TensorProto.DOUBLE


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in NARROW:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _shrink(model: onnx.ModelProto) -> tuple[int, ...]:
    """Give the input of `model` a small height and width, in place, and return its shape."""
    dims = classifier_input(model).type.tensor_type.shape.dim
    if len(dims) != 4:
        raise _NotComparable("the shape of its input is not known")
    channels = dims[1].dim_value
    if not channels:
        raise _NotComparable("it does not say how many channels an image has")
    for dim in dims[2:]:
        dim.dim_value = min(dim.dim_value or SMALL_SIDE, SMALL_SIDE)
    batch = dims[0].dim_value or IMAGES
    return (batch, channels, dims[2].dim_value, dims[3].dim_value)


# --- the fold in float64 --------------------------------------------------------------------------


def _require_same_fold(after: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    """Refuse a fold in float64 that is not the fold at hand.

    Raises:
        _NotComparable: it has other nodes, which a fold that was timed may have.
        CertificateError: it has the same nodes with other weights.
    """
    if _structure(after.graph) != _structure(folded.graph):
        raise _NotComparable("the fold in float64 makes other nodes")
    wide = {tensor.name: tensor for tensor in folded.graph.initializer}
    for tensor in after.graph.initializer:
        if tensor.data_type in NARROW:
            _require_same_weight(tensor, wide[tensor.name])


def _require_same_weight(tensor: TensorProto, wide: TensorProto) -> None:
    """Refuse a weight that is not its `wide` twin in float64, but for rounding."""
    values = numpy_helper.to_array(tensor).astype(np.float64)
    exact = numpy_helper.to_array(wide)
    error = np.abs(values - exact).max(initial=0)
    # A weight below the smallest number, as in a long chain of layers, vanishes.
    smallest = smallest_number(tensor.data_type)
    bound = SAME_WEIGHTS * np.abs(exact).max(initial=0) + smallest
    if not error <= bound:
        raise CertificateError(
            f"{tensor.name}: the folded weights differ from those of the fold in float64 by "
            f"{error:.3g}, so nothing is written; this is a defect in repzoo"
        )


def _structure(graph: onnx.GraphProto) -> list[object]:
    """All of a graph but the values of its weights."""
    nodes: list[object] = []
    for node in graph.node:
        nodes.append((node.op_type, list(node.input), list(node.output)))
    weights = []
    for tensor in graph.initializer:
        weights.append((tensor.name, list(tensor.dims)))
    return [*nodes, *sorted(weights)]


# --- running --------------------------------------------------------------------------------------


class Conv(OpRun):  # onnx names an implementation by its class
    """The convolution of the proof; that of the reference is a hundred times slower."""

    op_domain = ""

    def _run(
        self,
        image: Array,
        weight: Array,
        bias: Array | None = None,
        **_: object,
    ) -> tuple[Array]:
        inputs = [image, weight] if bias is None else [image, weight, bias]
        return (convolve(self.onnx_node, inputs, False),)


def _run(model: onnx.ModelProto, inputs: Array) -> Outputs:
    """The outputs of `model` [n, classes]."""
    feeds = {classifier_input(model).name: inputs}
    try:
        evaluator = ReferenceEvaluator(model, new_ops=[Conv])
        with np.errstate(all="ignore"):
            (outputs,) = evaluator.run(None, feeds)
    except UnknownExpression:
        raise _NotComparable("it holds a convolution of an unusual kind") from None
    except Exception as error:  # whatever the reference raises
        reason = one_line(error)[:100]
        raise _NotComparable(
            f"it does not run on {list(inputs.shape)} ({reason})"
        ) from None
    values = np.asarray(outputs)
    if values.dtype != np.float64 or not np.isfinite(values).all():
        raise _NotComparable("its outputs are not finite numbers in float64")
    return values
