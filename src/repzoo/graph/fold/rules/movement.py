"""Rules for operators that only move values: padding, and choosing channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from repzoo.graph.fold import algebra
from repzoo.graph.fold.affine_node import AffineNode, Answer, refuse
from repzoo.graph.fold.algebra import Array
from repzoo.graph.fold.geometry import Geometry, Pads, depthwise
from repzoo.graph.fold.tensors import (
    channels_of,
    constant_values,
    is_channel_axis,
    rank_of,
)

# Key in the `meta` of a ScatterND: a Border, or the sentence that says why it is none
# (border_constants.py).
BORDER = "repzoo.border"

# Attributes in older operator sets, and numbers of the inputs that hold the same since.
PAD_SETTINGS = {"pads": 1, "value": 2, "axes": 3}
SLICE_SETTINGS = {"starts": 1, "axes": 3, "steps": 4}


@dataclass(frozen=True)
class Border:
    """A frame of constants, one number for each channel, that ScatterND nodes write into zeros.

    fill        the constants, float64 [C]
    fill_error  their relative error, as in algebra.AffineMap
    nodes       before the last ScatterND: the others, those that compute where they write, and
                the Pad
    """

    fill: Array
    fill_error: float
    nodes: tuple[ir.Node, ...]


def pad(node: ir.Node) -> Answer:
    """A frame of zeros around height and width of [N, C, H, W]."""
    source = node.inputs[0]
    settings = _settings(node, PAD_SETTINGS)
    if source is None or settings is None or rank_of(source) != 4:
        return None
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant" or settings["value"].any():
        return refuse(
            node, "it pads with something other than zeros, which no convolution does"
        )
    frame = _frame(settings["pads"], settings["axes"])
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
        depthwise(channels, pads),
        build=lambda: algebra.zero_pad(channels, pads),
        moves=True,
    )


def _frame(sizes: Array, axes: Array) -> npt.NDArray[np.int_]:
    """What a Pad of [N, C, H, W] adds, [before or after, axis].

    sizes  before each axis, then after each
    axes   empty for all
    """
    padded_axes = axes.astype(int) if axes.size else np.arange(4)
    frame = np.zeros((2, 4), int)
    frame[:, padded_axes] = sizes.reshape(2, -1)
    return frame


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
        build=lambda: algebra.constant_pad(border.fill, pads, border.fill_error),
        moves=True,
        more=border.nodes,
    )


def split(node: ir.Node, output: int) -> Answer:
    """Output number `output` of a Split along the channels."""
    source = node.inputs[0]
    axis = node.attributes.get_int("axis", 0)
    if source is None or not is_channel_axis(axis, source):
        return None
    # From shapes: the sizes are an attribute, an input or left out, depending on the operator set.
    counts = [channels_of(value) for value in node.outputs]
    if not all(counts):
        return None
    return _choose_channels(node, source, sum(counts[:output]), counts[output])


def slice_channels(node: ir.Node) -> Answer:
    """A Slice that cuts nothing but a run of channels."""
    source = node.inputs[0]
    settings = _settings(node, SLICE_SETTINGS)
    if source is None or settings is None or settings["starts"].size != 1:
        return None
    start = int(settings["starts"][0])
    axis = _first(settings["axes"], default=0)
    step = _first(settings["steps"], default=1)
    if not is_channel_axis(axis, source) or step != 1:
        return None
    total = channels_of(source)
    # In the place of `ends`, which may be negative or beyond the last channel.
    count = channels_of(node.outputs[0])
    if not total or not count:
        return None
    if start < 0:
        start = max(start + total, 0)
    return _choose_channels(node, source, start, count)


def _first(values: Array, default: int) -> int:
    return int(values[0]) if values.size else default


def _choose_channels(
    node: ir.Node, source: ir.Value, start: int, count: int
) -> AffineNode:
    """The `count` channels of `source` from `start` on."""
    total = channels_of(source)
    return AffineNode(
        node,
        source,
        Geometry(count, total),
        build=lambda: algebra.select_channels(total, start, count),
        flat=rank_of(source) == 2,
        moves=True,
    )


def _settings(node: ir.Node, indices: Mapping[str, int]) -> dict[str, Array] | None:
    """The settings of a node by name, empty where they are omitted; None if one is computed.

    indices  of the inputs that hold them
    """
    settings: dict[str, Array] = {}
    for name, index in indices.items():
        values = _setting(node, name, index)
        if values is None:
            return None
        settings[name] = values
    return settings


def _setting(node: ir.Node, name: str, index: int) -> Array | None:
    """The attribute `name` or input number `index`; empty if omitted, None if computed."""
    if name in node.attributes:
        return np.atleast_1d(np.asarray(node.attributes[name].value, np.float64))
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return np.zeros(0)
    values = constant_values(value)
    return None if values is None else np.atleast_1d(values)
