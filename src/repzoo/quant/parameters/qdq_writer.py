"""The only writer of QuantizeLinear and DequantizeLinear.

Format: ONNX QDQ. Each quantized activation t becomes t -> Q -> DQ -> readers; each weight is stored as int8 behind a DQ, its
bias as int32 behind a DQ with scale (input scale x weight scale). Per-channel axes need opset 13; older graphs are converted.
Activations of 16 bits are int16, which ONNX has from opset 21 on: a model that has one is converted to it.
Source: ONNX operators QuantizeLinear-13 and -21, DequantizeLinear-13 and -21; ONNX Runtime, "Quantize ONNX models" (QDQ).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from repzoo.errors import InputError
from repzoo.quant.network.placement import WEIGHTED, Placement
from repzoo.quant.parameters import ranges
from repzoo.quant.parameters.ranges import ActivationParameters, QuantizedWeight

Numbers = npt.NDArray[Any]
MIN_OPSET, MIN_IR = 13, 7  # onnx 1.8 brought both
OPSET_16, IR_16 = 21, 10  # onnx 1.16 brought both: Q/DQ of int16
INT32_ROOM = float(2**30)  # a bias keeps one bit free for the accumulator


@dataclass
class _Writer:
    graph: onnx.GraphProto
    weights: dict[str, onnx.TensorProto]
    activations: Mapping[str, ActivationParameters]
    per_channel: bool
    taken: set[str]
    rounded: Mapping[str, QuantizedWeight]
    signed: bool
    added: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def fresh(self, name: str) -> str:
        """`name`, or with a number behind it where the graph has such a name already."""
        numbered = (f"{name}_{number}" for number in itertools.count())
        made = next(one for one in itertools.chain([name], numbered) if one not in self.taken)
        self.taken.add(made)
        return made

    def add(self, name: str, values: Numbers) -> str:
        """Store a constant; its name."""
        name = self.fresh(name)
        self.added[name] = numpy_helper.from_array(values, name)
        self.graph.initializer.append(self.added[name])
        return name

    def dequantized(
        self, name: str, values: Numbers, scale: Numbers, axis: int
    ) -> tuple[str, onnx.NodeProto]:
        """Constants for a quantized `name` and the DequantizeLinear that restores it."""
        scalar = scale.size == 1 and not self.per_channel
        shaped = scale.astype(np.float32).reshape(()) if scalar else scale.astype(np.float32)
        zeros = np.zeros(shaped.shape, values.dtype)
        inputs = [
            self.add(f"{name}_quantized", values),
            self.add(f"{name}_scale", shaped),
            self.add(f"{name}_zero_point", zeros),
        ]
        restored = self.fresh(f"{name}_dequantized")
        node = helper.make_node(
            "DequantizeLinear", inputs, [restored], name=f"{restored}_DequantizeLinear"
        )
        if not scalar:
            node.attribute.append(helper.make_attribute("axis", axis))
        return restored, node


def upgrade_opset(model: onnx.ModelProto, version: int = MIN_OPSET) -> onnx.ModelProto:
    """`model` converted to opset `version` when it is older (onnx's own converter), else as it is."""
    current = next(
        (item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0
    )
    if current >= version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"INT8 needs opset {version}; this graph has {current} and cannot be converted: {why}"
        ) from None


def prepare_for_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` as the quantizer takes it: opset 13 or newer, every constant an initializer and no initializer an input. Itself, not a
    copy, where it is so already: the weights of a large one are then held once.

    Exporters of old wrote weights as Constant nodes or, before IR 4, listed them among the inputs.
    """
    newer = upgrade_opset(model)
    if (
        newer.ir_version >= MIN_IR
        and not any(map(_is_value, newer.graph.node))
        and len(newer.graph.input) == 1
    ):
        return newer
    made = onnx.ModelProto()
    made.CopyFrom(newer)
    made.ir_version = max(made.ir_version, MIN_IR)
    graph = made.graph
    for node in list(filter(_is_value, graph.node)):
        graph.initializer.append(
            numpy_helper.from_array(numpy_helper.to_array(node.attribute[0].t), node.output[0])
        )
        graph.node.remove(node)
    stored = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in stored]
    del graph.input[:]
    graph.input.extend(inputs)
    return made


def _is_value(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name == "value"


def write(
    model: onnx.ModelProto,
    placement: Placement,
    activations: Mapping[str, ActivationParameters],
    per_channel: bool,
    rounded: Mapping[str, QuantizedWeight] | None = None,
    signed: bool = False,
) -> onnx.ModelProto:
    """`model` (float, folded, `prepared`) with the Q/DQ pairs of `placement`; `activations` gives each tensor's parameters.

    rounded  int8 weights by layer (its output's name); those of other layers are rounded to nearest
    signed   activations are stored as int8, the same numbers moved by 128, and not as uint8
    """
    made, wide = onnx.ModelProto(), any(activations[name].bits == 16 for name in placement.tensors)
    made.CopyFrom(upgrade_opset(model, OPSET_16) if wide else model)
    made.ir_version = max(made.ir_version, IR_16 if wide else 0)
    constants = {item.name: item for item in made.graph.initializer}
    writer = _Writer(
        made.graph, constants, activations, per_channel, _names(made.graph), rounded or {}, signed
    )
    pairs = {name: _pair_nodes(writer, name) for name in placement.tensors}
    nodes: list[onnx.NodeProto] = list(pairs.get(made.graph.input[0].name, ()))
    for node in made.graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if node.op_type in WEIGHTED and node.output[0] in placement.nodes:
            nodes.extend(_quantized_weights(writer, copied))
        for index, value in enumerate(copied.input):
            if value in pairs:
                copied.input[index] = pairs[value][1].output[0]
        if (
            node.op_type in WEIGHTED
            and node.output[0] not in placement.nodes
            and node.input[0] in pairs
        ):
            nodes.extend(_kept_float(writer, copied, pairs[node.input[0]]))
        nodes.append(copied)
        nodes.extend(pair for value in node.output for pair in pairs.get(value, ()))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    _drop_unread_constants(made.graph)
    del made.graph.value_info[:]
    return made


def _pair_nodes(writer: _Writer, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    parameters = writer.activations[name]
    scale = writer.add(f"{name}_scale", np.array(parameters.scale, np.float32))
    signed = (
        np.array(parameters.zero_point - 128, np.int8)
        if writer.signed
        else np.array(parameters.zero_point, np.uint8)
    )
    zero = writer.add(
        f"{name}_zero_point",
        np.array(parameters.zero_point, np.int16) if parameters.bits == 16 else signed,
    )
    stored, restored = writer.fresh(f"{name}_quantized"), writer.fresh(f"{name}_dequantized")
    quantize = helper.make_node(
        "QuantizeLinear", [name, scale, zero], [stored], name=f"{stored}_QuantizeLinear"
    )
    restore = helper.make_node(
        "DequantizeLinear", [stored, scale, zero], [restored], name=f"{restored}_DequantizeLinear"
    )
    return quantize, restore


def _kept_float(
    writer: _Writer, node: onnx.NodeProto, pair: tuple[onnx.NodeProto, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """A DequantizeLinear of its own for a layer in float, with the same scale once for each channel.

    ONNX Runtime takes a layer behind a DequantizeLinear of one scale for one whose weights someone forgot to quantize, and rounds
    them to 8 bits, with one scale for the whole tensor (WeightBiasQuantization, on by default): on EfficientNet-Lite0 with its
    depthwise convolutions left in float that costs 15 dB. It does not do so behind a scale for each channel.
    """
    weight = writer.weights.get(node.input[1])
    groups = next((item.i for item in node.attribute if item.name == "group"), 1)
    turned = node.op_type == "Gemm" and not any(
        item.name == "transB" and item.i for item in node.attribute
    )
    channels = (weight.dims[0] if turned else weight.dims[1] * groups) if weight is not None else 1
    if channels == 1:
        return []
    scale, zero = (numpy_helper.to_array(writer.added[name]) for name in pair[1].input[1:3])
    name = f"{pair[0].input[0]}:{node.output[0]}"
    ends = [
        writer.add(f"{name}_{what}", np.full(channels, value))
        for what, value in (("scale", scale), ("zero_point", zero))
    ]
    restored = writer.fresh(f"{name}_dequantized")
    node.input[0] = restored
    return [
        helper.make_node(
            "DequantizeLinear",
            [pair[0].output[0], *ends],
            [restored],
            name=f"{restored}_DequantizeLinear",
            axis=1,
        )
    ]


def _names(graph: onnx.GraphProto) -> set[str]:
    tensors = {item.name for item in graph.input} | {item.name for item in graph.initializer}
    return tensors.union(*(node.output for node in graph.node))


def _quantized_weights(writer: _Writer, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rewire weight and bias of `node` to quantized constants; the DQ nodes that this takes."""
    if any(item.name in ("alpha", "beta") and item.f != 1.0 for item in node.attribute):
        raise InputError(
            f"{node.name or node.output[0]}: a Gemm with alpha or beta other than 1 is not quantized; fold the model first"
        )
    name, axis, bias = node.output[0], _output_axis(node), _bias(writer.weights, node)
    made = writer.rounded.get(name) or _nearest(
        writer.weights, node, writer.activations, writer.per_channel
    )
    weight_name, weight_node = writer.dequantized(
        f"{name}:{node.input[1]}", made.values, made.scale, axis
    )
    nodes = [weight_node]
    node.input[1] = weight_name
    if bias is not None:
        incoming = np.float32(writer.activations[node.input[0]].scale)
        scale = (incoming * made.scale.astype(np.float32)).astype(np.float64)
        stored = np.round(bias / scale).astype(np.int32)
        node.input[2], bias_node = writer.dequantized(f"{name}:{node.input[2]}", stored, scale, 0)
        nodes.append(bias_node)
    return nodes


def round_weights(
    model: onnx.ModelProto,
    nodes: Collection[str],
    activations: Mapping[str, ActivationParameters],
    per_channel: bool,
) -> dict[str, QuantizedWeight]:
    """The weights of those of `nodes` (by output) that have any, rounded as `write` rounds what it is not given.

    For who writes many placements of one model, and would else round the same weights for each.
    """
    weights = {item.name: item for item in model.graph.initializer}
    layers = [
        node for node in model.graph.node if node.op_type in WEIGHTED and node.output[0] in nodes
    ]
    return {node.output[0]: _nearest(weights, node, activations, per_channel) for node in layers}


def _nearest(
    weights: Mapping[str, onnx.TensorProto],
    node: onnx.NodeProto,
    activations: Mapping[str, ActivationParameters],
    per_channel: bool,
) -> QuantizedWeight:
    """The weights of `node` rounded to nearest, with scales that leave its bias room in int32."""
    bias, incoming = _bias(weights, node), float(np.float32(activations[node.input[0]].scale))
    least = np.abs(bias) / (incoming * INT32_ROOM) if bias is not None else np.zeros(1)
    values = numpy_helper.to_array(weights[node.input[1]])
    return ranges.quantize_weight(
        values,
        _output_axis(node) if per_channel else None,
        least if per_channel else float(np.max(least)),
    )


def _output_axis(node: onnx.NodeProto) -> int:
    """Of the weights, the axis of the outputs: 1 for a Gemm that does not transpose them, else 0."""
    return (
        1
        if node.op_type == "Gemm"
        and not any(item.name == "transB" and item.i for item in node.attribute)
        else 0
    )


def _bias(
    weights: Mapping[str, onnx.TensorProto], node: onnx.NodeProto
) -> npt.NDArray[np.float64] | None:
    """float64 [channels], or None where `node` has no bias; a Gemm's may be stored as one number or as a row."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    values = numpy_helper.to_array(weights[node.input[2]]).astype(np.float64)
    channels = weights[node.input[1]].dims[_output_axis(node)]
    if values.size not in (1, channels) or values.shape[-1:] not in ((), (1,), (channels,)):
        raise InputError(
            f"{node.name or node.output[0]}: a bias of shape {values.shape} differs from row to row, which INT8 has not"
        )
    return np.broadcast_to(values.reshape(-1), (channels,))


def _drop_unread_constants(graph: onnx.GraphProto) -> None:
    read = {value for node in graph.node for value in node.input}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
