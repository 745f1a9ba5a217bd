"""What noise in an activation costs the layers that it reaches, channel by channel.

Noise e_c that is independent from channel to channel and from position to position adds sum_c e_c ||W[:, c]||^2 to a layer's output,
whose own power is tr(W H W') with H = E[x x']: the ratio of the two is what the layer charges for the tensor that it reads. What
stands between a tensor and that layer passes noise on by the square of its slope, and costs are carried back through it:

    a sum, and what moves numbers only      as it is
    f of each number                        E[f'(x)^2]
    a product x g                           E[g^2] for x, E[x^2] for g
    a mean over n positions                 1 / n
    flattening                              the sum over the channel's pixels
    anything else                           the mean of all channels

Where a tensor has several readers their costs add up. The nearest layers count: the way back ends at a layer, what whose output
costs is for those that read it to say, and at a tensor that layers read, for which they speak. (Adding what layers further down a
residual stream charge is no better on EfficientNet-Lite0, RepGhost and FasterNet all in INT8, and 0.7 dB worse on RepViT.) An
expectation over a tensor of which nothing was seen is taken as 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.calibration.observers import BINS, Histogram, Moments, Statistics
from repzoo.quant.network import layers as layering
from repzoo.quant.network.composites import find_composites
from repzoo.quant.network.functions import FUNCTIONS, Function, identity
from repzoo.quant.network.graph_view import GraphView, axis_of
from repzoo.quant.network.layers import Layer
from repzoo.quant.parameters import gptq as rounding

Float = npt.NDArray[np.float64]
Values = Mapping[str, npt.NDArray[np.float32]]
Costs = dict[str, Float]
LEAST_SLOPE = 0.01  # squared, of an activation: what calibration images never passed others may


def input_sensitivity(reads: Iterable[Layer], values: Values, seen: Statistics) -> Costs:
    """What the layers `reads` charge for each activation that they read, [C]: added up where several do, be they INT8 or float."""
    found: Costs = {}
    for one in reads:
        rows = layering.weight_rows(one, values)
        power = signal_power(rows, seen.moments[one.name])
        each = (
            (rows**2).sum(1).reshape(one.in_channels, -1).sum(1) / power
            if power > 0
            else np.zeros(one.in_channels)
        )
        found[one.source] = found.get(one.source, 0.0) + each
    return found


def signal_power(rows: Float, moments: Moments) -> float:
    """Mean squared output of a layer, its bias left out, summed over output channels."""
    return float(output_power(rows, moments).sum())


def output_power(rows: Float, moments: Moments) -> Float:
    """Mean squared sum that `rows` [G, O, K] make of the layer's columns, [G, O]: row' E[x x'] row; blocks taken as uncorrelated."""
    pieces = zip(moments.grams, moments.blocks, strict=True)
    return np.asarray(sum(rounding.output_error(rows[:, :, a:b], gram) for gram, (a, b) in pieces))


@dataclass(frozen=True)
class Sensitivity:
    """What a unit of squared error in each channel of an activation costs, [C].

    of  what makes the error: the activation itself, or, where an elementwise function is all that reads it, what that makes of it
    """

    cost: Float
    function: Function = identity


def activation_sensitivity(
    wiring: GraphView, found: Mapping[str, Layer], seen: Statistics
) -> dict[str, Sensitivity]:
    """That of each activation that reaches a layer of the graph; `found` are its layers."""
    known = [one for name, one in found.items() if name in seen.moments]
    way = SensitivityPropagation(wiring, found, seen)
    charges = input_sensitivity(known, layering.initializer_arrays(wiring.model), seen)
    costs = way.costs(charges, charges)
    return {name: one for name in costs if (one := way.importance(name, costs)) is not None}


class SensitivityPropagation:
    """Carries costs from what layers read to what that is made of; `seen` says how large factors and slopes are."""

    def __init__(self, wiring: GraphView, layers: Iterable[str], seen: Statistics) -> None:
        self._wiring, self._seen = wiring, seen.histograms
        whole = find_composites(wiring, wiring.floats)
        self._spelt = {one.end: (value, one.kind) for value, one in whole.items()}
        self._layers = frozenset(layers)
        self._writers = {
            name: node.input[0] for node in self._wiring.nodes if node.input for name in node.output
        }
        self._ended = (
            self._layers.union(*(one.nodes for one in whole.values())) - self._spelt.keys()
        )
        self._whole = whole

    def costs(self, charges: Mapping[str, Float], ends: Collection[str]) -> Costs:
        """`charges` by tensor, [C] each, and what they make other tensors cost, as far as those that `ends` names."""
        found = dict(charges)
        for node in reversed(self._wiring.nodes):
            if node.output[0] not in self._ended and any(name in found for name in node.output):
                for name, each in self._passed(node, found):
                    if name not in ends:
                        found[name] = found[name] + each if name in found else each
        return found

    def importance(self, name: str, costs: Costs) -> Sensitivity | None:
        """That of the activation `name`, given the `costs` of all; None where it reaches nothing that costs."""
        whole, reader = self._whole.get(name), self._wiring.sole_consumer(name)
        kind, end = (
            (whole.kind, whole.end)
            if whole
            else (reader.op_type, reader.output[0])
            if reader is not None
            else ("", name)
        )
        if kind in FUNCTIONS and end in costs:
            return Sensitivity(costs[end], FUNCTIONS[kind])
        return Sensitivity(costs[name]) if name in costs else None

    def written_by(self, tensor: str) -> str:
        """The layer that `tensor` comes from along first inputs; the activation at the very beginning where there is none."""
        while tensor not in self._layers and tensor in self._writers:
            tensor = self._writers[tensor]
        return tensor

    def _passed(self, node: onnx.NodeProto, found: Costs) -> Iterator[tuple[str, Float]]:
        """(an input of `node`, what its outputs' costs make of it)."""
        kind, out, sources = node.op_type, node.output[0], self._wiring.activations(node)
        if kind == "Split" and axis_of(node) == 1:
            parts = [found.get(name, np.zeros(self._width(name))) for name in node.output]
            yield from self._fitted(sources, np.concatenate(parts))
        elif out not in found:
            return
        elif out in self._spelt:
            value, kind = self._spelt[out]
            yield from self._fitted([value], _times(found[out], self._slope(kind, value)))
        elif kind == "Concat" and axis_of(node) == 1:
            edges = np.cumsum([self._width(name) for name in node.input])
            whole = edges[-1] == len(found[out])  # else some width is not known
            parts = np.split(found[out], edges[:-1]) if whole else [found[out]] * len(edges)
            for name, part in zip(node.input, parts, strict=True):
                yield from self._fitted([name] if name in sources else [], part)
        elif kind in ("Mul", "Div"):
            for name, other in zip(node.input, reversed(node.input), strict=True):
                power = self._power(
                    other, len(found[out]), divides=kind == "Div" and name == node.input[0]
                )
                yield from self._fitted([name] if name in sources else [], found[out] * power)
        else:
            yield from self._fitted(sources, _times(self._flat(node, found[out]), self._gain(node)))

    def _fitted(self, names: Iterable[str], cost: Float) -> Iterator[tuple[str, Float]]:
        """`cost` for each of `names` that has as many channels; for others, their mean for each channel, or their sum for one alone."""
        for name in names:
            width = self._width(name)
            if width == len(cost):
                yield name, cost
            elif width:
                yield name, np.full(width, cost.sum() if width == 1 else cost.mean())

    def _width(self, name: str) -> int:
        """Channels of an activation; 0 where neither its shape nor what was seen of it says."""
        return self._wiring.width(name) or (len(self._seen[name].low) if name in self._seen else 0)

    def _flat(self, node: onnx.NodeProto, cost: Float) -> Float:
        """`cost` of what flattens pixels, as its input's channels have it."""
        pixels = self._wiring.pixels_per_channel(node)
        return cost.reshape(-1, pixels).sum(1) if pixels and len(cost) % pixels == 0 else cost

    def _gain(self, node: onnx.NodeProto) -> Float | float:
        """What an operator of one input makes of noise."""
        if node.op_type in FUNCTIONS:
            return self._slope(node.op_type, node.input[0])
        before, after = (
            math.prod(self._wiring.shapes.get(name, [])[2:])
            for name in (node.input[0], node.output[0])
        )
        if node.op_type in ("GlobalAveragePool", "ReduceMean") and before and after:
            return after / before
        if node.op_type == "AveragePool":
            return 1 / math.prod(
                next(item.ints for item in node.attribute if item.name == "kernel_shape")
            )
        return 1.0

    def _slope(self, kind: str, name: str) -> Float | float:
        """E[f'(x)^2] of each channel of the tensor `name`, [C]."""
        if name not in self._seen:
            return 1.0
        seen = self._seen[name]
        edges = (np.arange(BINS + 1) * (2 / BINS) - 1) * seen.edge[:, None]
        slopes = np.diff(FUNCTIONS[kind](edges), axis=1) / np.maximum(
            np.diff(edges, axis=1), np.finfo(float).tiny
        )
        return np.maximum(expectation(seen, slopes**2), LEAST_SLOPE)

    def _power(self, name: str, width: int, divides: bool) -> Float:
        """E[x^2] of a factor, [width] or [1]; of what `divides`, its inverse."""
        if name in self._wiring.constants:
            power = np.square(self._wiring.values(name).astype(np.float64)).reshape(-1)
        else:
            power = (
                expectation(self._seen[name], self._seen[name].centers ** 2)
                if name in self._seen
                else np.ones(1)
            )
        power = power if len(power) in (1, width) else np.full(1, power.mean())
        return np.asarray(1 / np.maximum(power, np.finfo(np.float32).tiny)) if divides else power


def _times(cost: Float, factor: Float | float) -> Float:
    """`cost` [C] times a factor for each channel, or for all where there is not one for each."""
    return np.asarray(cost * (factor if np.size(factor) in (1, len(cost)) else np.mean(factor)))


def expectation(seen: Histogram, values: Float) -> Float:
    """The mean of each channel, [C], of what is `values` [C, BINS] where its numbers lie in that bin, and 0 where they are 0."""
    return np.asarray((seen.counts * values).sum(1) / np.maximum(1, seen.numbers))
