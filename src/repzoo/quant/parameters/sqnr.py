"""SQNR of each layer: how much quantization noise its weights and its input add.

With H = E[x x'] over the layer's input columns x, and for an output channel with float weights w
and quantized weights v:

    signal                          w' H w
    noise of the weight side        (v - w)' H (v - w)
    noise of the activation side    sum_c e_c ||v_c||^2

e_c is the expected squared error of input channel c, taken to be independent between channels.
Both are local: what this layer adds, given an exact input.

An activation that no layer reads, such as the input of an Add or a Flatten, is attributed to the
first downstream layer whose SQNR it lowers most (sensitivity.py). If noise in it reaches no layer,
it is attributed to the layer that produces it, relative to its own signal. A float layer is listed
too if its input is quantized.

A layer's noise-to-signal ratio is the mean over its output channels. A channel that dwarfs the
others then counts as one channel, as it does for the next layer. The signal of a channel is taken
to be at least MIN_RELATIVE_SIGNAL of the mean.

Besides the channels with most noise, the report names those that cause it: one scale for all
channels is set by the one with the largest values. It is named if these are more than
OUTLIER_RATIO times those of the median channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.sensitivity import (
    Costs,
    Sensitivity,
    SensitivityPropagation,
)
from repzoo.quant.calibration.statistics import Statistics, output_power
from repzoo.quant.network.functions import Function, identity
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import (
    Layer,
    find_layers,
    initializer_arrays,
    weight_rows,
)
from repzoo.quant.parameters.compute import QuantizationPlan
from repzoo.quant.parameters.noise import quantization_noise
from repzoo.quant.parameters.ranges import minmax

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

MAX_CHANNELS = 5  # named in a report
MAX_DB = 120.0  # reported for a side without noise
MIN_RELATIVE_SIGNAL = 1e-6
OUTLIER_RATIO = 4.0


@dataclass(frozen=True)
class LayerSqnr:
    """The signal-to-noise ratios of one layer, in dB. Lower is worse.

    Attributes:
        layer: its name.
        side: "weight" or "activation", whichever adds more noise.
        tensor: the activation attributed to this layer that adds most noise, usually its input.
        weight_db: SQNR of the weight side alone.
        activation_db: SQNR of the activation side alone.
        channels: the channels of `side` that add most noise, worst first: output channels of the
            layer, or channels of `tensor`.
        share: fraction of the side's noise from those channels, 0..1.
        range: low and high that the quantization of `tensor` covers.
        seen: low and high of its values on calibration images.
        method: how the range was chosen.
        outliers: channels of `side` that set its one scale, largest first.
        spread: the largest value of the first of them, relative to the median channel.
    """

    layer: str
    side: str
    tensor: str
    weight_db: float
    activation_db: float
    channels: tuple[int, ...]
    share: float
    range: tuple[float, float]
    seen: tuple[float, float]
    method: str
    outliers: tuple[int, ...] = ()
    spread: float = 1.0

    @property
    def noise(self) -> float:
        """Noise of both sides over the signal."""
        weight_noise = 10 ** (-self.weight_db / 10)
        activation_noise = 10 ** (-self.activation_db / 10)
        return float(weight_noise + activation_noise)

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)

    def sentence(self) -> str:
        """One line for a report."""
        whose = f"of {self.tensor}, channels"
        if self.side == "weight":
            whose = "output channels"
        channels = ", ".join(map(str, self.channels))
        cause = ""
        if self.outliers:
            outliers = ", ".join(map(str, self.outliers))
            cause = f"; its scale is set by channel {outliers}, {self.spread:.0f} times the median"
        worse = min(self.weight_db, self.activation_db)
        return (
            f"{self.layer} ({self.side} side, {worse:.0f} dB; "
            f"{whose} {channels} add {self.share:.0%} of it{cause})"
        )


def layer_sqnr(plan: QuantizationPlan, statistics: Statistics) -> list[LayerSqnr]:
    """The SQNR of every layer that is quantized or reads a quantized activation, worst first.

    `statistics` are those of the float model of `plan`.
    """
    layers = NoiseAttribution(plan, statistics).layers()
    return sorted(layers, key=lambda layer: -layer.noise)


def noisiest_layers(layers: Sequence[LayerSqnr], limit: int = 5) -> list[LayerSqnr]:
    """The first of `layers`, worst first, and those within 6 dB of it; at most `limit`."""
    if not layers:
        return []
    # 6 dB are a factor of 4 in noise power
    least = layers[0].noise / 4
    near = [layer for layer in layers if layer.noise >= least]
    return near[:limit]


@dataclass(frozen=True)
class _Side:
    """Noise that one tensor adds to a layer.

    Attributes:
        noise: over signal, from each channel, [C].
        largest: largest magnitude in each channel, [C].
        tensor: the activation.
    """

    noise: Float
    largest: Float
    tensor: str

    @property
    def total(self) -> float:
        """Noise over signal of all channels."""
        return float(self.noise.sum())


class NoiseAttribution:
    """Attributes the noise of a plan's weights and activations to its layers."""

    def __init__(self, plan: QuantizationPlan, statistics: Statistics) -> None:
        self._plan = plan
        self._statistics = statistics
        self._values = initializer_arrays(plan.model)
        layers = find_layers(plan.model)
        self._layers = statistics.observed(layers)
        self._signals: dict[str, Float] = {}
        self._inputs: dict[str, list[_Side]] = {}
        for layer in self._layers:
            self._signals[layer.name] = self._signal(layer)
            self._inputs[layer.name] = []
        for layer in self._layers:
            if layer.source in plan.activations and layer.source not in plan.moved:
                noise = self._input_cost(layer) * self._error(layer.source)
                self._attribute(layer.name, layer.source, noise)
        self._attribute_other_activations(layers)

    def layers(self) -> list[LayerSqnr]:
        """The SQNR of every layer with noise, in graph order."""
        noisy: list[LayerSqnr] = []
        for layer in self._layers:
            if layer.name in self._plan.weights or self._inputs[layer.name]:
                noisy.append(self._layer_sqnr(layer))
        return noisy

    def _rows(self, layer: Layer) -> Float:
        """Float weights [G, O/G, K]. Not cached: those of all layers would be twice the model."""
        return weight_rows(layer, self._values)

    def _quantized_rows(self, layer: Layer) -> Float:
        """Weights as INT8 represents them, [G, O/G, K]; float ones for a layer left in float."""
        if layer.name not in self._plan.weights:
            return self._rows(layer)
        weight = self._plan.weights[layer.name]
        # one scale for each row, also where all rows share one
        scale = np.broadcast_to(weight.scale.reshape(-1), (layer.out_channels,))
        integers = layer.to_rows(weight.values)
        rows = integers * scale.reshape(layer.groups, -1, 1)
        return np.asarray(rows, np.float64)

    def _signal(self, layer: Layer) -> Float:
        """Signal of each output channel, [O]; infinite for a layer whose output is always 0."""
        moments = self._statistics.moments[layer.name]
        signal = output_power(self._rows(layer), moments).reshape(-1)
        mean = float(signal.mean())
        # a silent layer cannot be disturbed: its ratio becomes 0
        if mean <= 0:
            return np.full(len(signal), np.inf)
        return np.maximum(signal, MIN_RELATIVE_SIGNAL * mean)

    def _input_cost(self, layer: Layer) -> Float:
        """Noise over signal, mean over outputs, for a unit of squared error in each input, [C]."""
        signal = self._signals[layer.name].reshape(layer.groups, -1, 1)
        squares = self._quantized_rows(layer) ** 2
        by_column = (squares / signal).sum(axis=1)
        return np.asarray(layer.per_channel(by_column) / layer.out_channels)

    def _error(self, tensor: str, function: Function = identity) -> Float:
        """Expected squared error of each channel of an activation, [C], behind `function`."""
        low, high = self._plan.ranges[tensor].bounds
        steps = self._plan.activations[tensor].steps
        histogram = self._statistics.histograms[tensor]
        return quantization_noise(histogram, low, high, steps, function)

    def _attribute(
        self,
        layer: str,
        tensor: str,
        noise: Float,
    ) -> None:
        """Add the noise over signal [C] of an activation to a layer's activation side."""
        largest = self._statistics.histograms[tensor].magnitude
        self._inputs[layer].append(_Side(noise, largest, tensor))

    def _attribute_other_activations(self, layers: Mapping[str, Layer]) -> None:
        """Attribute the activations that no layer reads."""
        # a tensor that a layer reads has been attributed to that layer already
        moved = self._plan.moved
        sources = {layer.source for layer in self._layers} - moved.keys()
        known = sources | moved.keys()
        others = [name for name in self._plan.activations if name not in known]
        if not others:
            return
        graph = GraphView(self._plan.model)
        propagation = SensitivityPropagation(graph, layers, self._statistics)
        costs: list[Costs] = []  # in the order of the layers
        for layer in self._layers:
            at_input = {layer.source: self._input_cost(layer)}
            costs.append(propagation.propagate(at_input, ends=sources))
        reached = _positions_by_tensor(costs)
        for tensor in others:
            positions: set[int] = set()
            for deciding in propagation.deciding_tensors(tensor):
                positions.update(reached.get(deciding, ()))
            sensitivities: dict[str, Sensitivity] = {}
            for position in sorted(positions):
                sensitivity = propagation.sensitivity_of(tensor, costs[position])
                if sensitivity is not None:
                    sensitivities[self._layers[position].name] = sensitivity
            if sensitivities:
                self._attribute_to_worst(tensor, sensitivities)
            else:
                self._attribute_to_producer(tensor, propagation)

    def _attribute_to_worst(
        self, tensor: str, sensitivities: Mapping[str, Sensitivity]
    ) -> None:
        """Attribute an activation to the layer to which it adds most noise.

        `sensitivities` are those of the layers, by name, in graph order.
        """
        noises: dict[str, Float] = {}
        totals: dict[str, float] = {}
        for name, sensitivity in sensitivities.items():
            error = self._error(tensor, sensitivity.function)
            noises[name] = sensitivity.cost * error
            totals[name] = float(noises[name].sum())
        worst = max(totals, key=totals.__getitem__)
        self._attribute(worst, tensor, noises[worst])

    def _attribute_to_producer(
        self, tensor: str, propagation: SensitivityPropagation
    ) -> None:
        """Attribute an activation from which noise reaches no layer to the layer it comes from."""
        producer = propagation.producing_layer(tensor)
        if producer in self._signals:
            noise = self._relative_to_own_signal(tensor) * self._error(tensor)
            self._attribute(producer, tensor, noise)

    def _relative_to_own_signal(self, tensor: str) -> Float:
        """The cost of squared error relative to the activation's own signal, [C]."""
        signal = self._statistics.histograms[tensor].power
        mean = float(signal.mean())
        if mean <= 0:
            return np.zeros(len(signal))
        bounded = np.maximum(signal, MIN_RELATIVE_SIGNAL * mean)
        return np.asarray(1 / (len(signal) * bounded))

    def _weight_side(self, layer: Layer) -> _Side:
        """Noise from rounding the layer's weights, by output channel."""
        rows = self._rows(layer)
        difference = self._quantized_rows(layer) - rows
        moments = self._statistics.moments[layer.name]
        noise = output_power(difference, moments).reshape(-1)
        ratio = noise / self._signals[layer.name] / layer.out_channels
        largest = np.abs(rows).max(axis=2)
        return _Side(ratio, largest.reshape(-1), layer.source)

    def _layer_sqnr(self, layer: Layer) -> LayerSqnr:
        """Compare both sides of a layer. The side with more noise is described in detail."""
        weight = self._weight_side(layer)
        inputs = self._inputs[layer.name]
        worst_input = max(inputs, key=lambda item: item.total, default=weight)
        weight_noise = weight.noise.sum()
        activation_noise = sum(item.noise.sum() for item in inputs)
        side = "weight"
        worse = weight
        if activation_noise > weight_noise:
            side = "activation"
            worse = worst_input
        noise = max(weight_noise, activation_noise)
        channels, share = _noisiest_channels(worse.noise, noise)
        outliers: tuple[int, ...] = ()
        spread = 1.0
        # an outlier only hurts channels that share its scale
        if side == "activation" or self._has_one_scale(layer):
            outliers, spread = _outliers(worse.largest)
        tensor = worst_input.tensor
        chosen = self._plan.ranges[tensor]
        return LayerSqnr(
            layer=layer.name,
            side=side,
            tensor=tensor,
            weight_db=to_db(1, weight_noise),
            activation_db=to_db(1, activation_noise),
            channels=channels,
            share=share,
            range=chosen.bounds,
            seen=minmax(self._statistics.histograms[tensor]),
            method=chosen.method,
            outliers=outliers,
            spread=spread,
        )

    def _has_one_scale(self, layer: Layer) -> bool:
        """Whether all quantized weights of a layer share a scale."""
        weight = self._plan.weights.get(layer.name)
        return weight is not None and weight.scale.size == 1


