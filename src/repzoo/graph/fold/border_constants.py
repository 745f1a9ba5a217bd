"""Borders: a frame of zeros (Pad) that ScatterND nodes then fill with one number for each channel.

Exporters write so what PyTorch code says as y[:, :, :p, :] = v and the like. Diverse Branch
Block does: it frames what its 1x1 convolution's BatchNorm gives by what that gives for zeros,
so the frame might as well be zero padding of the convolution.

Where a ScatterND writes, and what, may depend on sizes but on no value: that is so for all that
constants.sized finds. The image must have a fixed size; the batch may be open: what is written
is looked at for IMAGES of them, and once more, for another number, by the proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from repzoo.graph.fold.algebra import Array, Geometry
from repzoo.graph.fold.rules import BORDER, AffineNode, Border, as_affine
from repzoo.graph.fold.tensors import constant
from repzoo.graph.tools.constant_folding import at_batch_size

# A border constant was computed from the four parameters of a BatchNorm, in the number type of
# the graph.
BORDER_ROUNDINGS = 8
ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
    onnx.TensorProto.DOUBLE: 2.0**-53,
}
IMAGES = 2
LARGEST = 2**24  # numbers in a framed tensor

Values = npt.NDArray[Any]
Write = tuple[Values, Values]  # where (index [..., axes]), what [...]


def mark_borders(graph: ir.Graph, model: onnx.ModelProto) -> None:
    """Note in the `meta` of each ScatterND in `graph` (of `model`, shapes inferred) the Border
    it completes, or why it is none.
    """
    writers = [
        node
        for node in graph
        if node.op_type == "ScatterND" and node.domain in ("", "ai.onnx")
    ]
    if writers:
        known, places = (
            at_batch_size(model, IMAGES).values,
            {node: place for place, node in enumerate(graph)},
        )
        for node in writers:
            node.meta[BORDER] = _border(node, known, places)


def _border(
    last: ir.Node, known: Mapping[str, onnx.TensorProto], places: Mapping[ir.Node, int]
) -> Border | str | None:
    *writers, pad = _chain(last)
    frame = as_affine(pad) if pad is not None and pad.op_type == "Pad" else None
    if not isinstance(frame, AffineNode):
        return None
    if not (sides := _sides(frame.source)):
        return (
            "it writes into a tensor of open (or immense) height and width; export it with a "
            "fixed size to have that folded"
        )
    writes = [
        write
        for node in reversed(writers)
        if node is not None and (write := _write(node, known)) is not None
    ]
    if len(writes) < len(writers):
        return "where it writes, or what, depends on more than sizes and constants"
    fill = _fill(sides, frame.geometry, writes)
    if fill is None:
        return (
            "it writes something other than one number a channel on exactly the frame of zeros, "
            "which no convolution does"
        )
    kind = last.outputs[0].dtype
    doubt = BORDER_ROUNDINGS * ROUNDOFF.get(
        kind.value if kind is not None else 0, 2.0**-24
    )
    return Border(fill, doubt, tuple(_between(last, frame.node, places)))


def _chain(last: ir.Node) -> Iterator[ir.Node | None]:
    """ScatterND nodes that each write into the one before, then the node that they all began
    with.
    """
    node: ir.Node | None = last
    while node is not None and node.op_type == "ScatterND":
        yield node
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    yield node


def _sides(source: ir.Value) -> tuple[int, ...]:
    """[N, C, H, W], IMAGES where the batch is open; empty where another is, or all are too
    large to look at.
    """
    batch, *rest = source.shape or (0,)
    sides = tuple(
        side
        for side in (batch if isinstance(batch, int) else IMAGES, *rest)
        if isinstance(side, int)
    )
    return (
        sides
        if len(rest) == 3 and len(sides) == 4 and math.prod(sides) <= LARGEST
        else ()
    )


def _write(node: ir.Node, known: Mapping[str, onnx.TensorProto]) -> Write | None:
    if node.attributes.get_string("reduction", "none") != "none":
        return None
    found = []
    for value in node.inputs[1:]:
        held = known.get(str(value.name)) if value is not None else None
        values = constant(value) if held is None else numpy_helper.to_array(held)
        if values is None:
            return None
        found.append(values)
    return found[0].astype(np.int64), found[1]


def _fill(
    sides: tuple[int, ...], shape: Geometry, writes: Sequence[Write]
) -> Array | None:
    """[C], None unless the `writes` cover the frame and nothing else, and agree in each channel."""
    images, channels, height, width = sides
    top, left, bottom, right = shape.pads
    canvas = np.zeros((images, channels, height + top + bottom, width + left + right))
    inside = np.zeros(canvas.shape, bool)
    inside[:, :, top : top + height, left : left + width] = True
    canvas[inside] = np.nan
    try:
        for where, what in writes:
            canvas[tuple(np.moveaxis(where, -1, 0))] = what
    except (IndexError, ValueError):
        return None  # no runtime could do that
    if not np.array_equal(np.isnan(canvas), inside) or inside.all():
        return None
    fill: Array = np.nanmax(canvas, (0, 2, 3))
    return fill if np.array_equal(fill, np.nanmin(canvas, (0, 2, 3))) else None


def _between(
    last: ir.Node, pad: ir.Node, places: Mapping[ir.Node, int]
) -> Iterator[ir.Node]:
    """The nodes that `last` reads and that read `pad`, from the one to the other, and then
    `pad`.
    """
    behind, stack = {last}, [last]
    while stack:
        for value in stack.pop().inputs:
            node = value.producer() if value is not None else None
            if (
                node is not None
                and node not in behind
                and places.get(node, -1) > places[pad]
            ):
                behind.add(node)
                stack.append(node)
    inside = {pad}
    for node in sorted(behind, key=places.__getitem__):
        if any(
            value is not None and value.producer() in inside for value in node.inputs
        ):
            inside.add(node)
    yield from sorted(inside - {last}, key=places.__getitem__, reverse=True)
