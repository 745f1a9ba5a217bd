"""The noise that rounding will add to a network, as a smooth function of its channel factors.

It is relative to the signal, and a sum over every layer and every quantized activation. With s = 1
for the given network, I_c the sensitivity of a channel (calibration/sensitivity.py), x_k a layer's
inputs and h_c an activation's largest magnitude:

    weights      N = R / (12 * 127^2) * sum_o m_o^2 I_o s_o^2 sum_k E[x_k^2] / s_k^2
                 m_o = max_k |W_ok| s_k / s_o, over all rows if the tensor has one scale
    activations  N = 1 / (12 * 255^2) * m^2 sum_c I_c s_c^2
                 m = max_c h_c / s_c

(a uniform error of scale^2 / 12 in each rounded number; R is what GPTQ leaves of it). Maxima are
replaced by p-norms, so that the sum is smooth in theta = log s.

All layers are one term and all activations another. A step of the search then takes a few
operations on long arrays, in which a layer or tensor is a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.network.channels import ChannelGroups
from repzoo.quant.network.layers import Layer
from repzoo.quant.parameters.scales import INT8_MAX, UINT8_STEPS

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

# What GPTQ rounding leaves of a weight's squared error. (`weight_scales` has an estimate of its
# own, for rows that share a scale.)
REMAINING_WEIGHT_NOISE = 0.25
WEIGHT_NOISE = REMAINING_WEIGHT_NOISE / (12 * INT8_MAX**2)
ACTIVATION_NOISE_DIVISOR = 12 * UINT8_STEPS**2
NORM = 24  # p of the p-norms that replace maxima
# Largest weights of each row and column that are considered: only they can become the maximum.
CANDIDATES = 8
TINY = 1e-300  # avoids divisions by zero and log(0)


@dataclass(frozen=True)
class Segments:
    """Consecutive, non-empty segments of a flat array.

    Attributes:
        first: where each begins.
        sizes: how long it is.
    """

    first: Ids
    sizes: Ids

    @classmethod
    def of(cls, first: Sequence[int] | Ids, total: int) -> Segments:
        """Segments that begin at `first` in an array of `total` elements."""
        starts = np.asarray(first, np.int64)
        edges = np.append(starts, total)
        return cls(starts, np.diff(edges))

    @classmethod
    def joined(cls, parts: Sequence[Segments]) -> Segments:
        """The segments of concatenated arrays."""
        sizes = np.concatenate([part.sizes for part in parts])
        ends = np.cumsum(sizes)
        return cls(ends - sizes, sizes)

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
        below = values - self.repeat(largest)
        powers = np.exp(NORM * below)
        sums = self.sums(powers)
        log_norms = largest + np.log(sums) / NORM
        return log_norms, powers / self.repeat(sums)


@dataclass(frozen=True)
class WeightNoise:
    """The noise of all layers' weights, as flat arrays.

    Candidates [e] are the weights that may be the largest of their scale. Rows [r] are output
    channels, in the order of the scales. Inputs [i] are input channels.

    Attributes:
        log_size: log |W| of each candidate.
        into, out: labels of a candidate's input and output channel.
        candidates: those of each scale.
        rows: label of each row.
        sensitivity: of each row.
        rows_of_scale: the rows that each scale has.
        inputs: label of each input.
        energy: E[x^2] of each input.
        input_groups: the inputs of each group of a layer.
        group: number of the input group that each row reads.
    """

    log_size: Float
    into: Ids
    out: Ids
    candidates: Segments
    rows: Ids
    sensitivity: Float
    rows_of_scale: Segments
    inputs: Ids
    energy: Float
    input_groups: Segments
    group: Ids

    @classmethod
    def joined(cls, parts: Sequence[WeightNoise]) -> WeightNoise:
        """All layers as one term."""
        renumbered: list[WeightNoise] = []
        groups_before = 0
        for part in parts:
            renumbered.append(replace(part, group=part.group + groups_before))
            groups_before += len(part.input_groups.sizes)
        return _joined_fields(cls, renumbered)

    def add(self, theta: Float, slope: Float) -> float:
        """The noise at log factors `theta` [labels]. Its gradient is added to `slope` [labels]."""
        # E[x_k^2] / s_k^2, and its sum over each group
        powers = self.energy * np.exp(-2 * theta[self.inputs])
        group_power = self.input_groups.sums(powers)
        # m_o^2 of each scale
        log_sizes = self.log_size + theta[self.into] - theta[self.out]
        log_maxima, shares = self.candidates.log_norms(log_sizes)
        squared_maxima = np.exp(2 * log_maxima)
        # the noise of each row, and of each scale
        squared_factors = np.exp(2 * theta[self.rows])
        row_noise = WEIGHT_NOISE * self.sensitivity * squared_factors
        row_noise *= group_power[self.group]
        row_noise *= self.rows_of_scale.repeat(squared_maxima)
        scale_noise = self.rows_of_scale.sums(row_noise)

        self._add_maxima_slope(slope, scale_noise, shares)
        # through the sensitivities
        slope += np.bincount(self.rows, 2 * row_noise, len(slope))
        self._add_input_slope(slope, row_noise, powers, group_power)
        return float(scale_noise.sum())

    def _add_maxima_slope(
        self,
        slope: Float,
        scale_noise: Float,
        shares: Float,
    ) -> None:
        """The gradient through the maxima. `shares` [e] is that of each log maximum."""
        pull = 2 * shares * self.candidates.repeat(scale_noise)
        into_pull = np.bincount(self.into, pull, len(slope))
        out_pull = np.bincount(self.out, pull, len(slope))
        slope += into_pull - out_pull

    def _add_input_slope(
        self,
        slope: Float,
        row_noise: Float,
        powers: Float,
        group_power: Float,
    ) -> None:
        """The gradient through the inputs, whose `powers` [i] add up to `group_power`."""
        group_noise = np.bincount(self.group, row_noise, len(group_power))
        relative = group_noise / np.maximum(group_power, TINY)
        pull = 2 * powers * self.input_groups.repeat(relative)
        slope -= np.bincount(self.inputs, pull, len(slope))


@dataclass(frozen=True)
class ActivationNoise:
    """The noise of all quantized activations, as flat arrays over their channels [c].

    Attributes:
        log_size: log of the largest magnitude.
        labels: of the channels.
        sensitivity: of the channels.
        tensors: the channels of each tensor.
    """

    log_size: Float
    labels: Ids
    sensitivity: Float
    tensors: Segments

    @classmethod
    def joined(cls, parts: Sequence[ActivationNoise]) -> ActivationNoise:
        """All activations as one term."""
        return _joined_fields(cls, parts)

    def add(self, theta: Float, slope: Float) -> float:
        """The noise at log factors `theta` [labels]. Its gradient is added to `slope` [labels]."""
        log_sizes = self.log_size - theta[self.labels]
        log_maxima, shares = self.tensors.log_norms(log_sizes)
        squared_ranges = self.tensors.repeat(np.exp(2 * log_maxima))
        squared_factors = np.exp(2 * theta[self.labels])
        step_noise = squared_ranges / ACTIVATION_NOISE_DIVISOR
        noise = step_noise * self.sensitivity * squared_factors
        tensor_noise = self.tensors.repeat(self.tensors.sums(noise))
        pull = 2 * noise - 2 * tensor_noise * shares
        slope += np.bincount(self.labels, pull, len(slope))
        return float(noise.sum())


NoiseTerm = WeightNoise | ActivationNoise
_Term = TypeVar("_Term", WeightNoise, ActivationNoise)


def _joined_fields(kind: type[_Term], parts: Sequence[_Term]) -> _Term:
    """A term whose arrays and segments are those of `parts` one after another."""
    joined: dict[str, Any] = {}
    for field in fields(kind):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], Segments):
            joined[field.name] = Segments.joined(values)
        else:
            joined[field.name] = np.concatenate(values)
    return kind(**joined)


def activation_noise(
    name: str,
    histogram: Histogram,
    sensitivity: Float,
    channels: ChannelGroups,
) -> ActivationNoise:
    """The term of the activation `name`. `sensitivity` is that of its channels, [C]."""
    magnitude = histogram.magnitude
    return ActivationNoise(
        log_size=np.log(np.maximum(magnitude, TINY)),
        labels=channels.labels_of(name, len(magnitude)),
        sensitivity=sensitivity,
        tensors=Segments.of([0], len(magnitude)),
    )


@dataclass(frozen=True)
class LayerNoise:
    """What the noise of one layer's weights depends on.

    Attributes:
        layer: the layer.
        rows: its weights [G, O/G, K].
        energy: E[x^2] of each input channel, summed over the kernel, [G, C/G].
        sensitivity: of its outputs, [O].
    """

    layer: Layer
    rows: Float
    energy: Float
    sensitivity: Float

    def term(self, channels: ChannelGroups, per_channel: bool) -> WeightNoise:
        """The term of this layer, with one scale for each output channel or one in all."""
        layer = self.layer
        out = channels.labels_of(layer.name, layer.out_channels)
        into = channels.labels_of(layer.source, layer.in_channels)
        into = into.reshape(self.energy.shape)

        peaks = np.abs(layer.taps_of(self.rows)).max(axis=3)  # [G, O/G, C/G]
        is_candidate = _may_be_largest(peaks)
        # np.nonzero returns candidates in the order of the output channels.
        group, row, column = np.nonzero(is_candidate)
        rows_per_group = peaks.shape[1]
        output = group * rows_per_group + row
        live = np.unique(output)  # output channels with any weight
        first_candidates: Sequence[int] | Ids = [0]
        first_rows: Sequence[int] | Ids = [0]
        if per_channel:
            first_candidates = np.searchsorted(output, live)
            first_rows = np.arange(len(live))
        inputs_per_group = self.energy.shape[1]
        first_inputs = np.arange(0, self.energy.size, inputs_per_group)
        return WeightNoise(
            log_size=np.log(peaks[is_candidate]),
            into=into[group, column],
            out=out[output],
            candidates=Segments.of(first_candidates, len(output)),
            rows=out[live],
            sensitivity=self.sensitivity[live],
            rows_of_scale=Segments.of(first_rows, len(live)),
            inputs=into.reshape(-1),
            energy=self.energy.reshape(-1),
            input_groups=Segments.of(first_inputs, self.energy.size),
            group=live // rows_per_group,
        )


def _may_be_largest(peaks: Float) -> npt.NDArray[np.bool_]:
    """Which of the `peaks` [G, O/G, C/G] may become the largest of their row or of their column."""
    is_candidate = _are_largest(peaks, axis=1) | _are_largest(peaks, axis=2)
    return is_candidate & (peaks > 0)


def _are_largest(peaks: Float, axis: int) -> npt.NDArray[np.bool_]:
    """Which elements are among the CANDIDATES largest along `axis`."""
    if peaks.shape[axis] <= CANDIDATES:
        return np.ones(peaks.shape, np.bool_)
    partitioned = np.partition(peaks, -CANDIDATES, axis)
    threshold = partitioned.take([-CANDIDATES], axis)
    return np.asarray(peaks >= threshold)
