"""Borders of constants: a frame of zeros that ScatterND nodes fill with one number per channel.

Exporters write PyTorch's y[:, :, :p, :] = v as a ScatterND. A Diverse Branch Block does this: it
pads what the BatchNorm of its 1x1 convolution computes, and fills the frame with what that
BatchNorm gives for zeros. So the frame is the same as zero padding of the convolution, which
the fold can use.

`mark_borders` reads where such nodes write, and what. Both may depend on sizes but on no other
value. The image must have a fixed size. The batch may be open: the nodes are evaluated for IMAGES
images. The certificate checks with another number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from repzoo.graph.fold.affine_node import AffineNode
from repzoo.graph.fold.algebra import Array, Geometry
from repzoo.graph.fold.rules import as_affine
from repzoo.graph.fold.rules.movement import BORDER, Border
from repzoo.graph.fold.tensors import constant, is_standard
from repzoo.graph.tools.constant_folding import values_at_batch_size

# A border constant was computed from the four parameters of a BatchNorm, in the number type of
# the graph.
BORDER_ROUNDINGS = 8
FLOAT32_ROUNDOFF = 2.0**-24
ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
    onnx.TensorProto.DOUBLE: 2.0**-53,
}
IMAGES = 2
LARGEST = 2**24  # elements of a framed tensor
# Exporters write one for each of the four sides. More would take time that grows with the square.
MOST_WRITES = 64

Values = npt.NDArray[Any]
Write = tuple[Values, Values]  # indices [..., axes], and the values that go there
Places = Mapping[ir.Node, int]  # of the nodes in the graph


def mark_borders(graph: ir.Graph, model: onnx.ModelProto) -> None:
    """Note in the `meta` of each ScatterND the Border that it completes, or why it is none.

    graph  of `model`, with shapes inferred
    """
    last_writes = []
    for node in graph:
        if node.op_type == "ScatterND" and is_standard(node):
            last_writes.append(node)
    if not last_writes:
        return
    known = values_at_batch_size(model, IMAGES)
    places = {node: place for place, node in enumerate(graph)}
    for node in last_writes:
        node.meta[BORDER] = _border(node, known, places)


def _border(
    last: ir.Node, known: Mapping[str, onnx.TensorProto], places: Places
) -> Border | str | None:
    """The border that `last` completes, or why it is none; None if nobody would expect one."""
    writers, pad = _chain(last)
    if len(writers) > MOST_WRITES:
        return f"more than {MOST_WRITES} nodes write into one tensor, one after another"
    frame = as_affine(pad) if pad is not None and pad.op_type == "Pad" else None
    if not isinstance(frame, AffineNode):
        return None
    sides = _sides(frame.source)
    if not sides:
        return (
            "it writes into a tensor of open (or immense) height and width; export it with a "
            "fixed size to have that folded"
        )
    writes = []
    for node in reversed(writers):
        write = _write(node, known)
        if write is None:
            return "where it writes, or what, depends on more than sizes and constants"
        writes.append(write)
    fill = _fill(sides, frame.geometry, writes)
    if fill is None:
        return (
            "it writes something other than one number a channel on exactly the frame of zeros, "
            "which no convolution does"
        )
    dtype = last.outputs[0].dtype
    roundoff = ROUNDOFF.get(0 if dtype is None else dtype.value, FLOAT32_ROUNDOFF)
    nodes = tuple(_between(last, frame.node, places))
    return Border(fill, BORDER_ROUNDINGS * roundoff, nodes)


def _chain(last: ir.Node) -> tuple[list[ir.Node], ir.Node | None]:
    """ScatterND nodes that each write into the result of the next, and the node before them.

    At most one more than MOST_WRITES of them.
    """
    writers: list[ir.Node] = []
    node: ir.Node | None = last
    while node is not None and node.op_type == "ScatterND":
        writers.append(node)
        target = node.inputs[0]
        node = None if target is None else target.producer()
        if len(writers) > MOST_WRITES:
            break
    return writers, node


def _sides(source: ir.Value) -> tuple[int, ...]:
    """[N, C, H, W] of the image in the frame, with IMAGES for an open batch.

    Empty if another side is open, or all of it is too large to evaluate.
    """
    if source.shape is None or len(source.shape) != 4:
        return ()
    batch = source.shape[0]
    sides = [batch if isinstance(batch, int) else IMAGES]
    for side in source.shape[1:]:
        if not isinstance(side, int):
            return ()
        sides.append(side)
    return tuple(sides) if math.prod(sides) <= LARGEST else ()


def _write(node: ir.Node, known: Mapping[str, onnx.TensorProto]) -> Write | None:
    """Where a ScatterND writes, and what; None if it adds, or if that is not known."""
    if node.attributes.get_string("reduction", "none") != "none":
        return None
    indices, updates = (_values(value, known) for value in node.inputs[1:])
    if indices is None or updates is None:
        return None
    return indices.astype(np.int64), updates


def _values(
    value: ir.Value | None, known: Mapping[str, onnx.TensorProto]
) -> Values | None:
    """The values of a tensor that follow from constants and sizes."""
    if value is None:
        return None
    tensor = known.get(str(value.name))
    return constant(value) if tensor is None else numpy_helper.to_array(tensor)


def _fill(
    sides: tuple[int, ...], geometry: Geometry, writes: Sequence[Write]
) -> Array | None:
    """The constant of each channel, [C].

    None unless the writes cover the frame and nothing else, with one number in each channel.
    """
    images, channels, height, width = sides
    top, left, bottom, right = geometry.pads
    canvas = np.zeros((images, channels, height + top + bottom, width + left + right))
    inside = np.zeros(canvas.shape, bool)
    inside[:, :, top : top + height, left : left + width] = True
    # Pixels of the image are NaN, to see whether a write touches one.
    canvas[inside] = np.nan
    try:
        for indices, updates in writes:
            canvas[tuple(np.moveaxis(indices, -1, 0))] = updates
    except (IndexError, ValueError):
        return None  # no runtime could do that
    if not np.array_equal(np.isnan(canvas), inside) or inside.all():
        return None
    fill: Array = np.nanmax(canvas, (0, 2, 3))
    return fill if np.array_equal(fill, np.nanmin(canvas, (0, 2, 3))) else None


def _between(last: ir.Node, pad: ir.Node, places: Places) -> list[ir.Node]:
    """The nodes on the paths from `pad` to `last`, without `last`, from late to early."""
    before = {last}
    stack = [last]
    while stack:
        for value in stack.pop().inputs:
            node = None if value is None else value.producer()
            if node is None or node in before:
                continue
            # What stands before the Pad cannot depend on it.
            if places.get(node, -1) > places[pad]:
                before.add(node)
                stack.append(node)
    on_path = {pad}
    for node in sorted(before, key=places.__getitem__):
        producers = [value.producer() for value in node.inputs if value is not None]
        if not on_path.isdisjoint(producers):
            on_path.add(node)
    return sorted(on_path - {last}, key=places.__getitem__, reverse=True)
