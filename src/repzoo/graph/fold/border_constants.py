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
from repzoo.graph.fold.algebra import Array
from repzoo.graph.fold.geometry import Geometry
from repzoo.graph.fold.rules import as_affine
from repzoo.graph.fold.rules.movement import BORDER, Border
from repzoo.graph.fold.tensors import constant_values
from repzoo.graph.tools.constant_folding import values_at_batch_size
from repzoo.graph.tools.ir_facts import is_standard

# A border constant was computed from the four parameters of a BatchNorm, in the number type of
# the graph.
BORDER_ROUNDINGS = 8
FLOAT32_ROUNDOFF = 2.0**-24
ROUNDOFF: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
    onnx.TensorProto.DOUBLE: 2.0**-53,
}
IMAGES = 2  # of an open batch
LARGEST = 2**24  # elements of a framed tensor
# Exporters write one for each of the four sides. More would take time that grows with the square.
MOST_WRITES = 64

Values = npt.NDArray[Any]
Known = Mapping[str, onnx.TensorProto]  # values that follow from constants and sizes
Write = tuple[Values, Values]  # indices [..., axes], and the values that go there
Positions = Mapping[ir.Node, int]  # of the nodes in the graph


def mark_borders(graph: ir.Graph, model: onnx.ModelProto) -> None:
    """Note in the `meta` of each ScatterND the Border that it completes, or why it is none.

    graph  of `model`, with shapes inferred
    """
    writers = []
    for node in graph:
        if node.op_type == "ScatterND" and is_standard(node):
            writers.append(node)
    if not writers:
        return
    known = values_at_batch_size(model, IMAGES)
    positions = {node: position for position, node in enumerate(graph)}
    for node in writers:
        node.meta[BORDER] = _border(node, known, positions)


def _border(last: ir.Node, known: Known, positions: Positions) -> Border | str | None:
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
    nodes = _between(last, frame.node, positions)
    return Border(fill, _fill_error(last.outputs[0]), tuple(nodes))


def _fill_error(framed: ir.Value) -> float:
    """The relative error of the constants that were written into `framed`."""
    number_type = 0 if framed.dtype is None else framed.dtype.value
    return BORDER_ROUNDINGS * ROUNDOFF.get(number_type, FLOAT32_ROUNDOFF)


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


def _write(node: ir.Node, known: Known) -> Write | None:
    """Where a ScatterND writes, and what; None if it adds, or if that is not known."""
    if node.attributes.get_string("reduction", "none") != "none":
        return None
    _, index_input, update_input = node.inputs
    indices = _values(index_input, known)
    updates = _values(update_input, known)
    if indices is None or updates is None:
        return None
    return indices.astype(np.int64), updates


def _values(value: ir.Value | None, known: Known) -> Values | None:
    """The values of a tensor that follow from constants and sizes."""
    if value is None:
        return None
    tensor = known.get(str(value.name))
    return constant_values(value) if tensor is None else numpy_helper.to_array(tensor)


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
    if not _apply_writes(canvas, writes):
        return None
    if inside.all() or not np.array_equal(np.isnan(canvas), inside):
        return None
    largest: Array = np.nanmax(canvas, (0, 2, 3))
    smallest = np.nanmin(canvas, (0, 2, 3))
    return largest if np.array_equal(largest, smallest) else None


def _apply_writes(canvas: Array, writes: Sequence[Write]) -> bool:
    """Write into `canvas`, in place; whether a runtime could do that."""
    try:
        for indices, updates in writes:
            positions = tuple(np.moveaxis(indices, -1, 0))
            canvas[positions] = updates
    except (IndexError, ValueError):
        return False
    return True


def _between(last: ir.Node, pad: ir.Node, positions: Positions) -> list[ir.Node]:
    """The nodes on the paths from `pad` to `last`, without `last`, from late to early."""
    before = {last}
    stack = [last]
    while stack:
        for node in _producers(stack.pop()):
            # What stands before the Pad cannot depend on it.
            is_after_pad = positions.get(node, -1) > positions[pad]
            if is_after_pad and node not in before:
                before.add(node)
                stack.append(node)
    on_path = {pad}
    for node in sorted(before, key=positions.__getitem__):
        if not on_path.isdisjoint(_producers(node)):
            on_path.add(node)
    return sorted(on_path - {last}, key=positions.__getitem__, reverse=True)


def _producers(node: ir.Node) -> list[ir.Node]:
    """The nodes that compute the inputs of `node`."""
    producers = []
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None:
            producers.append(producer)
    return producers
