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
from repzoo.quant.calibration.sensitivity import Importance, importance
from repzoo.quant.network import layers as layering
from repzoo.quant.network.graph_view import Wiring
from repzoo.quant.network.layers import Layer
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import MOVING, QuantScheme
from repzoo.quant.parameters import gptq as rounding
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import ranges
from repzoo.quant.parameters.ranges import Affine, Range, Symmetric

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Corrections:
    """Which corrections a recipe applies, and how an activation's range is chosen (see ranges.chosen)."""

    second_order: bool = True
    bias: bool = True
    ranges: str = "auto"


@dataclass(frozen=True)
class Plan:
    """What qdq.write needs: see there; `ranges` and `methods` say how each activation's parameters came about."""

    model: onnx.ModelProto
    activations: Mapping[str, Affine]
    rounded: Mapping[str, Symmetric]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)


Chosen = Mapping[
    str, tuple[str, Range]
]  # of each activation: how its range was chosen, and the range


def spans(
    model: onnx.ModelProto, placement: Placement, seen: Statistics, scheme: QuantScheme, method: str
) -> Chosen:
    """The ranges of the activations of `placement`; those of 16 bits cover all that was seen."""
    wiring = Wiring(model)
    wanted, found = importance(wiring, layering.layers(model), seen), {}
    for name in placement.tensors:
        histogram, how = seen.histograms[name], "minmax" if name in placement.wide else method
        worth = wanted.get(name, Importance(np.ones(len(histogram.low))))
        made = ranges.chosen(
            histogram, worth.cost, how, scheme.range_methods, scheme.activation_symmetric, worth.of
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
    span = ranges.aligned(seen, cost, made[1])
    return made if span == made[1] else (f"{made[0]}, aligned", span)


def _shared(wiring: Wiring, placement: Placement, found: dict[str, tuple[str, Range]]) -> Chosen:
    """`found` with one range for what is moved and for where it goes: numbers that lie on the steps of the one are then on those of
    the other, and are not rounded a second time. What only a Concat reads takes the range of all that is joined.
    """
    moving = [
        node
        for node in wiring.nodes
        if node.op_type in (*MOVING, "MaxPool") and node.output[0] in placement.nodes
    ]
    for node in reversed(moving):
        if node.op_type == "Concat" and node.output[0] in found:
            found |= {
                name: found[node.output[0]]
                for name in node.input
                if wiring.only_reader(name) is node and name in found
            }
    for node in moving:
        if node.op_type != "Concat" and node.input[0] in found:
            found |= {name: found[node.input[0]] for name in node.output if name in found}
    return found


def planned(
    model: onnx.ModelProto,
    placement: Placement,
    seen: Statistics,
    scheme: QuantScheme,
    corrections: Corrections,
    chosen: Chosen | None = None,
) -> Plan:
    """Numbers for `placement` of the float `model`, whose statistics are `seen`, as `scheme` represents them.

    chosen  its `spans`, where they are known
    """
    values, found = layering.constants(model), layering.layers(model)
    inside = {name: one for name, one in found.items() if name in placement.nodes}
    chosen = spans(model, placement, seen, scheme, corrections.ranges) if chosen is None else chosen
    covered = {name: span for name, (_, span) in chosen.items()}
    activations = {
        name: ranges.wide(*span)
        if name in placement.wide
        else ranges.affine(*span, scheme.activation_symmetric)
        for name, span in covered.items()
    }
    rounded, biases = {}, {}
    for name, one in inside.items():
        rows, moments = layering.weights(one, values), seen.moments[name]
        bias = layering.biases(one, values)
        room = np.abs(bias) / (activations[one.source].scale * qdq.INT32_ROOM)
        limit, scale = scheme.weight_peak, scales(one, rows, scheme, room, moments)
        integers = (
            _rounded(rows, moments, scale, limit)
            if corrections.second_order
            else rounding.nearest(rows, scale, limit)
        )
        rounded[name] = stored(one, integers, scale, scheme)
        if corrections.bias:
            histogram, numbers = seen.histograms[one.source], activations[one.source]
            shift = one.by_channel(
                ranges.clipped(histogram, *numbers.ends) + ranges.rounded_by(histogram, numbers)
            )
            biases[name] = bias + corrected(rows, integers * scale, moments.mean, shift)
    made = with_biases(model, found, biases) if biases else model
    return Plan(
        made, activations, rounded, covered, {name: method for name, (method, _) in chosen.items()}
    )


def write(plan: Plan, placement: Placement, scheme: QuantScheme) -> onnx.ModelProto:
    """The QDQ graph."""
    signed = scheme.activation_type == "int8"
    return qdq.write(
        plan.model, placement, plan.activations, scheme.per_channel, plan.rounded, signed
    )


def corrected(rows: Float, restored: Float, mean: Float, shift: Float) -> Float:
    """What to add to the bias, [O], when weights `rows` become `restored` and mean inputs [G, K] move by `shift` [G, K]."""
    change = np.einsum("gok,gk->go", restored - rows, mean) + np.einsum(
        "gok,gk->go", restored, shift
    )
    return np.asarray(-change.reshape(-1))


def with_biases(
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


def scales(one: Layer, rows: Float, scheme: QuantScheme, room: Float, moments: Moments) -> Float:
    """[G, O/G, 1]: the smallest scales that hold each row, or the best for all, and leave `room` [O] for the bias in int32."""
    least = room.reshape(one.groups, -1, 1)
    if scheme.per_channel:
        wanted = np.maximum(np.abs(rows).max(2, keepdims=True) / scheme.weight_peak, least)
    else:
        step = rounding.shared_step(rows, moments.grams, moments.blocks, scheme.weight_peak)
        wanted = np.full_like(least, max(step, least.max()))
    usable = np.where(wanted > 0, np.maximum(wanted, ranges.SMALLEST_SCALE), 1.0)
    return np.asarray(usable.astype(np.float32), np.float64)


def stored(one: Layer, integers: Float, scale: Float, scheme: QuantScheme) -> Symmetric:
    """`integers` [G, O/G, K] and `scale` [G, O/G, 1] as a QDQ file holds them."""
    return Symmetric(
        scale.reshape(-1) if scheme.per_channel else scale.reshape(-1)[:1],
        one.stored(integers).astype(np.int8),
    )


def _rounded(rows: Float, moments: Moments, scale: Float, limit: int) -> Float:
    pieces = [
        rounding.second_order(rows[:, :, a:b], gram, scale, limit)
        for gram, (a, b) in zip(moments.grams, moments.blocks, strict=True)
    ]
    return np.concatenate(pieces, axis=2)
