"""Where the noise comes from: for each layer, its own rounding (weight side) against the quantised input (activation side).

Signal of an output channel is its mean squared output W H W' with H = E[x x'] over calibration images. Noise is, on the weight
side, D H D' with D = W' - W; on the activation side sum_c e_c W[:, c]^2, where e_c is the expected squared rounding and clipping
error of input channel c, taken as independent from channel to channel. Both are local: what one layer adds, given a clean input.

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

from repzoo.quant import layers as layering
from repzoo.quant import plan as planning
from repzoo.quant import ranges
from repzoo.quant.layers import Layer
from repzoo.quant.observe import Statistics
from repzoo.quant.plan import Plan

Float = npt.NDArray[np.float64]
WORST_CHANNELS = 5
CLEAN_DB = 120.0  # shown for a side without noise
FAINT = 1e-6  # of the mean signal of a layer's output channels
OUTLYING = 4.0


@dataclass(frozen=True)
class LayerNoise:
    """One layer's signal-to-noise ratios, in dB; the smaller is the worse.

    side      weight | activation: the worse of the two
    channels  of that side, worst first: output channels whose weights, or input channels whose values, add most noise
    share     of the side's noise that those channels add, 0..1
    range     low and high that the input's steps cover; `seen` what its values spanned
    method    how that range was chosen
    outliers  channels of that side that set its one scale: they reach `spread` times as far as the median channel, the worst first
    """

    layer: str
    side: str
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
        channels = ", ".join(map(str, self.channels))
        kind = "output" if self.side == "weight" else "input"
        worse = min(self.weight_db, self.activation_db)
        set_by = ", ".join(map(str, self.outliers))
        why = f"; its scale is set by {kind} channel {set_by}, {self.spread:.0f} times the median" if set_by else ""
        return f"{self.layer} ({self.side} side, {worse:.0f} dB; {kind} channels {channels} add {self.share:.0%} of it{why})"


def diagnosed(made: Plan, seen: Statistics) -> list[LayerNoise]:
    """Every quantised layer of `made`, whose float statistics are `seen`; the noisiest first."""
    values, found = layering.constants(made.model), layering.layers(made.model)
    noises = [_noise(found[name], made, values, seen) for name in made.rounded]
    return sorted(noises, key=lambda one: -one.noise)


def _noise(one: Layer, made: Plan, values: Mapping[str, npt.NDArray[Any]], seen: Statistics) -> LayerNoise:
    rows, moments, histogram = layering.weights(one, values), seen.moments[one.name], seen.histograms[one.source]
    rounded, span = made.rounded[one.name], made.ranges[one.source]
    scale = np.broadcast_to(rounded.scale.reshape(-1), (one.outputs,)).reshape(one.groups, -1, 1)
    restored = np.asarray(one.rows(rounded.values), np.float64) * scale
    signal = planning.output_power(rows, moments).reshape(-1)
    usual = float(signal.mean())
    signal = np.maximum(signal, FAINT * usual) if usual > 0 else np.full(len(signal), np.inf)  # a layer that is silent has no noise
    weight = planning.output_power(restored - rows, moments).reshape(-1) / signal
    each = (restored**2 / signal.reshape(one.groups, -1, 1)).sum(1)  # what a unit of squared error in a column entry costs
    activation = each.reshape(one.inputs, -1).sum(1) * ranges.noise(histogram, *span, made.activations[one.source].steps)
    ratios = weight.sum() / one.outputs, activation.sum() / one.outputs
    side, worse = ("weight", weight) if ratios[0] >= ratios[1] else ("activation", activation)
    channels, share = _worst(worse)
    reached = np.abs(rows).max(2).reshape(-1) if side == "weight" else np.maximum(np.abs(histogram.low), np.abs(histogram.high))
    outliers, spread = _outlying(reached) if side == "activation" or rounded.scale.size == 1 else ((), 1.0)
    seen_range, method = ranges.minmax(histogram), made.methods[one.source]
    sides = decibel(1, ratios[0]), decibel(1, ratios[1])
    return LayerNoise(one.name, side, *sides, channels, share, span, seen_range, method, outliers, spread)


def _outlying(reached: Float) -> tuple[tuple[int, ...], float]:
    """(the few channels that reach more than OUTLYING times as far as the median one, furthest first; how far the first does)."""
    usual = float(np.median(reached[reached > 0])) if (reached > 0).any() else 0.0
    if usual == 0:
        return (), 1.0
    order = np.argsort(-reached, kind="stable")[:WORST_CHANNELS]
    return tuple(int(index) for index in order if reached[index] > OUTLYING * usual), float(reached.max() / usual)


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), between -CLEAN_DB and CLEAN_DB."""
    if noise <= 0:
        return CLEAN_DB
    return float(np.clip(10 * math.log10(max(signal, 1e-300) / noise), -CLEAN_DB, CLEAN_DB))


def _worst(noise: Float) -> tuple[tuple[int, ...], float]:
    order = np.argsort(-noise, kind="stable")[:WORST_CHANNELS]
    kept = tuple(int(index) for index in order if noise[index] > 0)
    return kept, float(noise[list(kept)].sum() / noise.sum()) if kept else 0.0


def culprits(found: Sequence[LayerNoise], limit: int = 5) -> list[LayerNoise]:
    """The few layers that make most of the noise: the worst, and those within 6 dB of it, at most `limit`."""
    return [one for one in found if one.noise >= found[0].noise / 4][:limit]
