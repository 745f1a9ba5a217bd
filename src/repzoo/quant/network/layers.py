"""Layers with weights (Conv and Gemm) as matrices: what every correction works on.

For each group g of a layer, y[g] = rows[g] @ column[g] + bias. `rows` [G, O/G, K] are the
weights. A column [G, K] is what one output position reads (im2col), with K = input channels of
the group times kernel positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Float = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
KINDS = frozenset({"Conv", "Gemm"})


@dataclass(frozen=True)
class Layer:
    """One Conv or Gemm with constant weights.

    name        its output tensor, which identifies the layer everywhere
    source      the activation that it reads
    weight      initializer [O, C/G, *kernel]; for a Gemm [O, C], or [C, O] if `transposed`
    bias        initializer, or ""
    shape       of `weight`
    kernel      (1, 1) for a Gemm, like strides and dilations
    pads        begin of each axis, then end of each axis
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
    def fan_in(self) -> int:
        """K: number of weights per output."""
        return self.in_channels // self.groups * int(np.prod(self.kernel))

    def to_rows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Weights of the initializer's shape as [G, O/G, K]."""
        by_output = values.T if self.transposed else values
        return by_output.reshape(
            self.groups, self.out_channels // self.groups, self.fan_in
        )

    def from_rows(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows [G, O/G, K] in the initializer's shape: the inverse of `to_rows`."""
        flat = rows.reshape(self.out_channels, -1)
        return (
            np.ascontiguousarray(flat.T)
            if self.transposed
            else flat.reshape(self.shape)
        )

    def per_column(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One number per input channel ([C] or [G, C/G]) -> one per column entry [G, K]."""
        return np.repeat(
            values.reshape(self.groups, -1), int(np.prod(self.kernel)), axis=1
        )


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
    parameters = [name for name in node.input[1:] if name]
    if any(name not in shapes for name in parameters) or node.input[0] in shapes:
        return None
    attributes = {
        item.name: onnx.helper.get_attribute_value(item) for item in node.attribute
    }
    shape = shapes[node.input[1]]
    fields: dict[str, Any] = {
        "name": node.output[0],
        "op": node.op_type,
        "source": node.input[0],
        "weight": node.input[1],
        "bias": node.input[2] if len(node.input) > 2 else "",
        "shape": shape,
    }
    if node.op_type == "Gemm":
        is_scaled = (
            attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
        )
        if is_scaled or attributes.get("transA", 0):
            return None
        return Layer(**fields, transposed=not attributes.get("transB", 0))
    if len(shape) != 4:
        return None
    for name in ("strides", "dilations", "pads"):
        if name in attributes:
            fields[name] = tuple(attributes[name])
    return Layer(
        **fields,
        groups=attributes.get("group", 1),
        kernel=shape[2:],
        auto_pad=attributes.get("auto_pad", b"NOTSET").decode(),
    )


def initializer_arrays(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Values of all initializers by name."""
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def weight_rows(layer: Layer, values: Mapping[str, npt.NDArray[Any]]) -> Float:
    """The layer's weights as float64 rows [G, O/G, K]."""
    return np.asarray(layer.to_rows(values[layer.weight]), np.float64)


def bias_vector(layer: Layer, values: Mapping[str, npt.NDArray[Any]]) -> Float:
    """The layer's bias as float64 [O]; zeros if it has none."""
    bias = np.zeros(1)
    if layer.bias:
        bias = values[layer.bias].astype(np.float64).reshape(-1)
    return np.array(np.broadcast_to(bias, (layer.out_channels,)))


def sample_positions(
    layer: Layer, activation: Images, count: int, random: np.random.Generator
) -> Ids | None:
    """`count` random output positions of each image, flat [N, count]; None if that is all of them.

    One set is drawn and shifted by a random number per image. That is as uniform as drawing a set
    per image, and much cheaper.
    """
    total = output_positions(layer, activation.shape[2:])
    if count >= total:
        return None
    shifts = random.integers(total, size=(len(activation), 1))
    positions = random.choice(total, count, replace=False)
    return np.asarray((positions + shifts) % total)


def im2col(
    layer: Layer, activation: Images, outputs: Ids | None
) -> npt.NDArray[np.float32]:
    """What the layer reads at some output positions of each image: float32 [G, K, N R].

    activation  float32 [N, C, H, W], or [N, C] for a Gemm
    outputs     flat output positions [N, R] (see `sample_positions`); None for all
    """
    if activation.ndim == 2:
        return activation.T[None]
    size = activation.shape[2:]
    if outputs is None:
        outputs = np.tile(
            np.arange(output_positions(layer, size)), (len(activation), 1)
        )
    positions, is_inside = _input_positions(layer, size, outputs)
    flat = activation.reshape(*activation.shape[:2], -1)
    columns = np.empty((flat.shape[1], *positions.shape), np.float32)
    for image, values in enumerate(flat):
        columns[:, :, image] = values.take(positions[:, image], axis=1)
    if not is_inside.all():
        columns *= is_inside
    return columns.reshape(layer.groups, layer.fan_in, -1)


def _input_positions(
    layer: Layer, size: tuple[int, ...], outputs: Ids
) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """(flat input position of each kernel tap [taps, N, R], whether it is inside the image).

    Positions are computed one by one: only a few per image are needed, and a padded copy of the
    activation would cost more.
    """
    output_width = _output_sides(layer, size)[1]
    paddings = _padding(layer, size)
    coordinates: list[Ids] = []
    for axis, position in enumerate((outputs // output_width, outputs % output_width)):
        taps = np.arange(layer.kernel[axis]) * layer.dilations[axis] - paddings[axis][0]
        coordinates.append(taps[:, None, None] + position * layer.strides[axis])
    row = coordinates[0][:, None]
    column = coordinates[1][None]
    is_inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    positions = np.where(is_inside, row * size[1] + column, 0)
    return positions.reshape(-1, *outputs.shape), is_inside.reshape(-1, *outputs.shape)


def output_positions(layer: Layer, size: tuple[int, ...]) -> int:
    """Number of output positions for an activation of spatial `size`; 1 for a Gemm."""
    return int(np.prod(_output_sides(layer, size))) if size else 1


def _output_sides(layer: Layer, size: tuple[int, ...]) -> list[int]:
    """Height and width of the output."""
    sides: list[int] = []
    for axis, (before, after) in enumerate(_padding(layer, size)):
        span = (layer.kernel[axis] - 1) * layer.dilations[axis] + 1
        padded = size[axis] + before + after
        sides.append((padded - span) // layer.strides[axis] + 1)
    return sides


def _padding(layer: Layer, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis. Source: ONNX operator Conv, attribute auto_pad."""
    if layer.auto_pad == "VALID":
        return [(0, 0), (0, 0)]
    if layer.auto_pad == "NOTSET":
        return list(zip(layer.pads[:2], layer.pads[2:], strict=True))
    paddings: list[tuple[int, int]] = []
    for axis, side in enumerate(size):
        stride = layer.strides[axis]
        windows = -(-side // stride)
        span = (layer.kernel[axis] - 1) * layer.dilations[axis] + 1
        total = max(0, (windows - 1) * stride + span - side)
        smaller, larger = total // 2, total - total // 2
        # SAME_UPPER puts the odd pixel after, SAME_LOWER before.
        is_upper = layer.auto_pad == "SAME_UPPER"
        paddings.append((smaller, larger) if is_upper else (larger, smaller))
    return paddings
