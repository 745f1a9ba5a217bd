"""Layers with weights (Conv and Gemm) as matrices: what every correction works on.

For each group g of a layer,

    y[g] = rows[g] @ column[g] + bias[g]

`rows` [G, O/G, K] are the weights. A column [G, K] is what one output position reads (im2col),
with K = input channels of the group times kernel positions. Shapes use these letters:

    N  images                    O  output channels of all groups
    G  groups                    K  weights per output: C/G times the kernel's size
    C  input channels            R  output positions per image
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
KINDS = frozenset({"Conv", "Gemm"})


@dataclass(frozen=True)
class Layer:
    """One Conv or Gemm with constant weights.

    Attributes:
        name: its output tensor, which identifies the layer everywhere.
        op: "Conv" or "Gemm".
        source: the activation that it reads.
        weight: initializer [O, C/G, *kernel]; for a Gemm [O, C], or [C, O] if `transposed`.
        bias: initializer, or "".
        shape: of `weight`.
        groups: G.
        kernel, strides, dilations: by axis; (1, 1) for a Gemm.
        pads: begin of each axis, then end of each axis.
        auto_pad: as in the ONNX operator Conv.
        transposed: whether a Gemm stores its weight as [C, O].
    """

    name: str
    op: str
    source: str
    weight: str
    bias: str
    shape: tuple[int, ...]
    groups: int = 1
    kernel: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    auto_pad: str = "NOTSET"
    transposed: bool = False

    @property
    def out_channels(self) -> int:
        """Number of output channels O."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def in_channels(self) -> int:
        """Number of input channels C of all groups."""
        return self.shape[0] if self.transposed else self.shape[1] * self.groups

    @property
    def taps(self) -> int:
        """Number of kernel positions; 1 for a Gemm."""
        return math.prod(self.kernel)

    @property
    def fan_in(self) -> int:
        """K: number of weights per output."""
        return self.in_channels // self.groups * self.taps

    def span(self, axis: int) -> int:
        """Pixels from the first to the last that the kernel reads along a spatial axis."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def to_rows(self, values: Array) -> Array:
        """Weights of the initializer's shape as [G, O/G, K]."""
        by_output = values.T if self.transposed else values
        outputs_per_group = self.out_channels // self.groups
        return by_output.reshape(self.groups, outputs_per_group, self.fan_in)

    def from_rows(self, rows: Array) -> Array:
        """Rows [G, O/G, K] in the initializer's shape: the inverse of `to_rows`."""
        by_output = rows.reshape(self.out_channels, -1)
        if self.transposed:
            return np.ascontiguousarray(by_output.T)
        return by_output.reshape(self.shape)

    def per_column(self, values: Array) -> Array:
        """One number per input channel ([C] or [G, C/G]) -> one per column entry [G, K]."""
        by_group = values.reshape(self.groups, -1)
        return np.repeat(by_group, self.taps, axis=1)


def find_layers(model: onnx.ModelProto) -> dict[str, Layer]:
    """Every Conv and Gemm with constant float weights and bias, by output name, in graph order.

    A Gemm must have alpha = beta = 1 and an input that is not transposed; a Conv must have two
    spatial axes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT:
            shapes[item.name] = tuple(item.dims)
    layers: dict[str, Layer] = {}
    for node in model.graph.node:
        layer = _layer(node, shapes) if node.op_type in KINDS else None
        if layer is not None:
            layers[layer.name] = layer
    return layers


def _layer(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Layer | None:
    """`node` as a layer; None if its weights are not constant or it computes something else."""
    source = node.input[0]
    parameters = {name for name in node.input[1:] if name}
    if source in shapes or not parameters <= shapes.keys():
        return None
    layer = Layer(
        name=node.output[0],
        op=node.op_type,
        source=source,
        weight=node.input[1],
        bias=node.input[2] if len(node.input) > 2 else "",
        shape=shapes[node.input[1]],
    )
    attributes: dict[str, Any] = {}
    for item in node.attribute:
        attributes[item.name] = onnx.helper.get_attribute_value(item)
    if node.op_type == "Gemm":
        return _with_gemm_attributes(layer, attributes)
    return _with_conv_attributes(layer, attributes)


def _with_gemm_attributes(layer: Layer, attributes: Mapping[str, Any]) -> Layer | None:
    """`layer` with the attributes of its Gemm; None for one that is more than a linear layer."""
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    if attributes.get("transA", 0):
        return None
    return replace(layer, transposed=not attributes.get("transB", 0))


def _with_conv_attributes(layer: Layer, attributes: Mapping[str, Any]) -> Layer | None:
    """`layer` with the attributes of its Conv; None for one that is not two-dimensional."""
    if len(layer.shape) != 4:
        return None
    return replace(
        layer,
        groups=attributes.get("group", 1),
        kernel=layer.shape[2:],
        strides=tuple(attributes.get("strides", layer.strides)),
        dilations=tuple(attributes.get("dilations", layer.dilations)),
        pads=tuple(attributes.get("pads", layer.pads)),
        auto_pad=attributes.get("auto_pad", b"NOTSET").decode(),
    )


def initializer_arrays(model: onnx.ModelProto) -> dict[str, Array]:
    """Values of all initializers by name."""
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def weight_rows(layer: Layer, values: Mapping[str, Array]) -> Float:
    """The layer's weights as float64 rows [G, O/G, K]. `values` are the initializers."""
    return np.asarray(layer.to_rows(values[layer.weight]), np.float64)


