"""Equalization for the least noise: channels' factors that weigh weights and activations against each other.

Equalizing weights alone (equalize.py) may leave one channel of an activation ten times as wide as the others, and where each row of
a weight has a scale of its own there is no need to make rows alike. Here the noise that rounding will add, relative to the signal,
is predicted for every layer and every quantized activation as a function of the factors s, and their sum is made least. With
s = 1 the network that is given, I_o the importance of a channel (importance.py), and x_k, h_c its inputs and largest values:

    weights        N = GAIN / (12 * 127^2) * sum_o m_o^2 I_o s_o^2 sum_k E[x_k^2] / s_k^2,   m_o = max_k |W_ok| s_k / s_o,
                   the maximum over all rows too where the tensor has one scale
    activations    N = 1 / (12 * 255^2) * m^2 sum_c I_c s_c^2,                               m = max_c h_c / s_c

(a uniform error of step^2 / 12 in each rounded number). GAIN is what second-order rounding leaves of a weight's error. Maxima
are p-norms, so that the sum is smooth in log s; it is descended by Adam (D. Kingma and J. Ba, arXiv:1412.6980) from the equalized network,
which is the same for a network and its rescaled twin, so the end is, too.
Sources: the trade between weights and activations is that of G. Xiao et al., "SmoothQuant", arXiv:2211.10438, equation 4, with one exponent
for all; that of each channel, by noise predicted from ranges, is E. Meller et al., "Same, Same But Different", arXiv:1902.01917,
section 4. Function-preserving factors as in equalize.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.calibration.sensitivity import SensitivityPropagation, input_sensitivity
from repzoo.quant.calibration.statistics import Statistics, signal_power
from repzoo.quant.network import layers as layering
from repzoo.quant.network.channels import FIXED, ChannelGroups, link_channels
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import Layer
from repzoo.quant.rewrites.equalize import EqualizedModel, labels_of, rescale_channels

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
GAIN = 0.25
STEPS, RATE, MOMENTA = 300, 0.03, (0.9, 0.99)
NORM = 24  # p of the p-norms that stand for maxima
KEPT = 8  # largest weights of each row and each column that can become the maximum
TINY = 1e-300


@dataclass(frozen=True)
class _Runs:
    """A flat array cut into stretches, none empty: where each begins, and how long it is."""

    first: Ids
    sizes: Ids

    @classmethod
    def of(cls, first: Sequence[int] | Ids, total: int) -> _Runs:
        starts = np.asarray(first, np.int64)
        return cls(starts, np.diff(np.append(starts, total)))

    @classmethod
    def joined(cls, parts: Sequence[_Runs]) -> _Runs:
        sizes = np.concatenate([one.sizes for one in parts])
        return cls(np.cumsum(sizes) - sizes, sizes)

    def sums(self, values: Float) -> Float:
        return np.asarray(np.add.reduceat(values, self.first))

    def spread(self, values: Float) -> Float:
        """A value of each stretch, as often as the stretch is long."""
        return np.repeat(values, self.sizes)

    def largest(self, values: Float) -> tuple[Float, Float]:
        """(log of the NORM-norm of exp(values) of each stretch; each value's share in its stretch's gradient)."""
        most = np.maximum.reduceat(values, self.first)
        weights = np.exp(NORM * (values - self.spread(most)))
        sums = self.sums(weights)
        return most + np.log(sums) / NORM, weights / self.spread(sums)


@dataclass(frozen=True)
class _Weights:
    """The layers' part of the noise, flat: e candidates for m maxima, r rows, i inputs of g groups.

    size, into, out  [e]: log |W|, labels; maxima: which candidates are of one maximum
    rows, worth      [r]: labels and importance of the rows, in the order of the maxima; group: of each; scaled: rows of one maximum
    inputs, energy   [i]: labels and E[x^2]; groups: which are of one group
    """

    size: Float
    into: Ids
    out: Ids
    maxima: _Runs
    rows: Ids
    worth: Float
    group: Ids
    scaled: _Runs
    inputs: Ids
    energy: Float
    groups: _Runs

    @classmethod
    def joined(cls, parts: Sequence[_Weights]) -> _Weights:
        """All layers' as one: a step then takes a few operations on long arrays, and not many on short ones."""
        before = np.cumsum([0, *(len(one.groups.sizes) for one in parts)])
        made: dict[str, Any] = {
            "group": np.concatenate(
                [one.group + at for one, at in zip(parts, before, strict=False)]
            )
        }
        for name in ("maxima", "scaled", "groups"):
            made[name] = _Runs.joined([getattr(one, name) for one in parts])
        for name in ("size", "into", "out", "rows", "worth", "inputs", "energy"):
            made[name] = np.concatenate([getattr(one, name) for one in parts])
        return cls(**made)

    def add(self, theta: Float, slope: Float) -> float:
        """The noise at log factors `theta`; its gradient is added to `slope`."""
        powers = self.energy * np.exp(-2 * theta[self.inputs])
        total = self.groups.sums(powers)
        most, shares = self.maxima.largest(self.size + theta[self.into] - theta[self.out])
        each = GAIN / (12 * 127**2) * self.worth * np.exp(2 * theta[self.rows]) * total[self.group]
        each *= self.scaled.spread(np.exp(2 * most))
        noise = self.scaled.sums(each)
        pull = 2 * shares * self.maxima.spread(noise)
        by_group = np.bincount(self.group, each, len(total)) / np.maximum(total, TINY)
        slope += np.bincount(self.into, pull, len(slope)) - np.bincount(self.out, pull, len(slope))
        slope += np.bincount(self.rows, 2 * each, len(slope))
        slope -= np.bincount(self.inputs, 2 * powers * self.groups.spread(by_group), len(slope))
        return float(noise.sum())


