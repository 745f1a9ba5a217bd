"""Layers with weights (Conv and Gemm) as matrices: what every correction works on.

For each group g of a layer,

    y[g] = rows[g] @ column[g] + bias[g]

`rows` [G, O/G, K] are the weights. A column [G, K] is what one output position reads (im2col.py).
Shapes use these letters, here and in all of quant/:

    N  images                    O  output channels of all groups
    G  groups                    K  weights per output: C/G times the kernel's size
    C  input channels            R  output positions per image
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
WEIGHTED = frozenset({"Conv", "Gemm"})  # operators that can be layers


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
        if self.transposed:
            return self.shape[1]
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        """Number of input channels C of all groups."""
        if self.transposed:
            return self.shape[0]
        return self.shape[1] * self.groups

    @property
    def taps(self) -> int:
        """Number of kernel positions; 1 for a Gemm."""
        return math.prod(self.kernel)

    @property
    def fan_in(self) -> int:
        """K: number of weights per output."""
        inputs_per_group = self.in_channels // self.groups
        return inputs_per_group * self.taps

    def span(self, axis: int) -> int:
        """Pixels from the first to the last that the kernel reads along a spatial axis."""
        gaps = self.kernel[axis] - 1
        return gaps * self.dilations[axis] + 1

    def to_rows(self, values: Array) -> Array:
        """Weights of the initializer's shape as [G, O/G, K]."""
        by_output = values.T if self.transposed else values
        outputs_per_group = self.out_channels // self.groups
        return by_output.reshape(self.groups, outputs_per_group, self.fan_in)

    def from_rows(self, rows: Array) -> Array:
        """Rows [G, O/G, K] in the initializer's shape: the inverse of `to_rows`."""
        by_output = rows.reshape(self.out_channels, -1)
        if self.transposed:
            # files hold the rows of the array one after another
            return np.ascontiguousarray(by_output.T)
        return by_output.reshape(self.shape)

    def per_column(self, values: Array) -> Array:
        """One number per input channel ([C] or [G, C/G]) -> one per column entry [G, K]."""
        by_group = values.reshape(self.groups, -1)
        return np.repeat(by_group, self.taps, axis=1)

    def per_channel(self, values: Array) -> Array:
        """One number per column entry [G, K] -> their sums per input channel [C]."""
        by_channel = values.reshape(self.in_channels, -1)
        return np.asarray(by_channel.sum(axis=1))

    def taps_of(self, rows: Array) -> Array:
        """Rows [G, O/G, K] by input channel and kernel position: [G, O/G, C/G, taps]."""
        groups, outputs, _ = rows.shape
        return rows.reshape(groups, outputs, -1, self.taps)


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
        if node.op_type in WEIGHTED:
            layer = _layer(node, shapes)
            if layer is not None:
                layers[layer.name] = layer
    return layers


def _layer(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Layer | None:
    """`node` as a layer; None if its weights are not constant or it computes something else."""
    source, weight, *others = node.input
    bias = others[0] if others else ""
    parameters = {weight, bias} - {""}
    if source in shapes or not parameters <= shapes.keys():
        return None
    if is_scaled_product(node):
        return None
    layer = Layer(node.output[0], node.op_type, source, weight, bias, shapes[weight])
    attributes: dict[str, Any] = {}
    for item in node.attribute:
        attributes[item.name] = onnx.helper.get_attribute_value(item)
    if node.op_type == "Gemm":
        return _with_gemm_attributes(layer, attributes)
    return _with_conv_attributes(layer, attributes)


def is_scaled_product(node: onnx.NodeProto) -> bool:
    """Whether it is a Gemm with alpha or beta other than 1."""
    factors = [item.f for item in node.attribute if item.name in ("alpha", "beta")]
    return any(factor != 1.0 for factor in factors)


def _with_gemm_attributes(layer: Layer, attributes: Mapping[str, Any]) -> Layer | None:
    """`layer` with the attributes of its Gemm; None for one that is more than a linear layer."""
    if attributes.get("transA", 0):
        return None
    is_transposed = not attributes.get("transB", 0)
    return replace(layer, transposed=is_transposed)


def _with_conv_attributes(layer: Layer, attributes: Mapping[str, Any]) -> Layer | None:
    """`layer` with the attributes of its Conv; None for one that is not two-dimensional."""
    # im2col.py knows kernels with two axes
    if len(layer.shape) != 4:
        return None
    return replace(
        layer,
        groups=attributes.get("group", 1),
        kernel=layer.shape[2:],
        strides=tuple(attributes.get("strides", layer.strides)),
        dilations=tuple(attributes.get("dilations", layer.dilations)),
        pads=tuple(attributes.get("pads", layer.pads)),
        # onnx has bytes for strings
        auto_pad=attributes.get("auto_pad", b"NOTSET").decode(),
    )


def initializer_arrays(model: onnx.ModelProto) -> dict[str, Array]:
    """Values of all initializers by name."""
    arrays: dict[str, Array] = {}
    for item in model.graph.initializer:
        arrays[item.name] = numpy_helper.to_array(item)
    return arrays


def weight_rows(layer: Layer, values: Mapping[str, Array]) -> Float:
    """The layer's weights as float64 rows [G, O/G, K]. `values` are the initializers."""
    # corrections are computed in float64, and rounded once when they are written
    rows = layer.to_rows(values[layer.weight])
    return np.asarray(rows, np.float64)


def bias_vector(layer: Layer, values: Mapping[str, Array]) -> Float:
    """The layer's bias as float64 [O]; zeros if it has none. `values` are the initializers."""
    bias = np.zeros(1)
    if layer.bias:
        stored = values[layer.bias].reshape(-1)  # a Gemm may store a row or a scalar
        bias = stored.astype(np.float64)
    # a copy: what np.broadcast_to returns is read-only
    return np.array(np.broadcast_to(bias, (layer.out_channels,)))
