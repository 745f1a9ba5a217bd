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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

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
TINY = 1e-300  # avoids divisions by zero and log(0)


def smooth(
    model: onnx.ModelProto,
    start: EqualizedModel,
    statistics: Statistics,
    tensors: Sequence[str],
    per_channel: bool,
) -> EqualizedModel:
    """The float `model` with the channel factors of least predicted noise.

    start        the equalized form of `model`, from which the search begins
    statistics   of `model`
    tensors      activations that will be quantized
    per_channel  whether weights have one scale per output channel
    """
    layers = find_layers(model)
    channels = link_channels(model, layers)
    rescaled = statistics.rescaled(start.factors, layers.values())
    terms = _noise_terms(start.model, rescaled, tensors, channels, per_channel)
    factors = np.exp(_minimize(terms, channels))
    smoothed = rescale_channels(
        start.model, find_layers(start.model), channels, factors
    )
    combined: dict[str, Float] = {}
    for name in start.factors.keys() | smoothed.factors.keys():
        first = start.factors.get(name, np.ones(1))
        combined[name] = first * smoothed.factors.get(name, np.ones(1))
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

    Candidates [e] are the weights that may be the largest of their scale:
    size, into, out  log |W|, label of the input channel, label of the output channel
    maxima           candidates of one scale

    Rows [r] are output channels, in the order of the scales:
    rows, worth      label and sensitivity
    group            input group that the row reads
    scaled           rows of one scale

    Inputs [i] are input channels:
    inputs, energy   label and E[x^2]
    groups           input channels of one group
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
        group_counts = [len(part.groups.sizes) for part in parts]
        offsets = np.cumsum([0, *group_counts[:-1]])
        groups = [
            part.group + offset for part, offset in zip(parts, offsets, strict=True)
        ]
        return cls(
            size=np.concatenate([part.size for part in parts]),
            into=np.concatenate([part.into for part in parts]),
            out=np.concatenate([part.out for part in parts]),
            maxima=_Segments.joined([part.maxima for part in parts]),
            rows=np.concatenate([part.rows for part in parts]),
            worth=np.concatenate([part.worth for part in parts]),
            group=np.concatenate(groups),
            scaled=_Segments.joined([part.scaled for part in parts]),
            inputs=np.concatenate([part.inputs for part in parts]),
            energy=np.concatenate([part.energy for part in parts]),
            groups=_Segments.joined([part.groups for part in parts]),
        )

    def add(self, theta: Float, slope: Float) -> float:
        """The noise at log factors `theta`. Its gradient is added to `slope`."""
        powers = self.energy * np.exp(-2 * theta[self.inputs])
        total = self.groups.sums(powers)
        sizes = self.size + theta[self.into] - theta[self.out]
        log_maxima, shares = self.maxima.log_norms(sizes)
        each = (
            GAIN
            / (12 * 127**2)
            * self.worth
            * np.exp(2 * theta[self.rows])
            * total[self.group]
        )
        each *= self.scaled.repeat(np.exp(2 * log_maxima))
        noise = self.scaled.sums(each)

        count = len(slope)
        pull = 2 * shares * self.maxima.repeat(noise)
        slope += np.bincount(self.into, pull, count) - np.bincount(
            self.out, pull, count
        )
        slope += np.bincount(self.rows, 2 * each, count)
        by_group = np.bincount(self.group, each, len(total)) / np.maximum(total, TINY)
        slope -= np.bincount(
            self.inputs, 2 * powers * self.groups.repeat(by_group), count
        )
        return float(noise.sum())


