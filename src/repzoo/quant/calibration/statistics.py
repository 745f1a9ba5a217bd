"""What one calibration pass measures: histograms of tensors, moments of layer inputs, margins.

All of it can be rescaled afterward as if the model had been equalized before the pass, so that one
pass serves a model with and without equalization.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.measure.expected_drop import Margins
from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.network.layers import Layer

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Moments:
    """First and second moments of a layer's im2col columns x (see layers.py).

    Attributes:
        mean: E[x], [G, K].
        stored: E[x x'] of the columns as they were observed, [G, k, k] per block.
        blocks: begin and end of each block along K. There is more than one only where the whole
            matrix would take too much memory; correlations between blocks are not recorded.
        rows: number of columns observed.
        factors: what the columns have been divided by since, [G, K]; None for nothing.
    """

    mean: Float
    stored: tuple[Float32, ...]
    blocks: tuple[tuple[int, int], ...]
    rows: int
    factors: Float | None = None

    @property
    def grams(self) -> tuple[Float32, ...]:
        """E[x x'], [G, k, k] per block."""
        # computed on demand: a second copy of all layers' Gram matrices would not fit in memory
        if self.factors is None:
            return self.stored
        grams: list[Float32] = []
        for gram, (start, end) in zip(self.stored, self.blocks, strict=True):
            factors = self.factors[:, start:end]
            grams.append(_rescale_gram(gram, factors))
        return tuple(grams)

    def rescaled(self, factors: Float) -> Moments:
        """The moments of columns / factors, [G, K]."""
        mean = self.mean / factors
        if self.factors is not None:
            factors = self.factors * factors
        return replace(self, mean=mean, factors=factors)


def _rescale_gram(gram: Float32, factors: Float) -> Float32:
    """The `gram` [G, k, k] of columns / factors [G, k]: E[(x / s) (x / s)']."""
    # in float32 and in place, since Gram matrices take most of the memory
    narrow = factors.astype(np.float32)
    scaled = np.divide(gram, narrow[:, :, None], dtype=np.float32)
    scaled /= narrow[:, None, :]
    return scaled


@dataclass(frozen=True)
class Statistics:
    """The result of a calibration pass.

    Attributes:
        histograms: by tensor name.
        moments: of the inputs of each layer, by layer name.
        images: number of images that went through the model.
        margins: logit margins of each image.
    """

    histograms: Mapping[str, Histogram]
    moments: Mapping[str, Moments]
    images: int
    margins: Margins

    def observed(self, layers: Mapping[str, Layer]) -> list[Layer]:
        """Those of `layers` (by name) whose moments were collected."""
        return [layer for name, layer in layers.items() if name in self.moments]

    def restricted(self, tensors: Iterable[str], layers: Iterable[Layer]) -> Statistics:
        """Those of `tensors` and of the inputs of `layers` alone."""
        histograms = {name: self.histograms[name] for name in tensors}
        moments = {layer.name: self.moments[layer.name] for layer in layers}
        return replace(self, histograms=histograms, moments=moments)

    def rescaled(
        self, factors: Mapping[str, Float], layers: Iterable[Layer]
    ) -> Statistics:
        """The statistics as if each tensor in `factors` had been divided by its factors [C].

        The moments of `layers` follow their input tensor.
        """
        histograms = dict(self.histograms)
        for name, histogram in self.histograms.items():
            if name in factors:
                histograms[name] = histogram.rescaled(factors[name])
        moments = dict(self.moments)
        for layer in layers:
            if layer.source in factors and layer.name in moments:
                per_column = layer.per_column(factors[layer.source])
                moments[layer.name] = moments[layer.name].rescaled(per_column)
        # margins stay: the rescaled network computes the same logits
        return replace(self, histograms=histograms, moments=moments)


def squared_output(rows: npt.NDArray[np.floating[Any]], gram: Float32) -> Float:
    """E[(row . x)^2] = row' H row of each of `rows` [G, O, K], for H = `gram` [G, K, K]: [G, O]."""
    # float32 halves the time and the memory; only the last sum needs float64
    narrow = rows.astype(np.float32)
    products = (narrow @ gram) * narrow
    return np.asarray(products.sum(axis=2, dtype=np.float64))


def signal_power(rows: Float, moments: Moments) -> float:
    """Mean squared output of a layer without its bias, summed over output channels."""
    return float(output_power(rows, moments).sum())


def output_power(rows: Float, moments: Moments) -> Float:
    """E[(row . x)^2] of each of `rows` [G, O, K] over the layer's columns x: [G, O].

    Different Gram blocks are taken to be uncorrelated.
    """
    power = np.zeros(rows.shape[:2])
    for gram, (start, end) in zip(moments.grams, moments.blocks, strict=True):
        power += squared_output(rows[:, :, start:end], gram)
    return power
