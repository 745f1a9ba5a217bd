"""Cross-layer equalization: the same function with channels of similar weight ranges.

For a channel c that layer A writes and layer B reads through a positively homogeneous operator
(network/channels.py), and any s > 0,

    W_A[c, :] / s,   b_A[c] / s,   W_B[:, c] * s

leave the network's function unchanged. With r_A = max|W_A[c, :]| and r_B = max|W_B[:, c]|, the
choice s = sqrt(r_A / r_B) makes both ranges sqrt(r_A r_B), which wastes the least of both
quantization grids. Channels tied by a sum share one s, from the largest of their writers and of
their readers. This is repeated until nothing moves. Source: M. Nagel et al., "Data-Free
Quantization through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.1.

With ties the result depends on the start. Balancing therefore starts from the scaling of least
total sum of squared weights, which is unique (P. Stock et al., "Equi-normalization of Neural
Networks", arXiv:1902.10416, theorem 1): a network and a rescaled copy of it give the same
result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.graph.tools.onnx_edit import add_initializer, remove_unused_initializers
from repzoo.protobuf_stream import clone
from repzoo.quant.network.channels import FIXED, ChannelGroups, link_channels
from repzoo.quant.network.layers import (
    Layer,
    bias_vector,
    find_layers,
    initializer_arrays,
    weight_rows,
)

Float = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

MAX_ROUNDS = 100
CONVERGED = 1e-3  # largest change of a log factor in the last round
MAX_FACTOR = 2.0**60  # and the smallest factor is its inverse


@dataclass(frozen=True)
class EqualizedModel:
    """A rescaled model.

    Attributes:
        model: computes the same function.
        factors: tensor name -> [C]. The tensor is the original one divided by these. Tensors that
            did not change are left out.
    """

    model: onnx.ModelProto
    factors: Mapping[str, Float]


def equalize_ranges(model: onnx.ModelProto) -> EqualizedModel:
    """`model` (float, folded) with its channels equalized as far as its operators allow."""
    layers = find_layers(model)
    channels = link_channels(model, layers)
    values = initializer_arrays(model)
    magnitudes: list[_LayerMagnitudes] = []
    for layer in layers.values():
        rows = weight_rows(layer, values)
        magnitudes.append(_LayerMagnitudes(layer, channels, rows))
    factors = _balancing_factors(magnitudes, channels)
    return rescale_channels(model, layers, channels, factors)


def rescale_channels(
    model: onnx.ModelProto,
    layers: Mapping[str, Layer],
    channels: ChannelGroups,
    factors: Float,
) -> EqualizedModel:
    """`model` with the channels of label l divided by factors[l]. factors[FIXED] is 1.

    Every changed layer gets weights of its own: an initializer may be shared.
    """
    rescaled = clone(model)
    values = initializer_arrays(model)
    names = set(values)
    nodes = {node.output[0]: node for node in rescaled.graph.node}
    for name, layer in layers.items():
        into = factors[channels.labels_of(layer.source, layer.in_channels)]
        out = factors[channels.labels_of(name, layer.out_channels)]
        if (into == 1).all() and (out == 1).all():
            continue
        node = nodes[name]
        weight = _rescaled_weight(layer, weight_rows(layer, values), into, out)
        node.input[1] = add_initializer(
            rescaled.graph,
            f"{layer.weight}:{name}",
            weight.astype(np.float32),
            names,
        )
        if layer.bias:
            bias = bias_vector(layer, values) / out
            node.input[2] = add_initializer(
                rescaled.graph,
                f"{layer.bias}:{name}",
                bias.astype(np.float32),
                names,
            )
    remove_unused_initializers(rescaled.graph)
    return EqualizedModel(rescaled, _changed_tensors(channels, factors))


def _changed_tensors(channels: ChannelGroups, factors: Float) -> dict[str, Float]:
    """The factors [C] of each tensor that has any other than 1."""
    changed: dict[str, Float] = {}
    for name, labels in channels.labels.items():
        own = factors[labels]
        if (own != 1).any():
            changed[name] = own
    return changed


def _rescaled_weight(
    layer: Layer,
    rows: Float,
    into: Float,
    out: Float,
) -> Float:
    """A layer's weights with factors `into` [C] and `out` [O], in the initializer's shape."""
    scaled = rows * layer.per_column(into)[:, None, :]
    scaled = scaled / out.reshape(layer.groups, -1, 1)
    return layer.from_rows(scaled)


class _LayerMagnitudes:
    """Size of a layer's weights between each input and output channel, and the labels of both.

    Attributes:
        into, out: labels of input channels [C] and output channels [O].
        peaks: largest magnitude over the kernel [G, O/G, C/G].
        energy: sum of squares over the kernel [G, O/G, C/G].
    """

    def __init__(
        self,
        layer: Layer,
        channels: ChannelGroups,
        rows: Float,
    ) -> None:
        self.into = channels.labels_of(layer.source, layer.in_channels)
        self.out = channels.labels_of(layer.name, layer.out_channels)
        taps = layer.taps_of(rows)
        self.peaks = np.abs(taps).max(axis=3)
        self.energy = (taps**2).sum(axis=3)

    def _by_group(self, values: Float) -> Float:
        """`values` of input or output channels as [G, channels/G]."""
        return values.reshape(len(self.peaks), -1)

    def add_peaks(
        self, factors: Float, written: Float | None, read: Float | None
    ) -> None:
        """Raise `written` and `read` [labels] to this layer's largest rescaled weights."""
        into = self._by_group(factors[self.into])
        out = self._by_group(factors[self.out])
        if written is not None:
            by_output = (self.peaks * into[:, None, :]).max(axis=2) / out
            np.maximum.at(written, self.out, by_output.reshape(-1))
        if read is not None:
            by_input = (self.peaks / out[:, :, None]).max(axis=1) * into
            np.maximum.at(read, self.into, by_input.reshape(-1))

    def add_energy(
        self, factors: Float, written: Float | None, read: Float | None
    ) -> None:
        """Add this layer's sums of squared rescaled weights to `written` and `read` [labels]."""
        into = self._by_group(factors[self.into]) ** 2
        out = self._by_group(factors[self.out]) ** 2
        if written is not None:
            by_output = (self.energy @ into[:, :, None])[:, :, 0] / out
            np.add.at(written, self.out, by_output.reshape(-1))
        if read is not None:
            by_input = (1 / out[:, None, :] @ self.energy)[:, 0] * into
            np.add.at(read, self.into, by_input.reshape(-1))