def _positions_by_tensor(costs: Sequence[Costs]) -> dict[str, list[int]]:
    """Which of `costs` each tensor has a part in."""
    positions: dict[str, list[int]] = {}
    for position, by_tensor in enumerate(costs):
        for tensor in by_tensor:
            positions.setdefault(tensor, []).append(position)
    return positions


def _outliers(largest: Float) -> tuple[tuple[int, ...], float]:
    """(channels with more than OUTLIER_RATIO times the median's magnitude, the highest ratio)."""
    used = largest[largest > 0]  # dead channels would pull the median to 0
    if not len(used):
        return (), 1.0
    median = float(np.median(used))
    first = _largest_first(largest)
    outliers = first[largest[first] > OUTLIER_RATIO * median]
    spread = float(largest.max() / median)
    return tuple(outliers.tolist()), spread


def _noisiest_channels(noise: Float, total: float) -> tuple[tuple[int, ...], float]:
    """(the few channels with most noise, their share of `total`)."""
    first = _largest_first(noise)
    channels = first[noise[first] > 0].tolist()
    if not channels:
        return (), 0.0
    share = noise[channels].sum() / total
    return tuple(channels), float(share)


def _largest_first(values: Float) -> Ids:
    """Positions of the MAX_CHANNELS largest `values`, largest first."""
    return np.argsort(-values, kind="stable")[:MAX_CHANNELS]


def to_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), limited to -MAX_DB..MAX_DB: JSON has no infinity."""
    if noise <= 0:
        return MAX_DB
    # a signal of 0 has no logarithm
    ratio = max(signal, 1e-300) / noise
    return float(np.clip(10 * math.log10(ratio), -MAX_DB, MAX_DB))
