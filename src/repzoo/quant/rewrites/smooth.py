"""Equalization for the least quantization noise: factors that trade weights against activations.

Equalizing weights alone (equalize.py) may leave one channel of an activation ten times as wide
as the others, and with one scale per output channel there is no need to make rows alike. Here
the noise that rounding will add, relative to the signal, is predicted for every layer and every
quantized activation as a function of the channel factors s, and the sum is minimized. With s =
1 for the given network, I_c the sensitivity of a channel (calibration/sensitivity.py), x_k a
layer's inputs and h_c an activation's largest magnitude:

    weights      N = GAIN / (12 * 127^2) * sum_o m_o^2 I_o s_o^2 sum_k E[x_k^2] / s_k^2
                 m_o = max_k |W_ok| s_k / s_o, over all rows if the tensor has one scale
    activations  N = 1 / (12 * 255^2) * m^2 sum_c I_c s_c^2
                 m = max_c h_c / s_c

(a uniform error of scale^2 / 12 in each rounded number). Maxima are replaced by p-norms, so
that the sum is smooth in log s. Adam (D. Kingma and J. Ba, arXiv:1412.6980) descends it from
the equalized network. That start is the same for a network and a rescaled copy, and so is the
result.

Sources: the trade between weights and activations is that of G. Xiao et al., "SmoothQuant",
arXiv:2211.10438, equation 4, there with one exponent for all channels; noise predicted from
ranges per channel is E. Meller et al., "Same, Same But Different", arXiv:1902.01917, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.calibration.sensitivity import (
    SensitivityPropagation,
    input_sensitivity,
)
from repzoo.quant.calibration.statistics import Statistics, signal_power
from repzoo.quant.network.channels import FIXED, ChannelGroups, link_channels
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import (
    Layer,
    find_layers,
    initializer_arrays,
    weight_rows,
)
from repzoo.quant.rewrites.equalize import EqualizedModel, labels_of, rescale_channels

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

GAIN = 0.25  # what GPTQ rounding leaves of a weight's squared error
STEPS = 300
RATE = 0.03
MOMENTUM = 0.9
SQUARED_MOMENTUM = 0.99
NORM = 24  # p of the p-norms that replace maxima
# Largest weights of each row and column that are considered: only they can become the maximum.
CANDIDATES = 8
# The factor of the weights' noise: GAIN / (12 * 127^2).
WEIGHT_NOISE = GAIN / (12 * 127**2)
TINY = 1e-300  # avoids divisions by zero and log(0)


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


@dataclass(frozen=True)
class _Segments:
    """Consecutive, non-empty segments of a flat array: where each begins and how long it is."""

    first: Ids
    sizes: Ids

    @classmethod
    def of(cls, first: Sequence[int] | Ids, total: int) -> _Segments:
        """Segments that begin at `first` in an array of `total` elements."""
        starts = np.asarray(first, np.int64)
        return cls(starts, np.diff(np.append(starts, total)))

    @classmethod
    def joined(cls, parts: Sequence[_Segments]) -> _Segments:
        """The segments of concatenated arrays."""
        sizes = np.concatenate([part.sizes for part in parts])
        return cls(np.cumsum(sizes) - sizes, sizes)

    def sums(self, values: Float) -> Float:
        """The sum of each segment."""
        return np.asarray(np.add.reduceat(values, self.first))

    def repeat(self, values: Float) -> Float:
        """One value per segment, repeated over the segment."""
        return np.repeat(values, self.sizes)

    def log_norms(self, values: Float) -> tuple[Float, Float]:
        """(log of the NORM-norm of exp(values) per segment, its gradient in values)."""
        largest = np.maximum.reduceat(values, self.first)
        # Powers relative to the largest value: they cannot overflow.
        powers = np.exp(NORM * (values - self.repeat(largest)))
        sums = self.sums(powers)
        return largest + np.log(sums) / NORM, powers / self.repeat(sums)


@dataclass(frozen=True)
class _WeightNoise:
    """The noise of all layers' weights, as flat arrays.

    Candidates [e] are the weights that may be the largest of their scale. Rows [r] are output
    channels, in the order of the scales. Inputs [i] are input channels.

    Attributes:
        size, into, out: log |W|, label of the input channel, label of the output channel, [e].
        maxima: the candidates of each scale.
        rows, worth: label and sensitivity, [r].
        group: number of the input group that the row reads, [r].
        scaled: the rows of each scale.
        inputs, energy: label and E[x^2], [i].
        groups: the input channels of each group.
    """

    size: Float
    into: Ids
    out: Ids
    maxima: _Segments
    rows: Ids
    worth: Float
    group: Ids
    scaled: _Segments
    inputs: Ids
    energy: Float
    groups: _Segments

    @classmethod
    def joined(cls, parts: Sequence[_WeightNoise]) -> _WeightNoise:
        """All layers as one: a step then takes a few operations on long arrays."""
        renumbered: list[_WeightNoise] = []
        groups_before = 0
        for part in parts:
            renumbered.append(replace(part, group=part.group + groups_before))
            groups_before += len(part.groups.sizes)
        return _joined_fields(cls, renumbered)

    def add(self, theta: Float, slope: Float) -> float:
        """The noise at log factors `theta`. Its gradient is added to `slope`."""
        # sum_k E[x_k^2] / s_k^2 of each group
        powers = self.energy * np.exp(-2 * theta[self.inputs])
        total = self.groups.sums(powers)
        # m_o^2 of each scale
        sizes = self.size + theta[self.into] - theta[self.out]
        log_maxima, shares = self.maxima.log_norms(sizes)
        squared_maxima = np.exp(2 * log_maxima)
        # the noise of each row, and of each scale
        squared_factors = np.exp(2 * theta[self.rows])
        each = WEIGHT_NOISE * self.worth * squared_factors * total[self.group]
        each *= self.scaled.repeat(squared_maxima)
        noise = self.scaled.sums(each)

        count = len(slope)
        # through the maxima
        pull = 2 * shares * self.maxima.repeat(noise)
        into_pull = np.bincount(self.into, pull, count)
        slope += into_pull - np.bincount(self.out, pull, count)
        # through the sensitivities
        slope += np.bincount(self.rows, 2 * each, count)
        # through the inputs
        by_group = np.bincount(self.group, each, len(total))
        relative = by_group / np.maximum(total, TINY)
        input_pull = 2 * powers * self.groups.repeat(relative)
        slope -= np.bincount(self.inputs, input_pull, count)
        return float(noise.sum())


@dataclass(frozen=True)
class _ActivationNoise:
    """The noise of all quantized activations, as flat arrays over their channels [c].

    Attributes:
        size: log of the largest magnitude.
        labels: of the channels.
        worth: sensitivity.
        tensors: the channels of each tensor.
    """

    size: Float
    labels: Ids
    worth: Float
    tensors: _Segments

    @classmethod
    def joined(cls, parts: Sequence[_ActivationNoise]) -> _ActivationNoise:
        """All activations as one, like `_WeightNoise.joined`."""
        return _joined_fields(cls, parts)

    def add(self, theta: Float, slope: Float) -> float:
        """The noise at log factors `theta`. Its gradient is added to `slope`."""
        log_maxima, shares = self.tensors.log_norms(self.size - theta[self.labels])
        squared_ranges = self.tensors.repeat(np.exp(2 * log_maxima))
        squared_factors = np.exp(2 * theta[self.labels])
        each = squared_ranges / (12 * 255**2) * self.worth * squared_factors
        of_tensor = self.tensors.repeat(self.tensors.sums(each))
        pull = 2 * each - 2 * of_tensor * shares
        slope += np.bincount(self.labels, pull, len(slope))
        return float(each.sum())


_Term = TypeVar("_Term", _WeightNoise, _ActivationNoise)
_Terms = Sequence[_WeightNoise | _ActivationNoise]


def _joined_fields(kind: type[_Term], parts: Sequence[_Term]) -> _Term:
    """A term whose arrays and segments are those of `parts` one after another."""
    joined: dict[str, Any] = {}
    for field in fields(kind):
        values = [getattr(part, field.name) for part in parts]
        is_array = isinstance(values[0], np.ndarray)
        joined[field.name] = (
            np.concatenate(values) if is_array else _Segments.joined(values)
        )
    return kind(**joined)


def _noise_terms(
    model: onnx.ModelProto,
    statistics: Statistics,
    tensors: Sequence[str],
    channels: ChannelGroups,
    per_channel: bool,
) -> _Terms:
    """The terms of the predicted noise of `model`, whose statistics are `statistics`."""
    layers = find_layers(model)
    values = initializer_arrays(model)
    observed = [layer for name, layer in layers.items() if name in statistics.moments]
    costs = input_sensitivity(observed, values, statistics)
    worth = np.zeros(channels.count)
    for source, cost in costs.items():
        np.add.at(worth, labels_of(channels, source, len(cost)), cost)
    weights: list[_WeightNoise] = []
    for layer in observed:
        rows = weight_rows(layer, values)
        power = signal_power(rows, statistics.moments[layer.name])
        if power > 0:
            energy = _input_energy(layer, statistics)
            own_worth = _output_worth(layer, channels, worth, power)
            weights.append(
                _weight_noise(layer, rows, energy, own_worth, channels, per_channel)
            )

    propagation = SensitivityPropagation(GraphView(model), layers, statistics)
    activation_costs = propagation.propagate(costs, costs)
    activations: list[_ActivationNoise] = []
    for name in tensors:
        if name in activation_costs:
            histogram = statistics.histograms[name]
            cost = activation_costs[name]
            activations.append(_activation_noise(name, histogram, cost, channels))

    terms: list[_WeightNoise | _ActivationNoise] = []
    if weights:
        terms.append(_WeightNoise.joined(weights))
    if activations:
        terms.append(_ActivationNoise.joined(activations))
    return terms


def _output_worth(
    layer: Layer,
    channels: ChannelGroups,
    worth: Float,
    power: float,
) -> Float:
    """The sensitivity of each output of a layer, [O], from that of each label.

    `power` is the signal power of the layer.
    """
    out = labels_of(channels, layer.name, layer.out_channels)
    # A row that nothing sensitive reads counts by the signal of its own layer.
    is_unread = (out == FIXED) | (worth[out] == 0)
    return np.where(is_unread, 1 / power, worth[out])


def _activation_noise(
    name: str,
    histogram: Histogram,
    cost: Float,
    channels: ChannelGroups,
) -> _ActivationNoise:
    """The term of the activation `name`. `cost` [C] is its sensitivity."""
    largest = np.maximum(histogram.high, -histogram.low)
    return _ActivationNoise(
        size=np.log(np.maximum(largest, TINY)),
        labels=labels_of(channels, name, len(largest)),
        worth=cost,
        tensors=_Segments.of([0], len(largest)),
    )


def _input_energy(layer: Layer, statistics: Statistics) -> Float:
    """E[x^2] of each input channel, summed over the kernel: [G, C/G]."""
    grams = statistics.moments[layer.name].grams
    diagonals = [np.einsum("gkk->gk", gram) for gram in grams]
    diagonal = np.concatenate(diagonals, axis=1)
    by_channel = diagonal.reshape(layer.groups, -1, layer.taps)
    return np.asarray(by_channel.sum(2), np.float64)


def _weight_noise(
    layer: Layer,
    rows: Float,
    energy: Float,
    worth: Float,
    channels: ChannelGroups,
    per_channel: bool,
) -> _WeightNoise:
    """The term of one layer. `rows` are its weights, `worth` [O] the sensitivity of its outputs."""
    groups, rows_per_group, _ = rows.shape
    magnitudes = np.abs(rows).reshape(groups, rows_per_group, -1, layer.taps)
    peaks = magnitudes.max(3)  # [G, O/G, C/G]
    is_candidate = _are_largest(peaks, 1) | _are_largest(peaks, 2)
    is_candidate &= peaks > 0
    # np.nonzero returns candidates in the order of the output channels.
    group, row, column = np.nonzero(is_candidate)
    output = group * rows_per_group + row
    out = labels_of(channels, layer.name, layer.out_channels)
    into = labels_of(channels, layer.source, layer.in_channels).reshape(energy.shape)
    live = np.unique(output)  # output channels with any weight
    # one scale in all, or one for each output channel
    first_candidates: Sequence[int] | Ids = [0]
    first_rows: Sequence[int] | Ids = [0]
    if per_channel:
        first_candidates = np.searchsorted(output, live)
        first_rows = np.arange(len(live))
    first_inputs = np.arange(0, energy.size, energy.shape[1])
    return _WeightNoise(
        size=np.log(peaks[is_candidate]),
        into=into[group, column],
        out=out[output],
        maxima=_Segments.of(first_candidates, len(output)),
        rows=out[live],
        worth=worth[live],
        group=live // rows_per_group,
        scaled=_Segments.of(first_rows, len(live)),
        inputs=into.reshape(-1),
        energy=energy.reshape(-1),
        groups=_Segments.of(first_inputs, energy.size),
    )


def _are_largest(peaks: Float, axis: int) -> npt.NDArray[np.bool_]:
    """Which elements are among the CANDIDATES largest along `axis`."""
    if peaks.shape[axis] <= CANDIDATES:
        return np.ones(peaks.shape, np.bool_)
    partitioned = np.partition(peaks, -CANDIDATES, axis)
    threshold = partitioned.take([-CANDIDATES], axis)
    return np.asarray(peaks >= threshold)


def _minimize(terms: _Terms, channels: ChannelGroups) -> Float:
    """The log factors of least noise that Adam finds."""
    theta = np.zeros(channels.count)
    best = theta.copy()
    least = np.inf
    mean = np.zeros(channels.count)
    square = np.zeros(channels.count)
    for step in range(1, STEPS + 1):
        slope = np.zeros(channels.count)
        noise = sum(term.add(theta, slope) for term in terms)
        if noise < least:
            best = theta.copy()
            least = noise
        slope[FIXED] = 0
        # The gradient of log noise: the step size then does not depend on the noise's magnitude.
        slope /= max(noise, TINY)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * slope
        square = SQUARED_MOMENTUM * square + (1 - SQUARED_MOMENTUM) * slope**2
        unbiased = mean / (1 - MOMENTUM**step)
        spread = np.sqrt(square / (1 - SQUARED_MOMENTUM**step))
        rate = RATE * (1 - (step - 1) / STEPS)
        theta = theta - rate * unbiased / (spread + 1e-12)
        theta[FIXED] = 0
    return best
