"""From statistics to quantization parameters: ranges, integer weights and corrected biases.

Bias correction: quantization changes the mean output of a layer by

    (W' - W) E[x] + W' (E[x'] - E[x])

where W' are the quantized weights and x' is x after clipping and rounding. The bias is reduced by
that much. Source: M. Nagel et al., arXiv:1906.04721, section 4.2, with the expectations measured
on calibration images instead of derived from batch normalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.data.batches import map_in_order
from repzoo.graph.tools.onnx_edit import add_initializer
from repzoo.protobuf_stream import clone
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network.layers import (
    Layer,
    bias_vector,
    find_layers,
    initializer_arrays,
    weight_rows,
)
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import QuantScheme
from repzoo.quant.parameters import qdq_writer
from repzoo.quant.parameters.activation_ranges import ChosenRanges, choose_ranges
from repzoo.quant.parameters.gelu_polynomial import with_gelu_polynomials
from repzoo.quant.parameters.gemm_convolution import with_gemm_convolutions
from repzoo.quant.parameters.gptq import round_rows
from repzoo.quant.parameters.noise import clipping_shift, rounding_shift
from repzoo.quant.parameters.scales import (
    ActivationParameters,
    QuantizedWeight,
    int16_parameters,
    parameters_of,
)
from repzoo.quant.parameters.weight_scales import weight_scales

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Corrections:
    """Which corrections a stage applies.

    Attributes:
        gptq: round weights by GPTQ instead of to nearest.
        bias: correct biases.
        range_method: how activation ranges are chosen, see `ranges.choose_range`.
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
        moved: of activations without a pair: the one whose pair serves them (Placement.moved).
    """

    model: onnx.ModelProto
    activations: Mapping[str, ActivationParameters]
    weights: Mapping[str, QuantizedWeight]
    ranges: ChosenRanges = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)


def compute_parameters(
    model: onnx.ModelProto,
    placement: Placement,
    statistics: Statistics,
    scheme: QuantScheme,
    corrections: Corrections,
    chosen: ChosenRanges | None = None,
    rounded: RoundedWeights | None = None,
) -> QuantizationPlan:
    """Quantization parameters for `placement` of the float `model`, in the format of `scheme`.

    Args:
        model: float, as `prepare_for_qdq` returns it.
        placement: what to quantize.
        statistics: of `model`.
        scheme: number formats of the target.
        corrections: which corrections to apply.
        chosen: the result of `choose_ranges`, if it is known already.
        rounded: weights that were rounded before for the same float model with the same
            corrections, by layer. Those that are rounded now are added.
    """
    if chosen is None:
        chosen = choose_ranges(
            model, placement, statistics, scheme, corrections.range_method
        )
    activations = activation_parameters(placement, scheme, chosen)
    values = initializer_arrays(model)
    rounded = {} if rounded is None else rounded
    quantizer = _LayerQuantizer(values, statistics, scheme, corrections, rounded)
    layers = find_layers(model)
    placed = [layer for name, layer in layers.items() if name in placement.nodes]

    def quantize(layer: Layer) -> tuple[QuantizedWeight, Float]:
        return quantizer.quantize(layer, activations[layer.source])

    weights: dict[str, QuantizedWeight] = {}
    biases: dict[str, Float] = {}
    for layer, (weight, bias) in zip(
        placed, map_in_order(quantize, placed), strict=True
    ):
        weights[layer.name] = weight
        # an uncorrected bias stays the initializer that it is
        if corrections.bias:
            biases[layer.name] = bias
    return QuantizationPlan(
        model=replace_biases(model, layers, biases) if biases else model,
        activations=activations,
        weights=weights,
        ranges=chosen,
        moved=dict(placement.moved),
    )


def activation_parameters(
    placement: Placement, scheme: QuantScheme, chosen: ChosenRanges
) -> dict[str, ActivationParameters]:
    """Scale and zero point of each activation, from its range."""
    parameters: dict[str, ActivationParameters] = {}
    for name, item in chosen.items():
        low, high = item.bounds
        if name in placement.int16_tensors:
            parameters[name] = int16_parameters(low, high)
        else:
            parameters[name] = parameters_of(low, high, scheme)
    return parameters


@dataclass(frozen=True)
class RoundedWeight:
    """Integers [G, O/G, K] of a layer's weights, and the scale [G, O/G, 1] of these."""

    scale: Float
    integers: npt.NDArray[np.int8]


