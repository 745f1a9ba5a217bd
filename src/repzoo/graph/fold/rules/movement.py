"""Rules for operators that only move values: padding, and choosing channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from repzoo.graph.fold import algebra
from repzoo.graph.fold.affine_node import AffineNode, Answer, refuse
from repzoo.graph.fold.algebra import Array, Geometry
from repzoo.graph.fold.rules.padding import Pads
from repzoo.graph.fold.tensors import channels_of, constant, rank_of

# Key in the `meta` of a ScatterND: a Border, or the sentence that says why it is none
# (border_constants.py).
BORDER = "repzoo.border"


@dataclass(frozen=True)
class Border:
    """A frame of constants, one number for each channel, that ScatterND nodes write into zeros.

    fill   the constants, float64 [C]
    doubt  their relative error, as in algebra.AffineMap
    nodes  before the last ScatterND: the others, those that compute where they write, and the Pad
    """

    fill: Array
    doubt: float
    nodes: tuple[ir.Node, ...]


def pad(node: ir.Node) -> Answer:
    """A frame of zeros around height and width of [N, C, H, W]."""
    source = node.inputs[0]
    sizes = _setting(node, "pads", 1)
    value = _setting(node, "value", 2)
    axes = _setting(node, "axes", 3)
    if source is None or sizes is None or value is None or axes is None:
        return None
    if rank_of(source) != 4:
        return None
    if node.attributes.get_string("mode", "constant") != "constant" or value.any():
        return refuse(
            node, "it pads with something other than zeros, which no convolution does"
        )
    # [before or after, axis]
    frame = np.zeros((2, 4), int)
    frame[:, axes.astype(int) if axes.size else slice(None)] = sizes.reshape(2, -1)
    channels = channels_of(source)
    crops = frame.min() < 0
    pads_channels = frame[:, :2].any()
    if not channels or crops or pads_channels:
        return None
    top, left, bottom, right = (int(side) for side in frame[:, 2:].reshape(-1))
    pads: Pads = (top, left, bottom, right)
    return AffineNode(
        node,
        source,
        Geometry(channels, channels, pads=pads, groups=channels),
        build=lambda: algebra.zero_pad(channels, pads),
        moves=True,
    )


def scatter(node: ir.Node) -> Answer:
    """The last of the ScatterND nodes that fill a frame of zeros with constants."""
    border = node.meta.get(BORDER)
    if not isinstance(border, Border):
        return refuse(node, border) if border else None
    zeros = pad(border.nodes[-1])
    if not isinstance(zeros, AffineNode):
        return None
    pads = zeros.geometry.pads
    return AffineNode(
        node,
        zeros.source,
        zeros.geometry,
        build=lambda: algebra.frame(border.fill, pads, border.doubt),
        moves=True,
        more=border.nodes,
    )


def split(node: ir.Node, output: int) -> Answer:
    """Output number `output` of a Split along the channels."""
    source = node.inputs[0]
    rank = 0 if source is None else rank_of(source)
    is_channel_axis = node.attributes.get_int("axis", 0) in (1, 1 - rank)
    counts = [channels_of(value) for value in node.outputs]
    if source is None or rank not in (2, 4) or not is_channel_axis:
        return None
    if not all(counts):
        return None
    return _choose_channels(node, source, sum(counts[:output]), counts[output])


def slice_channels(node: ir.Node) -> Answer:
    """A Slice that cuts nothing but a run of channels."""
    source = node.inputs[0]
    starts = _setting(node, "starts", 1)
    axes = _setting(node, "axes", 3)
    steps = _setting(node, "steps", 4)
    if source is None or starts is None or axes is None or steps is None:
        return None
    if starts.size != 1:
        return None
    axis = int(axes[0]) if axes.size else 0
    is_channel_axis = axis in (1, 1 - rank_of(source))
    skips = steps.size and steps[0] != 1
    total = channels_of(source)
    count = channels_of(node.outputs[0])
    if not is_channel_axis or skips or not total or not count:
        return None
    start = int(starts[0])
    if start < 0:
        start = max(start + total, 0)
    return _choose_channels(node, source, start, count)


def _choose_channels(
    node: ir.Node, source: ir.Value, start: int, count: int
) -> AffineNode:
    """The `count` channels of `source` from `start` on."""
    total = channels_of(source)
    return AffineNode(
        node,
        source,
        Geometry(count, total),
        build=lambda: algebra.select(total, start, count),
        flat=rank_of(source) == 2,
        moves=True,
    )


def _setting(node: ir.Node, name: str, index: int) -> Array | None:
    """A setting that is an attribute in older operator sets and input number `index` since.

    Empty if it is omitted, None if it is computed.
    """
    if name in node.attributes:
        return np.atleast_1d(np.asarray(node.attributes[name].value, np.float64))
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return np.zeros(0)
    values = constant(value)
    return None if values is None else np.atleast_1d(values)