@dataclass(frozen=True)
class _Activations:
    """The quantized activations' part: log of their channels' largest values, labels and importance; which are of one tensor."""

    size: Float
    labels: Ids
    worth: Float
    tensors: _Runs

    @classmethod
    def joined(cls, parts: Sequence[_Activations]) -> _Activations:
        """As _Weights.joined."""
        made: dict[str, Any] = {
            name: np.concatenate([getattr(one, name) for one in parts])
            for name in ("size", "labels", "worth")
        }
        return cls(**made, tensors=_Runs.joined([one.tensors for one in parts]))

    def add(self, theta: Float, slope: Float) -> float:
        """As _Weights.add."""
        most, shares = self.tensors.largest(self.size - theta[self.labels])
        each = (
            self.tensors.spread(np.exp(2 * most))
            / (12 * 255**2)
            * self.worth
            * np.exp(2 * theta[self.labels])
        )
        pull = 2 * each - 2 * self.tensors.spread(self.tensors.sums(each)) * shares
        slope += np.bincount(self.labels, pull, len(slope))
        return float(each.sum())


def smooth(
    model: onnx.ModelProto,
    start: EqualizedModel,
    seen: Statistics,
    tensors: Sequence[str],
    per_channel: bool,
    reached: Mapping[str, Float] | None = None,
) -> EqualizedModel:
    """The float `model` with factors of least predicted noise, searched for from `start`, its equalized form.

    seen     statistics of `model` itself; tensors: the activations that will be quantized; reached: see channels.linked
    """
    found = layering.find_layers(model)
    channels = link_channels(model, found, reached)
    terms = _terms(
        start, seen.rescaled(start.factors, found.values()), tensors, channels, per_channel
    )
    theta = _descended(terms, channels, _lowest(channels, start.factors))
    factors = np.exp(theta)
    made = rescale_channels(start.model, layering.find_layers(start.model), channels, factors)
    both = {
        name: start.factors.get(name, np.ones(1)) * made.factors.get(name, np.ones(1))
        for name in start.factors.keys() | made.factors.keys()
    }
    return EqualizedModel(made.model, both)


def _lowest(channels: ChannelGroups, before: Mapping[str, Float]) -> Float:
    """What log factors may not fall below, given those `before`: see Channels.least."""
    already = np.ones(channels.count)
    for name, labels in channels.labels.items():
        if name in before:
            already[labels] = before[name]
    least = np.zeros(channels.count)
    least[: len(channels.lower_bounds)] = channels.lower_bounds
    return np.log(np.maximum(least / already, TINY))


