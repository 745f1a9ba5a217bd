"""From statistics to numbers: the range of every activation, the integers of every weight, the corrected biases.

Bias correction: quantizing changes what a layer adds up on average by (W' - W) E[x] + W' (E[x'] - E[x]), where x' is what clipping
and rounding leave of x; that much is taken from its bias. Source: M. Nagel et al., arXiv:1906.04721, section 4.2, with the expectations
measured on calibration images instead of derived from batch normalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.quant.calibration.observers import Histogram, Moments, Statistics
from repzoo.quant.calibration.sensitivity import Sensitivity, activation_sensitivity
from repzoo.quant.network import layers as layering
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import Layer
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import DATA_MOVEMENT, QuantScheme
from repzoo.quant.parameters import gptq as rounding
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import ranges
from repzoo.quant.parameters.ranges import ActivationParameters, QuantizedWeight, Range

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Corrections:
    """Which corrections a recipe applies, and how an activation's range is chosen (see ranges.chosen)."""

    gptq: bool = True
    bias: bool = True
    range_method: str = "auto"


@dataclass(frozen=True)
class QuantizationPlan:
    """What qdq.write needs: see there; `ranges` and `methods` say how each activation's parameters came about."""

    model: onnx.ModelProto
    activations: Mapping[str, ActivationParameters]
    weights: Mapping[str, QuantizedWeight]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)


ChosenRanges = Mapping[
    str, tuple[str, Range]
]  # of each activation: how its range was chosen, and the range


def choose_ranges(
    model: onnx.ModelProto, placement: Placement, seen: Statistics, scheme: QuantScheme, method: str
) -> ChosenRanges:
    """The ranges of the activations of `placement`; those of 16 bits cover all that was seen."""
    wiring = GraphView(model)
    wanted, found = activation_sensitivity(wiring, layering.find_layers(model), seen), {}
    for name in placement.tensors:
        histogram, how = (
            seen.histograms[name],
            "minmax" if name in placement.int16_tensors else method,
        )
        worth = wanted.get(name, Sensitivity(np.ones(len(histogram.low))))
        made = ranges.choose_range(
            histogram,
            worth.cost,
            how,
            scheme.range_methods,
            scheme.activation_symmetric,
            worth.function,
        )
        images = name == model.graph.input[0].name and how in ("auto", "mse")
        found[name] = _aligned(histogram, worth.cost, made, scheme) if images else made
    return _shared(wiring, placement, found)


def _aligned(
    seen: Histogram, cost: Float, made: tuple[str, Range], scheme: QuantScheme
) -> tuple[str, Range]:
    """`made` for the model's input, on whose steps bytes of images shall lie, where the target takes any range with any zero."""
    if "mse" not in scheme.range_methods or scheme.activation_symmetric:
        return made
    span = ranges.align_to_pixel_values(seen, cost, made[1])
    return made if span == made[1] else (f"{made[0]}, aligned", span)


def _shared(
    wiring: GraphView, placement: Placement, found: dict[str, tuple[str, Range]]
) -> ChosenRanges:
    """`found` with one range for what is moved and for where it goes: numbers that lie on the steps of the one are then on those of
    the other, and are not rounded a second time. What only a Concat reads takes the range of all that is joined.
    """
    moving = [
        node
        for node in wiring.nodes
        if node.op_type in (*DATA_MOVEMENT, "MaxPool") and node.output[0] in placement.nodes
    ]
    for node in reversed(moving):
        if node.op_type == "Concat" and node.output[0] in found:
            found |= {
                name: found[node.output[0]]
                for name in node.input
                if wiring.sole_consumer(name) is node and name in found
            }
    for node in moving:
        if node.op_type != "Concat" and node.input[0] in found:
            found |= {name: found[node.input[0]] for name in node.output if name in found}
    return found