@dataclass(frozen=True)
class _ActivationNoise:
    """The noise of all quantized activations, as flat arrays over their channels.

    size     log of the largest magnitude
    labels   of the channels
    worth    sensitivity
    tensors  channels of one tensor
    """

    size: Float
    labels: Ids
    worth: Float
    tensors: _Segments

    @classmethod
    def joined(cls, parts: Sequence[_ActivationNoise]) -> _ActivationNoise:
        """All activations as one, like `_WeightNoise.joined`."""
        return cls(
            size=np.concatenate([part.size for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            worth=np.concatenate([part.worth for part in parts]),
            tensors=_Segments.joined([part.tensors for part in parts]),
        )

    def add(self, theta: Float, slope: Float) -> float:
        """The noise at log factors `theta`. Its gradient is added to `slope`."""
        log_maxima, shares = self.tensors.log_norms(self.size - theta[self.labels])
        squared_ranges = self.tensors.repeat(np.exp(2 * log_maxima))
        each = (
            squared_ranges / (12 * 255**2) * self.worth * np.exp(2 * theta[self.labels])
        )
        pull = 2 * each - 2 * self.tensors.repeat(self.tensors.sums(each)) * shares
        slope += np.bincount(self.labels, pull, len(slope))
        return float(each.sum())


_Terms = Sequence[_WeightNoise | _ActivationNoise]


def _noise_terms(
    model: onnx.ModelProto,
    statistics: Statistics,
    tensors: Sequence[str],
    channels: ChannelGroups,
    per_channel: bool,
) -> _Terms:
    """The terms of the predicted noise of `model`, whose statistics are `statistics`."""
    all_layers = find_layers(model)
    values = initializer_arrays(model)
    layers = {
        name: layer for name, layer in all_layers.items() if name in statistics.moments
    }
    costs = input_sensitivity(layers.values(), values, statistics)
    propagation = SensitivityPropagation(GraphView(model), all_layers, statistics)
    activation_costs = propagation.propagate(costs, costs)
    worth = np.zeros(channels.count)
    for source, cost in costs.items():
        np.add.at(worth, labels_of(channels, source, len(cost)), cost)

    weights: list[_WeightNoise] = []
    for name, layer in layers.items():
        rows = weight_rows(layer, values)
        power = signal_power(rows, statistics.moments[name])
        if power > 0:
            out = labels_of(channels, name, layer.out_channels)
            # A row that nothing sensitive reads counts by the signal of its own layer.
            own_worth = np.where(
                (out == FIXED) | (worth[out] == 0), 1 / power, worth[out]
            )
            energy = _input_energy(layer, statistics)
            weights.append(
                _weight_noise(layer, rows, energy, own_worth, channels, per_channel)
            )

    activations: list[_ActivationNoise] = []
    for name in tensors:
        if name in activation_costs:
            histogram = statistics.histograms[name]
            largest = np.maximum(np.maximum(histogram.high, -histogram.low), TINY)
            labels = labels_of(channels, name, len(largest))
            tensor = _Segments.of([0], len(largest))
            cost = activation_costs[name]
            activations.append(_ActivationNoise(np.log(largest), labels, cost, tensor))

    terms: list[_WeightNoise | _ActivationNoise] = []
    if weights:
        terms.append(_WeightNoise.joined(weights))
    if activations:
        terms.append(_ActivationNoise.joined(activations))
    return terms


def _input_energy(layer: Layer, statistics: Statistics) -> Float:
    """E[x^2] of each input channel, summed over the kernel: [G, C/G]."""
    grams = statistics.moments[layer.name].grams
    diagonal = np.concatenate([np.einsum("gkk->gk", gram) for gram in grams], axis=1)
    by_channel = diagonal.reshape(layer.groups, -1, int(np.prod(layer.kernel)))
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
    peaks = (
        np.abs(rows).reshape(*rows.shape[:2], energy.shape[1], -1).max(3)
    )  # [G, O/G, C/G]
    is_candidate = (_are_largest(peaks, 1) | _are_largest(peaks, 2)) & (peaks > 0)
    # np.nonzero returns candidates in the order of the output channels.
    group, row, column = np.nonzero(is_candidate)
    rows_per_group = peaks.shape[1]
    output = group * rows_per_group + row
    out = labels_of(channels, layer.name, layer.out_channels)
    into = labels_of(channels, layer.source, layer.in_channels).reshape(energy.shape)
    live = np.unique(output)  # output channels with any weight
    first = np.searchsorted(output, live) if per_channel else [0]
    first_row = np.arange(len(live)) if per_channel else [0]
    return _WeightNoise(
        size=np.log(peaks[is_candidate]),
        into=into[group, column],
        out=out[output],
        maxima=_Segments.of(first, len(output)),
        rows=out[live],
        worth=worth[live],
        group=live // rows_per_group,
        scaled=_Segments.of(first_row, len(live)),
        inputs=into.reshape(-1),
        energy=energy.reshape(-1),
        groups=_Segments.of(np.arange(0, energy.size, energy.shape[1]), energy.size),
    )


def _are_largest(peaks: Float, axis: int) -> npt.NDArray[np.bool_]:
    """Which elements are among the CANDIDATES largest along `axis`."""
    if peaks.shape[axis] <= CANDIDATES:
        return np.ones(peaks.shape, np.bool_)
    threshold = np.partition(peaks, -CANDIDATES, axis).take([-CANDIDATES], axis)
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
