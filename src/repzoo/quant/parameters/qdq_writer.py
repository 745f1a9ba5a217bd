"""Writes quantized graphs in ONNX QDQ format.

Each quantized activation t becomes t -> QuantizeLinear -> DequantizeLinear -> its consumers. Each
weight is stored as int8 behind a DequantizeLinear, and its bias as int32 behind one whose scale is
the product of the input's and the weight's scale. Per-channel scales need opset 13 and int16
activations opset 21; older models are converted.

Source: ONNX operators QuantizeLinear-13 and -21, DequantizeLinear-13 and -21; ONNX Runtime,
"Quantize ONNX models" (QDQ).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from repzoo.errors import InputError, first_line
from repzoo.graph.tools.onnx_edit import (
    add_initializer,
    remove_unused_initializers,
    tensor_names,
    unused_name,
)
from repzoo.onnx_file import opset_of
from repzoo.protobuf_stream import clone
from repzoo.quant.network.graph_view import hard_sigmoid_constants, integer_attribute
from repzoo.quant.network.layers import WEIGHTED, is_scaled_product
from repzoo.quant.network.placement import Placement
from repzoo.quant.parameters.scales import (
    INT8_MAX,
    ActivationParameters,
    QuantizedWeight,
    quantize_weight,
)

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

MIN_OPSET = 13  # the first with per-channel scales
MIN_IR = 7  # of the same release, onnx 1.8
INT16_OPSET = 21  # the first with int16 QuantizeLinear
INT16_IR = 10  # of the same release, onnx 1.16
# Biases stay below half the range of int32: the accumulator needs the other half.
MAX_BIAS_CODE = float(2**30)


def upgrade_opset(model: onnx.ModelProto, version: int = MIN_OPSET) -> onnx.ModelProto:
    """`model` converted to opset `version` by onnx's converter; itself if it is no older.

    Raises:
        InputError: onnx cannot convert it.
    """
    current = opset_of(model)
    if current >= version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:
        raise InputError(
            f"this needs opset {version}; the graph has opset {current}, and onnx cannot convert "
            f"it ({first_line(error)}); export the model again with opset {version} or newer"
        ) from None


def prepare_for_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in the form that the quantizer expects.

    That is opset 13 or newer, all constants as initializers, and no initializer listed among the
    inputs. Old exporters wrote weights as Constant nodes or, before IR 4, listed them as inputs.
    A model that is in this form already is returned as it is, not as a copy, to save memory.
    """
    upgraded = upgrade_opset(model)
    has_constants = any(_is_tensor_constant(node) for node in upgraded.graph.node)
    has_weights_as_inputs = len(upgraded.graph.input) > 1
    is_old = upgraded.ir_version < MIN_IR
    if not (is_old or has_constants or has_weights_as_inputs):
        return upgraded
    result = clone(upgraded)
    result.ir_version = max(result.ir_version, MIN_IR)
    _store_constants_as_initializers(result.graph)
    _unlist_initializers(result.graph)
    return result


def _is_tensor_constant(node: onnx.NodeProto) -> bool:
    if node.op_type != "Constant":
        return False
    return node.attribute[0].name == "value"


def _store_constants_as_initializers(graph: onnx.GraphProto) -> None:
    """Replace Constant nodes by initializers of the same name."""
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if not _is_tensor_constant(node):
            kept.append(node)
            continue
        values = numpy_helper.to_array(node.attribute[0].t)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    # in one go: removing nodes one by one takes time that grows with the square of their number
    del graph.node[:]
    graph.node.extend(kept)


def _unlist_initializers(graph: onnx.GraphProto) -> None:
    """Take initializers off the list of inputs."""
    initializers = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in initializers]
    del graph.input[:]
    graph.input.extend(inputs)


def insert_qdq(
    model: onnx.ModelProto,
    placement: Placement,
    activations: Mapping[str, ActivationParameters],
    per_channel: bool,
    weights: Mapping[str, QuantizedWeight] | None = None,
) -> onnx.ModelProto:
    """`model` with the QuantizeLinear and DequantizeLinear nodes of `placement`.

    Args:
        model: float and folded, as `prepare_for_qdq` returns it.
        placement: which layers and activations to quantize.
        activations: scale and zero point of each activation.
        per_channel: one scale for each output channel of a weight, or one in all.
        weights: integer weights by layer; those of other layers are rounded to nearest.
    """
    bits = {activations[name].bits for name in placement.tensors}
    result = _int16_copy(model) if 16 in bits else clone(model)
    graph = result.graph
    writer = _Writer(
        graph,
        initializers={item.name: item for item in graph.initializer},
        activations=activations,
        per_channel=per_channel,
        names=tensor_names(graph),
        weights=weights or {},
    )
    # all pairs before any weight: names of constants depend on the order in which they are added
    pairs = {name: writer.qdq_pair(name) for name in placement.tensors}
    nodes: list[onnx.NodeProto] = []
    nodes.extend(pairs.get(graph.input[0].name, ()))
    for node in graph.node:
        nodes.extend(_quantized_node(writer, node, placement, pairs))
        for name in node.output:
            nodes.extend(pairs.get(name, ()))
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unused_initializers(graph)
    del graph.value_info[:]  # the types of quantized tensors have changed
    return result


