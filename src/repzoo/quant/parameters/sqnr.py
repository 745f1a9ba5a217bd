"""Where the noise comes from: for each layer, its own rounding (weight side) against the quantized input (activation side).

Signal of an output channel is its mean squared output W H W' with H = E[x x'] over calibration images. Noise is, on the weight
side, D H D' with D = W' - W; on the activation side sum_c e_c W[:, c]^2, where e_c is the expected squared rounding and clipping
error of input channel c, taken as independent from channel to channel. Both are local: what one layer adds, given a clean input.
A tensor that no layer reads, such as what goes into a sum or is flattened, is told of the layer that it reaches first, of which it
spoils most (importance.py says what reaches it); one that reaches none, of the layer that it comes from, against its own signal.
A layer in float is told of too where its input has steps.

A layer's ratio is the mean over its output channels of noise over signal: a channel that dwarfs the others, and takes the steps
for itself, then counts as one channel, as it does for the layers that read them all. A channel whose signal is below FAINT of the
mean is taken to have that much.

Besides the channels that hold most of the noise there are those that caused it: a scale is set by the channel that reaches
furthest, and where that is more than OUTLYING times what the median channel reaches, it is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.quant.calibration.observers import Statistics
from repzoo.quant.calibration.sensitivity import SensitivityPropagation, expectation, output_power
from repzoo.quant.network import layers as layering
from repzoo.quant.network.functions import Function, identity
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import Layer
from repzoo.quant.parameters import ranges
from repzoo.quant.parameters.compute import QuantizationPlan

Float = npt.NDArray[np.float64]
WORST_CHANNELS = 5
CLEAN_DB = 120.0  # shown for a side without noise
FAINT = 1e-6  # of the mean signal of a layer's output channels
OUTLYING = 4.0


@dataclass(frozen=True)
class LayerSqnr:
    """One layer's signal-to-noise ratios, in dB; the smaller is the worse.

    side      weight | activation: the worse of the two
    channels  of that side, worst first: output channels whose weights, or channels of `tensor` whose values, add most noise
    share     of the side's noise that those channels add, 0..1
    tensor    the activation of that side that adds most noise: the layer's input, or one before that it comes from
    range     low and high that the steps of `tensor` cover; `seen` what its values spanned
    method    how that range was chosen
    outliers  channels of that side that set its one scale: they reach `spread` times as far as the median channel, the worst first
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
        """Both sides' noise over the signal."""
        return float(10 ** (-self.weight_db / 10) + 10 ** (-self.activation_db / 10))

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON has them."""
        return asdict(self)

    def sentence(self) -> str:
        """For a refusal."""
        whose = "output channels" if self.side == "weight" else f"of {self.tensor}, channels"
        channels, set_by = (", ".join(map(str, some)) for some in (self.channels, self.outliers))
        why = (
            f"; its scale is set by channel {set_by}, {self.spread:.0f} times the median"
            if set_by
            else ""
        )
        worse = min(self.weight_db, self.activation_db)
        return f"{self.layer} ({self.side} side, {worse:.0f} dB; {whose} {channels} add {self.share:.0%} of it{why})"


def layer_sqnr(made: QuantizationPlan, seen: Statistics) -> list[LayerSqnr]:
    """Every layer of `made` that is quantized or reads what is, whose float statistics are `seen`; the noisiest first."""
    told = NoiseAttribution(made, seen)
    return sorted(told.noises(), key=lambda one: -one.noise)


@dataclass(frozen=True)
class _Side:
    """Noise over signal that each channel adds to a layer, [C]; of the side's channels, how far each reaches; `tensor` they are of."""

    noise: Float
    reached: Float
    tensor: str


