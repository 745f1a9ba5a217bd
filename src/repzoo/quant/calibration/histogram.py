"""Per-channel histograms of one tensor, counted batch by batch.

Each channel has BINS bins of equal width over [-edge, edge]. The edge is a power of two. When a
value exceeds it, the edge doubles and neighboring bins are merged in pairs:

    bin(x) = min(floor(x / width), BINS/2 - 1) + BINS/2,   width = edge / (BINS/2)

Every width is a power of two, so x / width is exact, and merging bins gives the same counts as
counting again with the wider bins. The one exception is a value equal to the edge: `min` puts it
into the last bin, but after widening it starts the next one. Those values are tracked separately.
The counts therefore do not depend on how the values are split into batches, or on their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.quant.network.functions import Function, identity

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32 | np.uint16]

BINS = 256
HALF = BINS // 2  # bins on either side of zero
# Bin widths for which x / width neither overflows nor loses bits in float32. Outside of them
# the division is done in float64, which is exact for every float32 value but slower.
MIN_FLOAT32_WIDTH = 2.0**-100
MAX_FLOAT32_WIDTH = 1.0


class Histogram:
    """Histogram, exact extremes and exact mean of each of C channels.

    Attributes:
        counts: values per bin, [C, BINS], without zeros.
        zeros: values that are exactly 0, [C]. They are counted separately, since they quantize
            without error.
        edge: outer edge of the last bin, [C]; 0 for a channel of zeros alone.
        low, high: exact extremes, [C].
        sum: sum of the values, [C].
        samples: some raw values of each channel, [C, n], the same number from every image. A bin
            can be as wide as a quantization step, and then does not tell which way a value rounds.
    """

    def __init__(self, channels: int) -> None:
        self.counts: Counts = np.zeros((channels, BINS), np.int32)
        self.zeros: Ids = np.zeros(channels, np.int64)
        self.edge: Float = np.zeros(channels)
        self.low: Float = np.full(channels, np.inf)
        self.high: Float = np.full(channels, -np.inf)
        self.sum: Float = np.zeros(channels)
        self.samples: Float32 = np.zeros((channels, 0), np.float32)
        # number of values that equal the current edge
        self._at_edge: Ids = np.zeros(channels, np.int64)
        # sums of each image's extremes, of all channels, and the number of images
        self._image_extremes: Float = np.zeros(2)
        self._images = 0

    @property
    def channel_totals(self) -> Ids:
        """Number of values counted in each channel, [C]."""
        counted = self.counts.sum(axis=1, dtype=np.int64)
        return np.asarray(counted + self.zeros)

    @property
    def total(self) -> int:
        """Number of values counted in all channels."""
        return int(self.channel_totals.sum())

    @property
    def nonzero_edge(self) -> Float:
        """`edge`, and 1 in place of 0, [C]."""
        return np.where(self.edge > 0, self.edge, 1.0)

    @property
    def bin_widths(self) -> Float:
        """Width of each channel's bins, [C]; that of an edge of 1 for a channel of zeros alone."""
        return self.nonzero_edge / HALF

    @property
    def bin_edges(self) -> Float:
        """Where the bins begin, and where the last one ends, [C, BINS + 1]."""
        return self._positions(np.arange(BINS + 1))

    @property
    def centers(self) -> Float:
        """The middle of each bin, [C, BINS]."""
        return self._positions(np.arange(0.5, BINS))

    def _positions(self, bins: Float | Ids) -> Float:
        """Values at positions counted in `bins` from the lowest edge, [C, n]."""
        relative = bins * (2 / BINS) - 1  # to the edge: -1..1
        return np.asarray(relative * self.edge[:, None])

    @property
    def magnitude(self) -> Float:
        """The largest absolute value of each channel, [C]."""
        return np.asarray(np.maximum(-self.low, self.high))

    @property
    def mean(self) -> Float:
        """Mean of each channel, [C]."""
        # at least 1, since a channel may have no values yet
        return np.asarray(self.sum / np.maximum(1, self.channel_totals))

    @property
    def power(self) -> Float:
        """Mean square of each channel, [C]."""
        return self.expectation(self.centers**2)

    def expectation(self, values: Float) -> Float:
        """Mean of a function over each channel, [C].

        The function has the given `values` [C, BINS] in each bin, and is 0 at 0.
        """
        totals = (self.counts * values).sum(axis=1)
        # at least 1, since a channel may have no values yet
        return np.asarray(totals / np.maximum(1, self.channel_totals))

    def slopes(self, function: Function) -> Float:
        """The mean slope of `function` over each bin, [C, BINS]."""
        if function is identity:
            return np.ones(self.counts.shape)
        # the secant over the bin: a derivative at its center would miss the kinks of ReLU
        rises = np.diff(function(self.bin_edges), axis=1)
        return np.asarray(rises / self.bin_widths[:, None])

    def add(
        self,
        values: Float32,
        low: Float32,
        high: Float32,
    ) -> None:
        """Count finite `values` [C, n]. `low` and `high` [C] bound them, and may reach further."""
        self.update_extremes(low, high)
        self.count_values(values)

    def update_extremes(self, low: Float32, high: Float32) -> None:
        """Extend each channel's extremes to `low` and `high`, [C]."""
        self.low = np.minimum(self.low, low)
        self.high = np.maximum(self.high, high)

    def add_image_extremes(self, low: Float32, high: Float32) -> None:
        """Take the extremes [N] of N images, each over all channels."""
        self._image_extremes += (low.sum(dtype=np.float64), high.sum(dtype=np.float64))
        self._images += len(low)

    @property
    def typical_extremes(self) -> tuple[float, float]:
        """The mean of each image's (low, high); the extremes of all where images are not known."""
        if not self._images:
            return float(self.low.min()), float(self.high.max())
        low, high = (self._image_extremes / self._images).tolist()
        return low, high

    def count_values(self, values: Float32) -> None:
        """Count finite `values` [C, n] that lie within the extremes."""
        self._widen(self.magnitude)
        self.sum += values.sum(axis=1, dtype=np.float64)
        zeros = values.shape[1] - np.count_nonzero(values, axis=1)
        self.zeros += zeros

        indices = self._flat_indices(values)
        # one bincount for all channels, since each call has a cost of its own
        counts = np.bincount(indices.reshape(-1), minlength=self.counts.size)
        by_channel = counts.reshape(self.counts.shape)
        self.counts += by_channel.astype(np.int32)
        # zeros fell into the first bin of the upper half
        self.counts[:, HALF] -= zeros
        self._track_edge_values(values)

    def _flat_indices(self, values: Float32) -> Ids:
        """Where each value [C, n] is counted in the flattened `counts`."""
        inverse = 1 / self.bin_widths[:, None]
        if self._fits_float32():
            inverse = inverse.astype(np.float32)
        # in place from here: these arrays are as large as the batch
        scaled: npt.NDArray[Any] = values * inverse
        np.floor(scaled, out=scaled)
        np.minimum(scaled, HALF - 1, out=scaled)
        indices: Ids = scaled.astype(np.int64)
        first_bins = np.arange(len(inverse)) * BINS
        indices += first_bins[:, None] + HALF
        return indices

    def _fits_float32(self) -> bool:
        """Whether value / width is exact in float32 for the widths of all channels."""
        widths = self.bin_widths
        is_small = widths.max(initial=0) <= MAX_FLOAT32_WIDTH
        is_large = widths.min(initial=1) >= MIN_FLOAT32_WIDTH
        return bool(is_small and is_large)

    def _track_edge_values(self, values: Float32) -> None:
        """Count the `values` that equal their channel's edge."""
        # no value exceeds `high`, so the values of most channels need no second look
        reaches_edge = (self.high == self.edge) & (self.edge > 0)
        channels = np.flatnonzero(reaches_edge)
        if not len(channels):
            return
        is_at_edge = values[channels] == self.edge[channels, None]
        self._at_edge[channels] += np.count_nonzero(is_at_edge, axis=1)

    def _widen(self, magnitude: Float) -> None:
        """Double the edges until they reach `magnitude` [C], and merge bins accordingly."""
        edge = _round_up_to_power_of_two(magnitude)
        for channel in np.flatnonzero(edge > self.edge):
            before = self.edge[channel]
            if before > 0:
                _, exponent = np.frexp(edge[channel] / before)  # = 0.5 * 2**exponent
                self._merge_bins(channel, doublings=int(exponent) - 1)
            self.edge[channel] = edge[channel]

    def _merge_bins(self, channel: np.intp, doublings: int) -> None:
        """Merge each 2**doublings bins of a channel into one."""
        # after so many, all values are in the two middle bins
        doublings = min(doublings, HALF.bit_length())
        from_middle = np.arange(BINS) - HALF
        target = (from_middle >> doublings) + HALF
        merged = np.zeros(BINS, self.counts.dtype)
        np.add.at(merged, target, self.counts[channel])
        # values at the old edge were in its last bin, and belong to the next one
        last = HALF + ((HALF - 1) >> doublings)
        following = HALF + (HALF >> doublings)
        merged[last] -= self._at_edge[channel]
        merged[following] += self._at_edge[channel]
        self.counts[channel] = merged
        self._at_edge[channel] = 0

    def compact(self) -> None:
        """Store the counts in the smallest integer type that holds them. Call it after counting."""
        largest = self.counts.max(initial=0)
        if largest <= np.iinfo(np.uint16).max:
            self.counts = self.counts.astype(np.uint16)

    def rescaled(self, factors: Float) -> Histogram:
        """The histogram of values / factors, for positive `factors` [C]. It shares the counts.

        Its edges need not be powers of two: do not count further values into it.
        """
        result = Histogram(len(factors))
        result.counts = self.counts
        result.zeros = self.zeros
        result.edge = self.edge / factors
        result.low = self.low / factors
        result.high = self.high / factors
        result.sum = self.sum / factors
        samples = self.samples / factors[:, None]
        result.samples = samples.astype(np.float32)
        return result


def _round_up_to_power_of_two(values: Float) -> Float:
    """The smallest power of two that is no less than each value; 0 for 0."""
    # values = mantissa * 2**exponent, 0.5 <= mantissa < 1
    mantissa, exponent = np.frexp(values)
    exponent = np.where(mantissa == 0.5, exponent - 1, exponent)
    return np.where(values > 0, np.ldexp(1.0, exponent), 0.0)
