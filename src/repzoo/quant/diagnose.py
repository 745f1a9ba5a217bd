"""Where the noise comes from: for each layer, its own rounding (weight side) against the quantised input (activation side).

Signal is the layer's mean squared output tr(W H W') with H = E[x x'] over calibration images. Noise is, on the weight side,
tr(D H D') with D = W' - W; on the activation side sum_c e_c ||W[:, c]||^2, where e_c is the expected squared rounding and clipping
error of input channel c, taken as independent from channel to channel. Both are local: what one layer adds, given a clean input.
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


@dataclass(frozen=True)
class LayerNoise:
    """One layer's signal-to-noise ratios, in dB; the smaller is the worse.

    side      weight | activation: the worse of the two
    channels  of that side, worst first: output channels whose weights, or input channels whose values, add most noise
    share     of the side's noise that those channels add, 0..1
    range     low and high that the input's steps cover; `seen` what its values spanned
    method    how that range was chosen
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
        return f"{self.layer} ({self.side} side, {worse:.0f} dB; {kind} channels {channels} add {self.share:.0%} of it)"


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
    signal = planning.output_power(rows, moments).sum()
    weight = planning.output_power(restored - rows, moments).reshape(-1)
    costs = (restored**2).sum(1).reshape(one.inputs, -1).sum(1)
    activation = costs * ranges.noise(histogram, *span)
    side, worse = ("weight", weight) if weight.sum() >= activation.sum() else ("activation", activation)
    channels, share = _worst(worse)
    sides = decibel(signal, weight.sum()), decibel(signal, activation.sum())
    return LayerNoise(one.name, side, *sides, channels, share, span, ranges.minmax(histogram), made.methods[one.source])


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