@dataclass(frozen=True)
class _Member:
    """A layer that has labels of a set.

    Attributes:
        layer: the layer.
        writes, reads: whether its outputs or its inputs have them. The other side is not summed,
            which takes most of the time.
    """

    layer: _LayerMagnitudes
    writes: bool
    reads: bool


_AddSizes = Callable[[_LayerMagnitudes, Float, Float | None, Float | None], None]
# Labels that are balanced together, and the layers that they belong to.
_LabelSet = tuple[Labels, list[_Member]]


def _balancing_factors(
    magnitudes: Sequence[_LayerMagnitudes], channels: ChannelGroups
) -> Float:
    """The factor of each label."""
    label_sets = _label_sets(magnitudes)
    start = np.ones(channels.count)
    # Energies are squares of magnitudes, hence the power of 1/4 and not 1/2.
    least_energy = _balance(start, label_sets, _LayerMagnitudes.add_energy, 0.25)
    return _balance(least_energy, label_sets, _LayerMagnitudes.add_peaks, 0.5)


def _balance(
    start: Float,
    label_sets: Sequence[_LabelSet],
    add_sizes: _AddSizes,
    power: float,
) -> Float:
    """Factors that make what is written and what is read alike, one label set after another.

    s = (written / read)^power for each label, until no log factor changes by CONVERGED.
    """
    factors = start
    # Not allocated anew for each label set: a long network has as many labels as label sets.
    written = np.zeros(len(factors))
    read = np.zeros(len(factors))
    for _ in range(MAX_ROUNDS):
        before = factors.copy()
        for labels, members in label_sets:
            # only these entries are read below
            written[labels] = 0
            read[labels] = 0
            for member in members:
                into_written = written if member.writes else None
                into_read = read if member.reads else None
                add_sizes(member.layer, factors, into_written, into_read)
            # channels whose weights are all 0 on one side stay as they are
            is_live = (written[labels] > 0) & (read[labels] > 0)
            live = labels[is_live]
            ratio = written[live] / read[live]
            balanced = factors[live] * ratio**power
            factors[live] = np.clip(balanced, 1 / MAX_FACTOR, MAX_FACTOR)
        changes = np.abs(np.log(factors / before))
        if changes.max() < CONVERGED:
            break
    return factors


def _label_sets(magnitudes: Sequence[_LayerMagnitudes]) -> list[_LabelSet]:
    """The labels that each layer is the first to write, with all layers that they belong to."""
    touching: dict[int, list[int]] = {}  # label -> positions of the layers that have it
    for position, layer in enumerate(magnitudes):
        labels = {*layer.into.tolist(), *layer.out.tolist()}
        for label in labels:
            touching.setdefault(label, []).append(position)

    known: set[int] = {FIXED}
    label_sets: list[_LabelSet] = []
    for layer in magnitudes:
        fresh = set(layer.out.tolist()) - known
        known |= fresh
        if not fresh:
            continue
        positions: set[int] = set()
        for label in fresh:
            positions.update(touching[label])
        members: list[_Member] = []
        for position in sorted(positions):
            other = magnitudes[position]
            writes = not fresh.isdisjoint(other.out.tolist())
            reads = not fresh.isdisjoint(other.into.tolist())
            members.append(_Member(other, writes, reads))
        label_sets.append((np.array(sorted(fresh), np.int64), members))
    return label_sets