def bias_vector(layer: Layer, values: Mapping[str, Array]) -> Float:
    """The layer's bias as float64 [O]; zeros if it has none. `values` are the initializers."""
    bias = np.zeros(1)
    if layer.bias:
        bias = values[layer.bias].astype(np.float64).reshape(-1)
    # a copy: what np.broadcast_to returns is read-only
    return np.array(np.broadcast_to(bias, (layer.out_channels,)))


def sample_positions(
    layer: Layer,
    activation: Images,
    count: int,
    random: np.random.Generator,
) -> Ids | None:
    """`count` random output positions of each image, flat [N, count]; None if that is all of them.

    Args:
        layer: reads `activation`.
        activation: float32 [N, C, H, W], or [N, C] for a Gemm.
        count: positions of each image.
        random: draws them.
    """
    total = output_positions(layer, activation.shape[2:])
    if count >= total:
        return None
    # One set is drawn and shifted by a random number per image. That is as uniform as drawing a
    # set per image, and much cheaper.
    shifts = random.integers(total, size=(len(activation), 1))
    positions = random.choice(total, count, replace=False)
    return np.asarray((positions + shifts) % total)


def im2col(
    layer: Layer,
    activation: Images,
    outputs: Ids | None,
) -> Images:
    """What the layer reads at some output positions of each image: float32 [G, K, N R].

    Args:
        layer: reads `activation`.
        activation: float32 [N, C, H, W], or [N, C] for a Gemm.
        outputs: flat output positions [N, R] (see `sample_positions`); None for all.
    """
    if activation.ndim == 2:
        return activation.T[None]
    images, channels, *size = activation.shape
    if outputs is None:
        all_positions = np.arange(output_positions(layer, size))
        outputs = np.tile(all_positions, (images, 1))
    positions, is_inside = _input_positions(layer, size, outputs)
    columns = np.empty((channels, *positions.shape), np.float32)
    pixels = activation.reshape(images, channels, -1)
    for image in range(images):
        columns[:, :, image] = pixels[image].take(positions[:, image], axis=1)
    if not is_inside.all():
        columns *= is_inside
    return columns.reshape(layer.groups, layer.fan_in, -1)


def _input_positions(
    layer: Layer,
    size: Sequence[int],
    outputs: Ids,
) -> tuple[Ids, Mask]:
    """(flat input position of each kernel tap [taps, N, R], whether it is inside the image).

    Positions outside of the image are 0. `outputs` [N, R] are flat output positions.
    """
    # Positions are computed one by one: only a few per image are needed, and a padded copy of the
    # activation would cost more.
    height, width = size
    output_width = _output_sides(layer, size)[1]
    rows = _tap_coordinates(layer, size, 0, outputs // output_width)
    columns = _tap_coordinates(layer, size, 1, outputs % output_width)
    row = rows[:, None]
    column = columns[None]
    is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    positions = np.where(is_inside, row * width + column, 0)
    shape = (-1, *outputs.shape)
    return positions.reshape(shape), is_inside.reshape(shape)


def _tap_coordinates(
    layer: Layer,
    size: Sequence[int],
    axis: int,
    outputs: Ids,
) -> Ids:
    """What the kernel reads along one axis for output coordinates [N, R]: [kernel, N, R]."""
    padding_before, _ = _padding(layer, size)[axis]
    taps = np.arange(layer.kernel[axis]) * layer.dilations[axis] - padding_before
    return np.asarray(taps[:, None, None] + outputs * layer.strides[axis])


def output_positions(layer: Layer, size: Sequence[int]) -> int:
    """Number of output positions for an activation of spatial `size`; 1 for a Gemm."""
    return math.prod(_output_sides(layer, size)) if size else 1


def _output_sides(layer: Layer, size: Sequence[int]) -> list[int]:
    """Height and width of the output. Source: ONNX operator Conv."""
    sides: list[int] = []
    for axis, (before, after) in enumerate(_padding(layer, size)):
        padded = size[axis] + before + after
        sides.append((padded - layer.span(axis)) // layer.strides[axis] + 1)
    return sides


def _padding(layer: Layer, size: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis. Source: ONNX operator Conv, attribute auto_pad."""
    if layer.auto_pad == "VALID":
        return [(0, 0), (0, 0)]
    if layer.auto_pad == "NOTSET":
        return list(zip(layer.pads[:2], layer.pads[2:], strict=True))
    # SAME: as many outputs as strides fit into the input, rounded up
    paddings: list[tuple[int, int]] = []
    for axis, side in enumerate(size):
        stride = layer.strides[axis]
        outputs = math.ceil(side / stride)
        covered = (outputs - 1) * stride + layer.span(axis)
        total = max(0, covered - side)
        smaller = total // 2
        larger = total - smaller
        # SAME_UPPER puts the odd pixel after, SAME_LOWER before.
        if layer.auto_pad == "SAME_UPPER":
            paddings.append((smaller, larger))
        else:
            paddings.append((larger, smaller))
    return paddings