def _int16_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose opset has int16 activations."""
    copy = clone(upgrade_opset(model, INT16_OPSET))
    copy.ir_version = max(copy.ir_version, INT16_IR)
    return copy


_Pair = tuple[onnx.NodeProto, onnx.NodeProto]  # QuantizeLinear, DequantizeLinear


def _quantized_node(
    writer: _Writer,
    node: onnx.NodeProto,
    placement: Placement,
    pairs: Mapping[str, _Pair],
) -> list[onnx.NodeProto]:
    """A copy of `node` that reads dequantized tensors, behind the nodes that it needs in front."""
    copy = clone(node)
    nodes: list[onnx.NodeProto] = []
    is_layer = node.op_type in WEIGHTED
    is_quantized = node.output[0] in placement.nodes
    if is_layer and is_quantized:
        nodes.extend(writer.quantize_weights(copy))
    for index, name in enumerate(copy.input):
        if name in pairs:
            _, dequantize = pairs[name]
            copy.input[index] = dequantize.output[0]
    source = node.input[0] if is_layer else ""
    if source in pairs and not is_quantized:
        nodes.extend(writer.separate_dequantize(copy, pairs[source]))
    if is_quantized and node.op_type == "HardSigmoid" and writer.clips(node, pairs):
        return writer.sum_for_hard_sigmoid(copy, pairs[node.input[0]])
    nodes.append(copy)
    return nodes


@dataclass
class _Writer:
    """Adds quantized constants and Q/DQ nodes to `graph`, under names that are not in use.

    Attributes:
        graph: gets the constants. Nodes are returned, since their place is the caller's choice.
        initializers: of the float model, by name.
        activations: scale and zero point of each activation.
        per_channel: one scale for each output channel of a weight, or one in all.
        names: all names in use.
        weights: integer weights by layer; those of other layers are rounded to nearest.
        added: the constants that were added, by name.
    """

    graph: onnx.GraphProto
    initializers: dict[str, onnx.TensorProto]
    activations: Mapping[str, ActivationParameters]
    per_channel: bool
    names: set[str]
    weights: Mapping[str, QuantizedWeight]
    added: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def fresh_name(self, name: str) -> str:
        """`name`, or `name` with a number appended if the graph uses it already."""
        name = unused_name(name, self.names)
        self.names.add(name)
        return name

    def add_initializer(self, name: str, values: Array) -> str:
        """Store `values` under `name` or a similar one, which is returned."""
        name = add_initializer(self.graph, name, values, self.names)
        self.added[name] = self.graph.initializer[-1]
        return name

    def qdq_pair(self, name: str) -> _Pair:
        """The QuantizeLinear and DequantizeLinear nodes behind the activation `name`."""
        parameters = self.activations[name]
        step = np.array(parameters.scale, np.float32)
        scale = self.add_initializer(f"{name}_scale", step)
        zero = self._zero_point(parameters)
        zero_point = self.add_initializer(f"{name}_zero_point", zero)
        quantized = self.fresh_name(f"{name}_quantized")
        dequantized = self.fresh_name(f"{name}_dequantized")
        quantize = _node("QuantizeLinear", [name, scale, zero_point], quantized)
        dequantize = _node(
            "DequantizeLinear", [quantized, scale, zero_point], dequantized
        )
        return quantize, dequantize

    def _zero_point(self, parameters: ActivationParameters) -> Array:
        """The zero point as a scalar of the activation's integer type."""
        if parameters.bits == 16:
            return np.array(parameters.zero_point, np.int16)
        if parameters.signed:
            return np.array(parameters.zero_point - 128, np.int8)
        return np.array(parameters.zero_point, np.uint8)

    def quantize_weights(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Make `node` read an int8 weight and an int32 bias; their DequantizeLinear nodes."""
        _require_unscaled(node)
        layer = node.output[0]
        bias = _bias_vector(self.initializers, node)
        weight = self.weights.get(layer)
        if weight is None:
            weight = _round_to_nearest(
                self.initializers, node, self.activations, self.per_channel
            )
        name = f"{layer}:{node.input[1]}"
        node.input[1], weight_node = self._dequantized_constant(
            name, weight.values, weight.scale, _output_axis(node)
        )
        if bias is None:
            return [weight_node]
        return [weight_node, self._quantize_bias(node, bias, weight)]

    def _quantize_bias(
        self,
        node: onnx.NodeProto,
        bias: Float,
        weight: QuantizedWeight,
    ) -> onnx.NodeProto:
        """Make `node` read its `bias` [O] as int32; the DequantizeLinear of it."""
        # rounded to float32 as runtimes compute it, then divided in float64
        input_scale = np.float32(self.activations[node.input[0]].scale)
        product = input_scale * weight.scale.astype(np.float32)
        scale = product.astype(np.float64)
        codes = np.round(bias / scale).astype(np.int32)
        name = f"{node.output[0]}:{node.input[2]}"
        node.input[2], dequantize = self._dequantized_constant(
            name, codes, scale, axis=0
        )
        return dequantize

    def _dequantized_constant(
        self,
        name: str,
        values: Array,
        scale: Array,
        axis: int,
    ) -> tuple[str, onnx.NodeProto]:
        """Store a quantized constant: (name of the dequantized tensor, its DequantizeLinear)."""
        scale = scale.astype(np.float32)
        per_tensor = scale.size == 1 and not self.per_channel
        if per_tensor:
            scale = scale.reshape(())
        zero = np.zeros(scale.shape, values.dtype)
        inputs = [
            self.add_initializer(f"{name}_quantized", values),
            self.add_initializer(f"{name}_scale", scale),
            self.add_initializer(f"{name}_zero_point", zero),
        ]
        output = self.fresh_name(f"{name}_dequantized")
        node = _node("DequantizeLinear", inputs, output)
        # the axis of a scalar scale would be an error
        if not per_tensor:
            node.attribute.append(helper.make_attribute("axis", axis))
        return output, node

    def separate_dequantize(
        self, node: onnx.NodeProto, pair: _Pair
    ) -> list[onnx.NodeProto]:
        """Give a float layer a DequantizeLinear of its own, with its scale repeated per channel.

        ONNX Runtime takes a float layer behind a per-tensor DequantizeLinear for one whose weights
        someone forgot to quantize, and rounds them to 8 bits with one scale for the whole tensor
        (WeightBiasQuantization, on by default). On EfficientNet-Lite0 with float depthwise
        convolutions that costs 15 dB. It leaves a layer behind a per-channel one alone.
        """
        channels = self._input_channels(node)
        if channels == 1:
            return []
        quantize, dequantize = pair
        source, quantized = quantize.input[0], quantize.output[0]
        name = f"{source}:{node.output[0]}"
        _, scale_name, zero_point_name = dequantize.input
        scale = numpy_helper.to_array(self.added[scale_name])
        zero_point = numpy_helper.to_array(self.added[zero_point_name])
        inputs = [
            quantized,
            self.add_initializer(f"{name}_scale", np.full(channels, scale)),
            self.add_initializer(f"{name}_zero_point", np.full(channels, zero_point)),
        ]
        output = self.fresh_name(f"{name}_dequantized")
        node.input[0] = output
        return [_node("DequantizeLinear", inputs, output, axis=1)]

    def clips(self, node: onnx.NodeProto, pairs: Mapping[str, _Pair]) -> bool:
        """Whether the pair behind `node` holds no value outside of 0..1, and one is before it."""
        output = node.output[0]
        if node.input[0] not in pairs or output not in pairs:
            return False
        parameters = self.activations[output]
        highest = parameters.scale * (2**parameters.bits - 1)
        is_unsigned = parameters.bits == 8 and parameters.zero_point == 0
        return is_unsigned and highest <= 1 + 1e-6

    def sum_for_hard_sigmoid(
        self, node: onnx.NodeProto, pair: _Pair
    ) -> list[onnx.NodeProto]:
        """alpha x + beta, whose pair clips it to 0..1 as HardSigmoid does.

        The factor alpha is in the scale by which the integers of x are read. ONNX Runtime adds
        them in one operator (QLinearAdd) and has none for HardSigmoid.
        """
        alpha, beta = hard_sigmoid_constants(node)
        output = node.output[0]
        _, dequantize = pair
        quantized, scale_name, zero_point_name = dequantize.input
        scale = numpy_helper.to_array(self.added[scale_name])
        zero_point = numpy_helper.to_array(self.added[zero_point_name])
        scaled = [
            quantized,
            self.add_initializer(
                f"{output}_scale", np.array(scale * alpha, np.float32)
            ),
            zero_point_name,
        ]
        constant = [
            self.add_initializer(f"{output}_one", np.ones_like(zero_point)),
            self.add_initializer(f"{output}_beta", np.array(beta, np.float32)),
            self.add_initializer(f"{output}_zero", np.zeros_like(zero_point)),
        ]
        product = self.fresh_name(f"{output}_scaled")
        summand = self.fresh_name(f"{output}_constant")
        return [
            _node("DequantizeLinear", scaled, product),
            _node("DequantizeLinear", constant, summand),
            helper.make_node("Add", [product, summand], [output], name=node.name),
        ]

    def _input_channels(self, node: onnx.NodeProto) -> int:
        """Input channels of a layer; 1 if its weight is computed."""
        weight = self.initializers.get(node.input[1])
        if weight is None:
            return 1
        if _output_axis(node) == 1:
            return weight.dims[0]
        return weight.dims[1] * integer_attribute(node, "group", 1)


def _node(
    kind: str, inputs: Sequence[str], output: str, **attributes: Any
) -> onnx.NodeProto:
    """A QuantizeLinear or DequantizeLinear, named after its output."""
    name = f"{output}_{kind}"
    return helper.make_node(kind, inputs, [output], name=name, **attributes)


def _require_unscaled(node: onnx.NodeProto) -> None:
    """Refuse a Gemm whose product is scaled: its bias would need a scale of its own."""
    if is_scaled_product(node):
        raise InputError(
            f"{node.name or node.output[0]}: a Gemm with alpha or beta other than 1 cannot be "
            "quantized; fold the model first"
        )


def round_weights(
    model: onnx.ModelProto,
    nodes: Collection[str],
    activations: Mapping[str, ActivationParameters],
    per_channel: bool,
    limit: int = INT8_MAX,
) -> dict[str, QuantizedWeight]:
    """The weights of the layers among `nodes`, rounded to nearest as `insert_qdq` does.

    For callers that write many placements of one model: each weight is rounded only once.
    `limit` is the largest magnitude of an integer.
    """
    initializers = {item.name: item for item in model.graph.initializer}
    weights: dict[str, QuantizedWeight] = {}
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type in WEIGHTED and name in nodes:
            weights[name] = _round_to_nearest(
                initializers, node, activations, per_channel, limit
            )
    return weights


def _round_to_nearest(
    initializers: Mapping[str, onnx.TensorProto],
    node: onnx.NodeProto,
    activations: Mapping[str, ActivationParameters],
    per_channel: bool,
    limit: int = INT8_MAX,
) -> QuantizedWeight:
    """The weight of `node` with the smallest scales for which its bias fits into int32."""
    values = numpy_helper.to_array(initializers[node.input[1]])
    bias = _bias_vector(initializers, node)
    min_scale = np.zeros(1)
    if bias is not None:
        input_scale = float(np.float32(activations[node.input[0]].scale))
        min_scale = np.abs(bias) / (input_scale * MAX_BIAS_CODE)
    if per_channel:
        return quantize_weight(values, _output_axis(node), min_scale, limit)
    return quantize_weight(values, None, float(np.max(min_scale)), limit)


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of output channels in a layer's weight: 1 for a Gemm without transB, else 0."""
    if node.op_type != "Gemm" or integer_attribute(node, "transB", 0):
        return 0
    return 1


def _bias_vector(
    initializers: Mapping[str, onnx.TensorProto], node: onnx.NodeProto
) -> Float | None:
    """The bias of `node`, float64 [O], or None. A Gemm may store it as a scalar or as a row."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    values = numpy_helper.to_array(initializers[node.input[2]])
    weight = initializers[node.input[1]]
    channels = weight.dims[_output_axis(node)]
    # a Gemm's bias may broadcast as any shape; only one number per output channel can be int32
    if not _is_row(values.shape, channels):
        raise InputError(
            f"{node.name or node.output[0]}: its bias of shape {values.shape} differs from image "
            f"to image; INT8 needs one value for each of the {channels} output channels"
        )
    flat = values.astype(np.float64).reshape(-1)
    return np.broadcast_to(flat, (channels,))


def _is_row(shape: tuple[int, ...], channels: int) -> bool:
    """Whether a tensor of this shape holds one number, or one for each of `channels`."""
    last_axis = shape[-1:]
    if last_axis not in ((), (1,), (channels,)):
        return False
    return math.prod(shape) in (1, channels)