def compute_parameters(
    model: onnx.ModelProto,
    placement: Placement,
    seen: Statistics,
    scheme: QuantScheme,
    corrections: Corrections,
    chosen: ChosenRanges | None = None,
) -> QuantizationPlan:
    """Numbers for `placement` of the float `model`, whose statistics are `seen`, as `scheme` represents them.

    chosen  its `spans`, where they are known
    """
    values, found = layering.initializer_arrays(model), layering.find_layers(model)
    inside = {name: one for name, one in found.items() if name in placement.nodes}
    chosen = (
        choose_ranges(model, placement, seen, scheme, corrections.range_method)
        if chosen is None
        else chosen
    )
    covered = {name: span for name, (_, span) in chosen.items()}
    activations = {
        name: ranges.int16_parameters(*span)
        if name in placement.int16_tensors
        else ranges.uint8_parameters(*span, scheme.activation_symmetric)
        for name, span in covered.items()
    }
    rounded, biases = {}, {}
    for name, one in inside.items():
        rows, moments = layering.weight_rows(one, values), seen.moments[name]
        bias = layering.bias_vector(one, values)
        room = np.abs(bias) / (activations[one.source].scale * qdq.INT32_ROOM)
        limit, scale = scheme.weight_max, weight_scales(one, rows, scheme, room, moments)
        integers = (
            _rounded(rows, moments, scale, limit)
            if corrections.gptq
            else rounding.round_to_nearest(rows, scale, limit)
        )
        rounded[name] = pack_weights(one, integers, scale, scheme)
        if corrections.bias:
            histogram, numbers = seen.histograms[one.source], activations[one.source]
            shift = one.per_column(
                ranges.clipping_shift(histogram, *numbers.bounds)
                + ranges.rounding_shift(histogram, numbers)
            )
            biases[name] = bias + bias_correction(rows, integers * scale, moments.mean, shift)
    made = replace_biases(model, found, biases) if biases else model
    return QuantizationPlan(
        made, activations, rounded, covered, {name: method for name, (method, _) in chosen.items()}
    )


def write_qdq(plan: QuantizationPlan, placement: Placement, scheme: QuantScheme) -> onnx.ModelProto:
    """The QDQ graph."""
    signed = scheme.activation_type == "int8"
    return qdq.write(
        plan.model, placement, plan.activations, scheme.per_channel, plan.weights, signed
    )


def bias_correction(rows: Float, restored: Float, mean: Float, shift: Float) -> Float:
    """What to add to the bias, [O], when weights `rows` become `restored` and mean inputs [G, K] move by `shift` [G, K]."""
    change = np.einsum("gok,gk->go", restored - rows, mean) + np.einsum(
        "gok,gk->go", restored, shift
    )
    return np.asarray(-change.reshape(-1))


def replace_biases(
    model: onnx.ModelProto, found: Mapping[str, Layer], biases: Mapping[str, Float]
) -> onnx.ModelProto:
    """`model` with the biases [O] given for some layers, each an initializer of its own."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    taken = {item.name for item in made.graph.initializer}
    for node in made.graph.node:
        name = node.output[0]
        if name in biases:
            fresh = f"{found[name].bias or name + ':bias'}:corrected:{name}"
            while fresh in taken:
                fresh += "_"
            made.graph.initializer.append(
                numpy_helper.from_array(biases[name].astype(np.float32), fresh)
            )
            del node.input[2:]
            node.input.append(fresh)
    return made


def weight_scales(
    one: Layer, rows: Float, scheme: QuantScheme, room: Float, moments: Moments
) -> Float:
    """[G, O/G, 1]: the smallest scales that hold each row, or the best for all, and leave `room` [O] for the bias in int32."""
    least = room.reshape(one.groups, -1, 1)
    if scheme.per_channel:
        wanted = np.maximum(np.abs(rows).max(2, keepdims=True) / scheme.weight_max, least)
    else:
        step = rounding.shared_scale(rows, moments.grams, moments.blocks, scheme.weight_max)
        wanted = np.full_like(least, max(step, least.max()))
    usable = np.where(wanted > 0, np.maximum(wanted, ranges.SMALLEST_SCALE), 1.0)
    return np.asarray(usable.astype(np.float32), np.float64)


def pack_weights(one: Layer, integers: Float, scale: Float, scheme: QuantScheme) -> QuantizedWeight:
    """`integers` [G, O/G, K] and `scale` [G, O/G, 1] as a QDQ file holds them."""
    return QuantizedWeight(
        scale.reshape(-1) if scheme.per_channel else scale.reshape(-1)[:1],
        one.from_rows(integers).astype(np.int8),
    )


def _rounded(rows: Float, moments: Moments, scale: Float, limit: int) -> Float:
    pieces = [
        rounding.gptq_round(rows[:, :, a:b], gram, scale, limit)
        for gram, (a, b) in zip(moments.grams, moments.blocks, strict=True)
    ]
    return np.concatenate(pieces, axis=2)