class NoiseAttribution:
    """What each layer of `made` is told of: its own weights and some activations."""

    def __init__(self, made: QuantizationPlan, seen: Statistics) -> None:
        found = layering.find_layers(made.model)
        self.made, self.seen, self.values = made, seen, layering.initializer_arrays(made.model)
        self.layers = [one for name, one in found.items() if name in seen.moments]
        self._signals = {one.name: self._signal(one) for one in self.layers}
        self._sides: dict[str, list[_Side]] = {one.name: [] for one in self.layers}
        for one in self.layers:
            if one.source in made.activations:
                self._tell(one, one.source, self._charge(one) * self._error(one.source))
        self._tell_of_others(found)

    def _rows(self, one: Layer) -> Float:
        """Its weights in float64; not kept, since all layers' would be twice the model."""
        return layering.weight_rows(one, self.values)

    def _signal(self, one: Layer) -> Float:
        """Of each output channel [O]; infinite for a layer that is silent, which has no noise."""
        signal = output_power(self._rows(one), self.seen.moments[one.name]).reshape(-1)
        usual = float(signal.mean())
        return np.maximum(signal, FAINT * usual) if usual > 0 else np.full(len(signal), np.inf)

    def _restored(self, one: Layer) -> Float:
        """Its weights as they will be: rows [G, O/G, K]."""
        if one.name not in self.made.weights:
            return self._rows(one)
        rounded = self.made.weights[one.name]
        scale = np.broadcast_to(rounded.scale.reshape(-1), (one.out_channels,)).reshape(
            one.groups, -1, 1
        )
        return np.asarray(one.to_rows(rounded.values) * scale, np.float64)

    def _charge(self, one: Layer) -> Float:
        """Mean noise over signal of its output channels that a unit of squared error in each input channel makes, [C]."""
        each = (self._restored(one) ** 2 / self._signals[one.name].reshape(one.groups, -1, 1)).sum(
            1
        )
        return np.asarray(each.reshape(one.in_channels, -1).sum(1) / one.out_channels)

    def _error(self, tensor: str, of: Function = identity) -> Float:
        """Expected squared error of each channel, [C], or of what `of` makes of it."""
        span, steps = self.made.ranges[tensor], self.made.activations[tensor].steps
        return ranges.quantization_noise(self.seen.histograms[tensor], *span, steps, of)

    def _tell(self, one: Layer, tensor: str, noise: Float) -> None:
        histogram = self.seen.histograms[tensor]
        reached = np.maximum(np.abs(histogram.low), np.abs(histogram.high))
        self._sides[one.name].append(_Side(noise, reached, tensor))

    def _tell_of_others(self, found: Mapping[str, Layer]) -> None:
        """Tell of the activations that no layer reads the one that they spoil most, or that they come from."""
        sources = {one.source for one in self.layers}
        others = [name for name in self.made.activations if name not in sources]
        if not others:
            return
        way = SensitivityPropagation(GraphView(self.made.model), found, self.seen)
        costs = [way.costs({one.source: self._charge(one)}, sources) for one in self.layers]
        for tensor in others:
            noises = []
            for one, each in zip(self.layers, costs, strict=True):
                if (worth := way.importance(tensor, each)) is not None:
                    noises.append((one, worth.cost * self._error(tensor, worth.function)))
            if noises:
                worst, noise = max(noises, key=lambda pair: float(pair[1].sum()))
                self._tell(worst, tensor, noise)
            elif writer := next(
                (one for one in self.layers if one.name == way.written_by(tensor)), None
            ):
                self._tell(writer, tensor, self._own(tensor) * self._error(tensor))

    def _own(self, tensor: str) -> Float:
        """One over the signal of each of its channels, and over how many they are, [C]."""
        histogram = self.seen.histograms[tensor]
        signal = expectation(histogram, histogram.centers**2)
        usual = float(signal.mean())
        return (
            1 / (len(signal) * np.maximum(signal, FAINT * usual))
            if usual > 0
            else np.zeros(len(signal))
        )

    def _weight(self, one: Layer) -> _Side:
        noise = output_power(
            self._restored(one) - self._rows(one), self.seen.moments[one.name]
        ).reshape(-1)
        reached = np.abs(self._rows(one)).max(2).reshape(-1)
        return _Side(noise / self._signals[one.name] / one.out_channels, reached, one.source)

    def noises(self) -> list[LayerSqnr]:
        """Of each layer that has any, in the order of the graph."""
        return [
            self._noise(one)
            for one in self.layers
            if one.name in self.made.weights or self._sides[one.name]
        ]

    def _noise(self, one: Layer) -> LayerSqnr:
        weight, others = self._weight(one), self._sides[one.name]
        noise = weight.noise.sum(), sum(side.noise.sum() for side in others)
        activation = max(others, key=lambda side: float(side.noise.sum()), default=weight)
        side, worse = ("weight", weight) if noise[0] >= noise[1] else ("activation", activation)
        channels, share = _worst(worse.noise, max(noise))
        shared = side == "activation" or (
            one.name in self.made.weights and self.made.weights[one.name].scale.size == 1
        )
        outliers, spread = _outlying(worse.reached) if shared else ((), 1.0)
        decibels, tensor = (to_db(1, noise[0]), to_db(1, noise[1])), activation.tensor
        span, seen = self.made.ranges[tensor], ranges.minmax(self.seen.histograms[tensor])
        return LayerSqnr(
            one.name,
            side,
            tensor,
            *decibels,
            channels,
            share,
            span,
            seen,
            self.made.methods[tensor],
            outliers,
            spread,
        )


def _outlying(reached: Float) -> tuple[tuple[int, ...], float]:
    """(the few channels that reach more than OUTLYING times as far as the median one, furthest first; how far the first does)."""
    usual = float(np.median(reached[reached > 0])) if (reached > 0).any() else 0.0
    if usual == 0:
        return (), 1.0
    order = np.argsort(-reached, kind="stable")[:WORST_CHANNELS]
    return tuple(int(index) for index in order if reached[index] > OUTLYING * usual), float(
        reached.max() / usual
    )


def to_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), between -CLEAN_DB and CLEAN_DB."""
    if noise <= 0:
        return CLEAN_DB
    return float(np.clip(10 * math.log10(max(signal, 1e-300) / noise), -CLEAN_DB, CLEAN_DB))


def _worst(noise: Float, total: float) -> tuple[tuple[int, ...], float]:
    order = np.argsort(-noise, kind="stable")[:WORST_CHANNELS]
    kept = tuple(int(index) for index in order if noise[index] > 0)
    return kept, float(noise[list(kept)].sum() / total) if kept else 0.0


def noisiest_layers(found: Sequence[LayerSqnr], limit: int = 5) -> list[LayerSqnr]:
    """The few layers that make most of the noise: the worst, and those within 6 dB of it, at most `limit`."""
    return [one for one in found if one.noise >= found[0].noise / 4][:limit]