def _terms(
    start: EqualizedModel,
    seen: Statistics,
    tensors: Sequence[str],
    channels: ChannelGroups,
    per_channel: bool,
) -> list[_Weights | _Activations]:
    found, values = layering.find_layers(start.model), layering.initializer_arrays(start.model)
    known = {name: one for name, one in found.items() if name in seen.moments}
    read = input_sensitivity(known.values(), values, seen)
    reached = SensitivityPropagation(GraphView(start.model), found, seen).propagate(read, read)
    worth = np.zeros(channels.count)
    for source, each in read.items():
        np.add.at(worth, labels_of(channels, source, len(each)), each)
    weights, activations = list[_Weights](), list[_Activations]()
    for name, one in known.items():
        power = signal_power(layering.weight_rows(one, values), seen.moments[name])
        out = labels_of(channels, name, one.out_channels)
        if power > 0:
            own = np.where((out == FIXED) | (worth[out] == 0), 1 / power, worth[out])
            weights.append(
                _weights(
                    one,
                    layering.weight_rows(one, values),
                    _energy(one, seen),
                    own,
                    channels,
                    per_channel,
                )
            )
    for name in tensors:
        if name in reached:
            histogram = seen.histograms[name]
            high = np.maximum(np.maximum(histogram.high, -histogram.low), TINY)
            runs = _Runs.of([0], len(high))
            activations.append(
                _Activations(
                    np.log(high), labels_of(channels, name, len(high)), reached[name], runs
                )
            )
    terms: list[_Weights | _Activations] = [_Weights.joined(weights)] if weights else []
    return [*terms, *([_Activations.joined(activations)] if activations else [])]


def _energy(one: Layer, seen: Statistics) -> Float:
    """E[x^2] of each input channel, summed over its taps: [G, C/G]."""
    diagonal = np.concatenate(
        [np.einsum("gkk->gk", gram) for gram in seen.moments[one.name].grams], axis=1
    )
    return np.asarray(diagonal.reshape(one.groups, -1, int(np.prod(one.kernel))).sum(2), np.float64)


def _weights(
    one: Layer, rows: Float, energy: Float, worth: Float, channels: ChannelGroups, per_channel: bool
) -> _Weights:
    peaks = np.abs(rows).reshape(*rows.shape[:2], energy.shape[1], -1).max(3)  # [G, O/G, C/G]
    kept = (_leading(peaks, 1) | _leading(peaks, 2)) & (peaks > 0)
    group, row, column = np.nonzero(kept)
    number = (
        group * peaks.shape[1] + row
    )  # of the output channel; np.nonzero goes through them in order
    out, into = (
        labels_of(channels, one.name, one.out_channels),
        labels_of(channels, one.source, one.in_channels).reshape(energy.shape),
    )
    alive = np.unique(number)
    first = np.searchsorted(number, alive) if per_channel else [0]
    return _Weights(
        np.log(peaks[kept]),
        into[group, column],
        out[number],
        _Runs.of(first, len(number)),
        out[alive],
        worth[alive],
        alive // peaks.shape[1],
        _Runs.of(np.arange(len(alive)) if per_channel else [0], len(alive)),
        into.reshape(-1),
        energy.reshape(-1),
        _Runs.of(np.arange(0, energy.size, energy.shape[1]), energy.size),
    )


def _leading(peaks: Float, axis: int) -> npt.NDArray[np.bool_]:
    """Which are among the KEPT largest along `axis`."""
    if peaks.shape[axis] <= KEPT:
        return np.ones(peaks.shape, np.bool_)
    return np.asarray(peaks >= np.partition(peaks, -KEPT, axis).take([-KEPT], axis))


def _descended(
    terms: Sequence[_Weights | _Activations], channels: ChannelGroups, lowest: Float
) -> Float:
    """Log factors of the least noise found."""
    theta, best, least = np.zeros(channels.count), np.zeros(channels.count), np.inf
    mean, square = np.zeros(channels.count), np.zeros(channels.count)
    for step in range(1, STEPS + 1):
        slope = np.zeros(channels.count)
        noise = sum(one.add(theta, slope) for one in terms)
        if noise < least:
            best, least = theta.copy(), noise
        slope[FIXED] = 0
        slope /= max(noise, TINY)
        mean, square = (
            decay * old + (1 - decay) * new
            for decay, old, new in zip(MOMENTA, (mean, square), (slope, slope**2), strict=True)
        )
        sure, spread = mean / (1 - MOMENTA[0] ** step), np.sqrt(square / (1 - MOMENTA[1] ** step))
        moved = theta - RATE * (1 - (step - 1) / STEPS) * sure / (spread + 1e-12)
        theta = np.maximum(moved, lowest)
        theta[FIXED] = 0
    return best