RoundedWeights = dict[str, RoundedWeight]


@dataclass(frozen=True)
class _LayerQuantizer:
    """Quantizes layers, of which several may be under way at once.

    Attributes:
        values: initializers of the float model.
        statistics: of the float model.
        scheme: number formats of the target.
        corrections: which corrections to apply.
        rounded: see `compute_parameters`.
    """

    values: Mapping[str, npt.NDArray[Any]]
    statistics: Statistics
    scheme: QuantScheme
    corrections: Corrections
    rounded: RoundedWeights

    def quantize(
        self, layer: Layer, source: ActivationParameters
    ) -> tuple[QuantizedWeight, Float]:
        """(integer weights, bias [O]) of a layer that reads an activation with these parameters."""
        rows = weight_rows(layer, self.values)
        bias = bias_vector(layer, self.values)
        moments = self.statistics.moments[layer.name]
        # the bias has scale source.scale * scale, and must fit into int32
        min_scale = np.abs(bias) / (source.scale * qdq_writer.MAX_BIAS_CODE)
        scale = weight_scales(layer, rows, self.scheme, min_scale, moments)
        integers = self._round(layer.name, rows, scale)
        weight = pack_weights(layer, integers, scale, self.scheme)
        if self.corrections.bias:
            shift = self._input_shift(layer, source)
            quantized_rows = integers * scale
            bias = bias + bias_correction(rows, quantized_rows, moments.mean, shift)
        return weight, bias

    def _round(self, name: str, rows: Float, scale: Float) -> Float:
        """Integers for `rows`. GPTQ takes long, so what has the same scale is not rounded anew."""
        known = self.rounded.get(name)
        if known is not None and np.array_equal(known.scale, scale):
            return known.integers.astype(np.float64)
        moments = self.statistics.moments[name]
        limit = self.scheme.weight_max
        integers = round_rows(rows, moments, scale, limit, self.corrections.gptq)
        self.rounded[name] = RoundedWeight(scale, integers.astype(np.int8))
        return integers

    def _input_shift(self, layer: Layer, source: ActivationParameters) -> Float:
        """E[x'] - E[x] of the layer's columns, [G, K], by clipping and rounding its input."""
        histogram = self.statistics.histograms[layer.source]
        clipping = clipping_shift(histogram, *source.bounds)
        rounding = rounding_shift(histogram, source)
        return np.asarray(layer.per_column(clipping + rounding))


def write_qdq(
    plan: QuantizationPlan,
    placement: Placement,
    scheme: QuantScheme,
) -> onnx.ModelProto:
    """The quantized model in ONNX QDQ format."""
    model = qdq_writer.insert_qdq(
        plan.model,
        placement,
        plan.activations,
        scheme.per_channel,
        plan.weights,
    )
    return in_form(model, scheme)


def in_form(model: onnx.ModelProto, scheme: QuantScheme) -> onnx.ModelProto:
    """The QDQ `model` with functions and products spelled as `scheme` says."""
    if scheme.gelu_polynomial:
        model = with_gelu_polynomials(model)
    if scheme.gemm_convolution:
        model = with_gemm_convolutions(model)
    return model


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
        old_name = layers[name].bias or f"{name}:bias"
        new_name = f"{old_name}:corrected:{name}"
        bias = biases[name].astype(np.float32)
        del node.input[2:]
        node.input.append(add_initializer(result.graph, new_name, bias, names))
    return result
