"""Cross-layer equalization: the same function with weights whose channels are of like size.

For a channel c that layer A writes and layer B reads through a positively homogeneous operator (see channels.py), and any s > 0,

    W_A[c, :] / s,   b_A[c] / s,   W_B[:, c] * s

leave the network's function as it is. With r_A = max|W_A[c, :]| and r_B = max|W_B[:, c]| the choice s = sqrt(r_A / r_B) makes both
ranges sqrt(r_A r_B), which wastes the least of the quantization grids. Channels that a sum ties together share one s, taken from
the largest of their writers and of their readers. Repeated until nothing moves.
Source: M. Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.1.

Where sums tie channels together this has several ends. Balancing starts from the scaling of least total sum of squared weights,
which is unique (P. Stock et al., "Equi-normalization of Neural Networks", arXiv:1902.10416, theorem 1), so a network and its
rescaled twin end in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.quant.network import layers as layering
from repzoo.quant.network.channels import FIXED, ChannelGroups, link_channels
from repzoo.quant.network.layers import Layer

Float = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
ROUNDS, SETTLED = 100, 1e-3  # at most so many rounds; enough when no factor moves by more
WIDEST = 2.0**60  # of a factor, either way


@dataclass(frozen=True)
class EqualizedModel:
    """`model` computes what the given one did; tensor `t` of it is the old one divided by factors[t] [C]."""

    model: onnx.ModelProto
    factors: Mapping[str, Float]


def equalize_ranges(
    model: onnx.ModelProto, reached: Mapping[str, Float] | None = None
) -> EqualizedModel:
    """`model` (float, folded) with its channels equalized as far as its operators allow.

    reached  what opens ReLU6, see channels.linked; without it the function stays exactly, with it on images that reach as far
    """
    found = layering.find_layers(model)
    channels = link_channels(model, found, reached)
    values = layering.initializer_arrays(model)
    ends = {
        name: _Ends(one, channels, layering.weight_rows(one, values)) for name, one in found.items()
    }
    return rescale_channels(model, found, channels, _factors(ends, channels))


class _Ends:
    """A layer's weights between each input and output channel, by size, and the labels of both."""

    def __init__(self, one: Layer, channels: ChannelGroups, rows: Float) -> None:
        self.into, self.out = (
            labels_of(channels, one.source, one.in_channels),
            labels_of(channels, one.name, one.out_channels),
        )
        taps = rows.reshape(*rows.shape[:2], -1, int(np.prod(one.kernel)))
        self.peaks, self.energy = np.abs(taps).max(3), (taps**2).sum(3)  # [G, O/G, C/G]

    def _scaled(self, sizes: Float, total: Float) -> Float:
        return np.asarray(
            sizes
            * total[self.into].reshape(len(sizes), 1, -1)
            / total[self.out].reshape(len(sizes), -1, 1)
        )

    def add_peaks(self, total: Float, written: Float, read: Float) -> None:
        """Raise `written` and `read` [labels] to the largest weights of this layer, as scaled by `total`."""
        sizes = self._scaled(self.peaks, total)
        np.maximum.at(written, self.out, sizes.max(2).reshape(-1))
        np.maximum.at(read, self.into, sizes.max(1).reshape(-1))

    def add_energy(self, total: Float, written: Float, read: Float) -> None:
        """Add this layer's sums of squared weights."""
        sizes = self._scaled(self.energy, total**2)
        np.add.at(written, self.out, sizes.sum(2).reshape(-1))
        np.add.at(read, self.into, sizes.sum(1).reshape(-1))


def labels_of(channels: ChannelGroups, name: str, width: int) -> npt.NDArray[np.int64]:
    """The labels of the `width` channels of a tensor; FIXED where they are not known."""
    labels = channels.labels.get(name, np.empty(0, np.int64))
    return labels if len(labels) == width else np.full(width, FIXED)


_Add = Callable[[_Ends, Float, Float, Float], None]


def _factors(ends: Mapping[str, _Ends], channels: ChannelGroups) -> Float:
    """The factor of each label: first of least energy, which is unique, then balancing the largest weights from there."""
    sets, least = _sets(ends), np.full(channels.count, 1 / WIDEST)
    least[: len(channels.lower_bounds)] = np.maximum(channels.lower_bounds, 1 / WIDEST)
    total = _balanced(np.ones(channels.count), sets, least, _Ends.add_energy, 0.25)
    return _balanced(total, sets, least, _Ends.add_peaks, 0.5)


def _balanced(
    start: Float, sets: Sequence[tuple[Labels, list[_Ends]]], least: Float, add: _Add, power: float
) -> Float:
    """Factors of at least `least`, one set of channels after another, such that what is written and what is read are alike."""
    total = start
    for _ in range(ROUNDS):
        before = total.copy()
        for labels, touching in sets:
            written, read = np.zeros(len(total)), np.zeros(len(total))
            for one in touching:
                add(one, total, written, read)
            live = labels[(written[labels] > 0) & (read[labels] > 0)]
            total[live] = np.clip(
                total[live] * (written[live] / read[live]) ** power, least[live], WIDEST
            )
        if np.abs(np.log(total / before)).max() < SETTLED:
            break
    return total


def _sets(ends: Mapping[str, _Ends]) -> list[tuple[Labels, list[_Ends]]]:
    """Labels that may move, in the order in which layers write them, with the layers that touch each set."""
    seen: set[int] = {FIXED}
    sets = []
    for one in ends.values():
        fresh = set(one.out.tolist()) - seen
        seen |= fresh
        if fresh:
            touching = [
                other
                for other in ends.values()
                if not fresh.isdisjoint({*other.into.tolist(), *other.out.tolist()})
            ]
            sets.append((np.array(sorted(fresh), np.int64), touching))
    return sets


def rescale_channels(
    model: onnx.ModelProto, found: Mapping[str, Layer], channels: ChannelGroups, total: Float
) -> EqualizedModel:
    """`model` with label l's channels divided by total[l] (total[FIXED] is 1); every layer gets weights of its own."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    values = layering.initializer_arrays(model)
    taken = {item.name for item in made.graph.initializer}
    nodes = {node.output[0]: node for node in made.graph.node}
    for name, one in found.items():
        into, out = (
            total[labels_of(channels, *end)]
            for end in ((one.source, one.in_channels), (one.name, one.out_channels))
        )
        if (into == 1).all() and (out == 1).all():
            continue
        rows = (
            layering.weight_rows(one, values)
            * one.per_column(into)[:, None, :]
            / out.reshape(one.groups, -1, 1)
        )
        nodes[name].input[1] = _added(made, f"{one.weight}:{name}", one.from_rows(rows), taken)
        if one.bias:
            nodes[name].input[2] = _added(
                made, f"{one.bias}:{name}", layering.bias_vector(one, values) / out, taken
            )
    factors = {
        name: total[labels]
        for name, labels in channels.labels.items()
        if (total[labels] != 1).any()
    }
    return EqualizedModel(_without_unread(made), factors)


def _added(model: onnx.ModelProto, name: str, values: Float, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return name


def _without_unread(model: onnx.ModelProto) -> onnx.ModelProto:
    read = {value for node in model.graph.node for value in node.input}
    kept = [item for item in model.graph.initializer if item.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model
