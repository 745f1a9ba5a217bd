"""From statistics to quantization parameters: ranges, integer weights and corrected biases.

Bias correction: quantization changes the mean output of a layer by

    (W' - W) E[x] + W' (E[x'] - E[x])

where W' are the quantized weights and x' is x after clipping and rounding. The bias is reduced by
that much. Source: M. Nagel et al., arXiv:1906.04721, section 4.2, with the expectations measured
on calibration images instead of derived from batch normalization.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.graph.tools.onnx_edit import add_initializer
from repzoo.protobuf_stream import clone
from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.calibration.sensitivity import Sensitivity, activation_sensitivity
from repzoo.quant.calibration.statistics import Moments, Statistics
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import (
    Layer,
    bias_vector,
    find_layers,
    initializer_arrays,
    weight_rows,
)
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import DATA_MOVEMENT, QuantScheme
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.parameters.gptq import gptq_round, round_to_nearest, shared_scale
from repzoo.quant.parameters.noise import clipping_shift, rounding_shift
from repzoo.quant.parameters.ranges import align_to_pixel_values, choose_range
from repzoo.quant.parameters.scales import (
    ActivationParameters,
    QuantizedWeight,
    Range,
    int16_parameters,
    uint8_parameters,
    usable_scale,
)

Float = npt.NDArray[np.float64]

ChosenRanges = Mapping[str, tuple[str, Range]]  # (method, range) of each activation


@dataclass(frozen=True)
class Corrections:
    """Which corrections a stage applies.

    Attributes:
        gptq: round weights by GPTQ instead of to nearest.
        bias: correct biases.
        range_method: how activation ranges are chosen (see `ranges.choose_range`).
    """

    gptq: bool = True
    bias: bool = True
    range_method: str = "auto"


@dataclass(frozen=True)
class QuantizationPlan:
    """Everything that `write_qdq` needs.

    Attributes:
        model: the float model with corrected biases.
        activations: scale and zero point by activation.
        weights: integer weights by layer.
        ranges: the range that each activation's parameters were computed from.
        methods: how each of those ranges was chosen.
    """

    model: onnx.ModelProto
    activations: Mapping[str, ActivationParameters]
    weights: Mapping[str, QuantizedWeight]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)


def choose_ranges(
    model: onnx.ModelProto,
    placement: Placement,
    statistics: Statistics,
    scheme: QuantScheme,
    method: str,
) -> ChosenRanges:
    """A range for every activation of `placement`. int16 activations cover all observed values."""
    graph = GraphView(model)
    input_name = model.graph.input[0].name
    sensitivities = activation_sensitivity(graph, find_layers(model), statistics)
    chosen = {}
    for name in placement.tensors:
        histogram = statistics.histograms[name]
        tensor_method = "minmax" if name in placement.int16_tensors else method
        # noise that reaches no layer counts alike in all channels
        default = Sensitivity(np.ones(len(histogram.low)))
        sensitivity = sensitivities.get(name, default)
        chosen[name] = choose_range(
            histogram,
            sensitivity.cost,
            tensor_method,
            scheme.range_methods,
            scheme.activation_symmetric,
            sensitivity.function,
        )
        if name == input_name and tensor_method in ("auto", "mse"):
            chosen[name] = _align_input_range(
                histogram, sensitivity.cost, chosen[name], scheme
            )
    return _share_ranges(graph, placement, chosen)


def _align_input_range(
    histogram: Histogram,
    cost: Float,
    chosen: tuple[str, Range],
    scheme: QuantScheme,
) -> tuple[str, Range]:
    """`chosen`, aligned with the values of pixels where the scheme allows any range."""
    # a vendor tool that cannot search for ranges could not reproduce this one either
    if "mse" not in scheme.range_methods or scheme.activation_symmetric:
        return chosen
    method, bounds = chosen
    aligned = align_to_pixel_values(histogram, cost, bounds)
    return chosen if aligned == bounds else (f"{method}, aligned", aligned)


def _share_ranges(
    graph: GraphView,
    placement: Placement,
    chosen: dict[str, tuple[str, Range]],
) -> ChosenRanges:
    """`chosen` with one range on both sides of every operator that only moves data.

    Values on the steps of the first range are then on those of the second, and are not rounded a
    second time. A tensor that only a Concat reads takes the range of the Concat's output.
    """
    ranges = dict(chosen)
    concats = []
    movers = []
    for node in graph.nodes:
        if node.output[0] not in placement.nodes:
            continue
        if node.op_type == "Concat":
            concats.append(node)
        elif node.op_type in (*DATA_MOVEMENT, "MaxPool"):
            movers.append(node)
    # backward, so that a Concat that feeds another Concat passes on the range of the last one
    for node in reversed(concats):
        inputs = [name for name in node.input if graph.sole_consumer(name) is node]
        _copy_range(ranges, node.output[0], inputs)
    for node in movers:
        _copy_range(ranges, node.input[0], node.output)
    return ranges


def _copy_range(
    ranges: dict[str, tuple[str, Range]],
    source: str,
    targets: Iterable[str],
) -> None:
    """Give the range of `source` to those of `targets` that have one."""
    if source in ranges:
        ranges.update(dict.fromkeys(ranges.keys() & targets, ranges[source]))


def compute_parameters(
    model: onnx.ModelProto,
    placement: Placement,
    statistics: Statistics,
    scheme: QuantScheme,
    corrections: Corrections,
    chosen: ChosenRanges | None = None,
) -> QuantizationPlan:
    """Quantization parameters for `placement` of the float `model`, in the format of `scheme`.

    Args:
        model: float, as `prepare_for_qdq` returns it.
        placement: what to quantize.
        statistics: of `model`.
        scheme: number formats of the target.
        corrections: which corrections to apply.
        chosen: the result of `choose_ranges`, if it is known already.
    """
    if chosen is None:
        chosen = choose_ranges(
            model, placement, statistics, scheme, corrections.range_method
        )
    activations = _activation_parameters(placement, scheme, chosen)
    values = initializer_arrays(model)
    layers = find_layers(model)
    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, Float] = {}
    for name, layer in layers.items():
        if name in placement.nodes:
            source = activations[layer.source]
            weights[name], bias = _quantize_layer(
                layer, values, source, statistics, scheme, corrections
            )
            if bias is not None:
                biases[name] = bias
    return QuantizationPlan(
        model=replace_biases(model, layers, biases) if biases else model,
        activations=activations,
        weights=weights,
        ranges={name: bounds for name, (_, bounds) in chosen.items()},
        methods={name: method for name, (method, _) in chosen.items()},
    )


def _activation_parameters(
    placement: Placement, scheme: QuantScheme, chosen: ChosenRanges
) -> dict[str, ActivationParameters]:
    """Scale and zero point of each activation, from its range."""
    parameters: dict[str, ActivationParameters] = {}
    for name, (_, (low, high)) in chosen.items():
        if name in placement.int16_tensors:
            parameters[name] = int16_parameters(low, high)
        else:
            symmetric = scheme.activation_symmetric
            parameters[name] = uint8_parameters(low, high, symmetric)
    return parameters


def _quantize_layer(
    layer: Layer,
    values: Mapping[str, npt.NDArray[Any]],
    source: ActivationParameters,
    statistics: Statistics,
    scheme: QuantScheme,
    corrections: Corrections,
) -> tuple[QuantizedWeight, Float | None]:
    """(integer weights of a layer, its corrected bias [O] or None if it stays).

    `values` are the initializers, `source` the parameters of the activation that the layer reads.
    """
    rows = weight_rows(layer, values)
    bias = bias_vector(layer, values)
    moments = statistics.moments[layer.name]
    # the bias has scale source.scale * scale, and must fit into int32
    min_scale = np.abs(bias) / (source.scale * qdq_writer.MAX_BIAS_CODE)
    scale = weight_scales(layer, rows, scheme, min_scale, moments)
    integers = _round_weights(rows, moments, scale, scheme.weight_max, corrections.gptq)
    weight = pack_weights(layer, integers, scale, scheme)
    if not corrections.bias:
        return weight, None
    shift = _input_shift(layer, statistics.histograms[layer.source], source)
    correction = bias_correction(rows, integers * scale, moments.mean, shift)
    return weight, bias + correction


def write_qdq(
    plan: QuantizationPlan,
    placement: Placement,
    scheme: QuantScheme,
) -> onnx.ModelProto:
    """The quantized model in ONNX QDQ format."""
    return qdq_writer.insert_qdq(
        plan.model,
        placement,
        plan.activations,
        scheme.per_channel,
        plan.weights,
        signed=scheme.activation_type == "int8",
    )


def weight_scales(
    layer: Layer,
    rows: Float,
    scheme: QuantScheme,
    min_scale: Float,
    moments: Moments,
) -> Float:
    """Scales of a layer's weights, [G, O/G, 1].

    Per channel, they are the smallest that clip nothing. Per tensor, all are the shared scale of
    least output error. None is below `min_scale` [O], which the bias needs to fit into int32.
    """
    min_scale = min_scale.reshape(layer.groups, -1, 1)
    if scheme.per_channel:
        largest = np.abs(rows).max(2, keepdims=True)
        scale = np.maximum(largest / scheme.weight_max, min_scale)
    else:
        # the largest weight of a whole tensor is often an outlier, so the shared scale may clip it
        shared = shared_scale(rows, moments.grams, moments.blocks, scheme.weight_max)
        scale = np.full_like(min_scale, max(shared, min_scale.max()))
    return usable_scale(scale)


def _round_weights(
    rows: Float,
    moments: Moments,
    scale: Float,
    limit: int,
    gptq: bool,
) -> Float:
    """Integers [G, O, K] for the weights `rows`, by GPTQ or to nearest."""
    if not gptq:
        return round_to_nearest(rows, scale, limit)
    parts = []
    # a wide layer has its Gram matrix in blocks, which are rounded on their own
    for gram, (start, end) in zip(moments.grams, moments.blocks, strict=True):
        block = rows[:, :, start:end]
        parts.append(gptq_round(block, gram, scale, limit))
    return np.concatenate(parts, axis=2)


def pack_weights(
    layer: Layer,
    integers: Float,
    scale: Float,
    scheme: QuantScheme,
) -> QuantizedWeight:
    """`integers` [G, O/G, K] and `scale` [G, O/G, 1] in the shapes that a QDQ file has."""
    scales = scale.reshape(-1)
    if not scheme.per_channel:
        scales = scales[:1]
    return QuantizedWeight(scales, layer.from_rows(integers).astype(np.int8))


def _input_shift(
    layer: Layer,
    histogram: Histogram,
    parameters: ActivationParameters,
) -> Float:
    """E[x'] - E[x] of the layer's columns, [G, K], by clipping and rounding its input."""
    clipping = clipping_shift(histogram, *parameters.bounds)
    rounding = rounding_shift(histogram, parameters)
    return np.asarray(layer.per_column(clipping + rounding))


def bias_correction(
    rows: Float,
    quantized: Float,
    mean: Float,
    shift: Float,
) -> Float:
    """What to add to the bias, [O], so that the mean output stays.

    Args:
        rows: float weights [G, O/G, K].
        quantized: the weights as INT8 represents them, of the same shape.
        mean: E[x], [G, K].
        shift: E[x'] - E[x], [G, K].
    """
    # (W' - W) E[x] + W' (E[x'] - E[x]), see the module
    by_weights = np.einsum("gok,gk->go", quantized - rows, mean)
    by_input = np.einsum("gok,gk->go", quantized, shift)
    change = by_weights + by_input
    return np.asarray(-change.reshape(-1))


def replace_biases(
    model: onnx.ModelProto,
    layers: Mapping[str, Layer],
    biases: Mapping[str, Float],
) -> onnx.ModelProto:
    """A copy of `model` with new `biases` [O] for some `layers`, each an initializer of its own."""
    result = clone(model)
    names = {item.name for item in result.graph.initializer}
    for node in result.graph.node:
        name = node.output[0]
        if name not in biases:
            continue
        # a new name, since another layer may share the old initializer
        new_name = f"{layers[name].bias or name + ':bias'}:corrected:{name}"
        bias = biases[name].astype(np.float32)
        del node.input[2:]
        node.input.append(add_initializer(result.graph, new_name, bias, names))
    return result
