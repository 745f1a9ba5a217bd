"""Equalization for the least quantization noise: factors that trade weights against activations.

Equalizing weights alone (equalize.py) may leave one channel of an activation ten times as wide
as the others, and with one scale per output channel there is no need to make rows alike. Here
the noise that rounding will add is predicted as a function of the channel factors
(predicted_noise.py) and minimized: Adam (D. Kingma and J. Ba, arXiv:1412.6980) descends it from
the equalized network. That start is the same for a network and a rescaled copy, and so is the
result.

Sources: the trade between weights and activations is that of G. Xiao et al., "SmoothQuant",
arXiv:2211.10438, equation 4, there with one exponent for all channels; noise predicted from
ranges per channel is E. Meller et al., "Same, Same But Different", arXiv:1902.01917, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.calibration.sensitivity import (
    Costs,
    SensitivityPropagation,
    input_sensitivity,
)
from repzoo.quant.calibration.statistics import Moments, Statistics, signal_power
from repzoo.quant.network.channels import FIXED, ChannelGroups, link_channels
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import (
    Layer,
    find_layers,
    initializer_arrays,
    weight_rows,
)
from repzoo.quant.rewrites.equalize import EqualizedModel, rescale_channels
from repzoo.quant.rewrites.predicted_noise import (
    TINY,
    ActivationNoise,
    LayerNoise,
    NoiseTerm,
    WeightNoise,
    activation_noise,
)

Float = npt.NDArray[np.float64]

STEPS = 300
RATE = 0.03
MOMENTUM = 0.9
SQUARED_MOMENTUM = 0.99


def smooth(
    model: onnx.ModelProto,
    start: EqualizedModel,
    statistics: Statistics,
    tensors: Sequence[str],
    per_channel: bool,
) -> EqualizedModel:
    """The float `model` with the channel factors of least predicted noise.

    Args:
        model: float and folded.
        start: the equalized form of `model`, from which the search begins.
        statistics: of `model`.
        tensors: activations that will be quantized.
        per_channel: whether weights have one scale per output channel.
    """
    layers = find_layers(model)
    channels = link_channels(model, layers)
    rescaled = statistics.rescaled(start.factors, layers.values())
    terms = _noise_terms(start.model, rescaled, tensors, channels, per_channel)
    factors = np.exp(_minimize(terms, channels))
    start_layers = find_layers(start.model)
    smoothed = rescale_channels(start.model, start_layers, channels, factors)
    # dividing by the factors of both rewrites is dividing by their product
    combined: dict[str, Float] = {}
    for name in start.factors.keys() | smoothed.factors.keys():
        first = start.factors.get(name, np.ones(1))
        second = smoothed.factors.get(name, np.ones(1))
        combined[name] = first * second
    return EqualizedModel(smoothed.model, combined)


def _noise_terms(
    model: onnx.ModelProto,
    statistics: Statistics,
    tensors: Sequence[str],
    channels: ChannelGroups,
    per_channel: bool,
) -> list[NoiseTerm]:
    """The terms of the predicted noise of `model`, whose statistics are `statistics`."""
    layers = find_layers(model)
    values = initializer_arrays(model)
    observed = statistics.observed(layers)
    costs = input_sensitivity(observed, values, statistics)
    by_label = _sensitivity_by_label(costs, channels)
    weights: list[WeightNoise] = []
    for layer in observed:
        rows = weight_rows(layer, values)
        noise = _layer_noise(layer, rows, statistics, channels, by_label)
        if noise is not None:
            weights.append(noise.term(channels, per_channel))

    propagation = SensitivityPropagation(GraphView(model), layers, statistics)
    activation_costs = propagation.propagate(costs, ends=costs)
    activations: list[ActivationNoise] = []
    for name in tensors:
        if name in activation_costs:
            histogram = statistics.histograms[name]
            cost = activation_costs[name]
            activations.append(activation_noise(name, histogram, cost, channels))

    terms: list[NoiseTerm] = []
    if weights:
        terms.append(WeightNoise.joined(weights))
    if activations:
        terms.append(ActivationNoise.joined(activations))
    return terms


def _sensitivity_by_label(costs: Costs, channels: ChannelGroups) -> Float:
    """The sum of the costs of all layer inputs that have a label, [labels]."""
    sums = np.zeros(channels.count)
    for source, cost in costs.items():
        labels = channels.labels_of(source, len(cost))
        np.add.at(sums, labels, cost)
    return sums


def _layer_noise(
    layer: Layer,
    rows: Float,
    statistics: Statistics,
    channels: ChannelGroups,
    by_label: Float,
) -> LayerNoise | None:
    """What the noise of a layer's weights `rows` depends on; None if its output is always 0."""
    moments = statistics.moments[layer.name]
    power = signal_power(rows, moments)
    if power <= 0:
        return None
    energy = _input_energy(layer, moments)
    sensitivity = _output_sensitivity(layer, channels, by_label, power)
    return LayerNoise(layer, rows, energy, sensitivity)


def _output_sensitivity(
    layer: Layer,
    channels: ChannelGroups,
    by_label: Float,
    power: float,
) -> Float:
    """The sensitivity of each output of a layer, [O], from that of each label.

    `power` is the signal power of the layer.
    """
    out = channels.labels_of(layer.name, layer.out_channels)
    sensitivity = by_label[out]
    # A row that nothing sensitive reads counts by the signal of its own layer.
    is_unread = (out == FIXED) | (sensitivity == 0)
    return np.where(is_unread, 1 / power, sensitivity)


def _input_energy(layer: Layer, moments: Moments) -> Float:
    """E[x^2] of each input channel, summed over the kernel: [G, C/G]."""
    diagonals = [np.einsum("gkk->gk", gram) for gram in moments.grams]
    diagonal = np.concatenate(diagonals, axis=1)
    by_channel = diagonal.reshape(layer.groups, -1, layer.taps)
    return np.asarray(by_channel.sum(axis=2), np.float64)


class _Adam:
    """Adam, whose rate falls linearly to 0 over STEPS steps."""

    def __init__(self, size: int) -> None:
        self._mean = np.zeros(size)
        self._square = np.zeros(size)
        self._steps = 0

    def step(self, slope: Float) -> Float:
        """The change for the gradient `slope`."""
        rate = RATE * (1 - self._steps / STEPS)
        self._steps += 1
        self._mean *= MOMENTUM
        self._mean += (1 - MOMENTUM) * slope
        self._square *= SQUARED_MOMENTUM
        self._square += (1 - SQUARED_MOMENTUM) * slope**2
        # both averages begin at 0, which is corrected for
        unbiased = self._mean / (1 - MOMENTUM**self._steps)
        square = self._square / (1 - SQUARED_MOMENTUM**self._steps)
        spread = np.sqrt(square) + 1e-12
        return np.asarray(-rate * unbiased / spread)


def _minimize(terms: Sequence[NoiseTerm], channels: ChannelGroups) -> Float:
    """The log factors of least noise that Adam finds."""
    adam = _Adam(channels.count)
    theta = np.zeros(channels.count)
    best = theta.copy()
    least = np.inf
    for _ in range(STEPS):
        slope = np.zeros(channels.count)
        noise = sum(term.add(theta, slope) for term in terms)
        if noise < least:
            best = theta.copy()
            least = noise
        slope[FIXED] = 0
        # The gradient of log noise: the step size then does not depend on the noise's magnitude.
        slope /= max(noise, TINY)
        theta = theta + adam.step(slope)
        theta[FIXED] = 0
    return best
