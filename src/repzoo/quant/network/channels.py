"""Which channels must be scaled together so that the network's function stays the same.

A factor passes through operators that are positively homogeneous channel by channel:

    f(x / s) = f(x) / s    for s > 0

These are ReLU, LeakyReLU and pooling; a sum of tensors with equal factors; a product with a gate
that has one number per channel (squeeze-and-excitation); joining and splitting channels;
flattening, which makes a channel of each pixel. A layer with weights ends the channels that come
in (its columns absorb the factor) and begins those that go out (its rows do).

ReLU6, hard-swish, SiLU, GELU and sigmoid are not homogeneous. Their channels are fixed. What is
linear on either side of them (the residual stream, the depthwise chain before) is equalized up
to there. Equalizing through ReLU6 was tried and removed: docs/decisions/10-stages-removed.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.network.graph_view import GraphView, axis_of
from repzoo.quant.network.layers import Layer

Ids = npt.NDArray[np.int64]

# Operators of one input whose output channel c depends on input channel c alone, homogeneously.
THROUGH = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "Dropout",
    }
)
FIXED = 0  # the label of channels that must not be scaled


@dataclass(frozen=True)
class ChannelGroups:
    """Channels that share a factor.

    Attributes:
        labels: tensor name -> label of each channel [C]. Equal labels share one factor; label 0
            is fixed.
        count: number of labels, label 0 included.
    """

    labels: Mapping[str, Ids]
    count: int

    def labels_of(self, name: str, width: int) -> Ids:
        """The labels of the `width` channels of a tensor; FIXED if they are unknown."""
        labels = self.labels.get(name)
        if labels is None or len(labels) != width:
            return np.full(width, FIXED)
        return labels


def link_channels(model: onnx.ModelProto, layers: Mapping[str, Layer]) -> ChannelGroups:
    """Label the channels of every activation of `model`.

    `layers` are those whose weights may be rewritten, by output name.
    """
    links = _ChannelLinks(GraphView(model), layers)
    for node in model.graph.node:
        links.add_node(node)
    for value in (*model.graph.input, *model.graph.output):
        links.fix(value.name)
    return links.groups()


class _ChannelLinks:
    """A number for every channel of every tensor, and pairs of numbers that must be equal.

    Attributes:
        view: the graph.
        layers: those whose weights may be rewritten, by output name.
        numbers: of each tensor's channels, [C].
        next_number: the first that no channel has.
        pairs: arrays of equal length; channels at the same place are tied.
    """

    def __init__(self, view: GraphView, layers: Mapping[str, Layer]) -> None:
        self.view = view
        self.layers = layers
        self.numbers: dict[str, Ids] = {}
        self.next_number = FIXED + 1
        self.pairs: list[tuple[Ids, Ids]] = []

    def of(self, name: str) -> Ids:
        """The channel numbers of a tensor [C]. One of unknown width gets the fixed number [1]."""
        if name not in self.numbers:
            self.numbers[name] = self._new_numbers(self.view.width(name))
        return self.numbers[name]

    def _new_numbers(self, width: int) -> Ids:
        """Numbers that no channel has yet, [width]; the fixed number for an unknown width of 0."""
        if not width:
            return np.full(1, FIXED, np.int64)
        first = self.next_number
        self.next_number += width
        return np.arange(first, self.next_number)

    def fix(self, *names: str) -> None:
        """Forbid scaling the channels of these tensors."""
        for name in names:
            if not name or name in self.view.constants:
                continue
            numbers = self.of(name)
            fixed = np.full(len(numbers), FIXED, np.int64)
            self.pairs.append((numbers, fixed))

    def equate(self, first: Ids, second: Ids) -> bool:
        """Tie channels pairwise. False if there are not equally many."""
        if len(first) != len(second):
            return False
        self.pairs.append((first, second))
        return True

    def add_node(self, node: onnx.NodeProto) -> None:
        """Record what `node` requires. Channels of unknown operators are fixed."""
        layer = self.layers.get(node.output[0])
        if layer is not None:
            self._add_layer(layer)
        elif not self._add_homogeneous(node):
            self.fix(*node.input, *node.output)

    def _add_layer(self, layer: Layer) -> None:
        """A layer ties nothing. It fixes a tensor whose width is unknown or does not match."""
        if len(self.of(layer.source)) != layer.in_channels:
            self.fix(layer.source)
        if len(self.of(layer.name)) != layer.out_channels:
            self.fix(layer.name)

    def _add_homogeneous(self, node: onnx.NodeProto) -> bool:
        """Tie the channels of a homogeneous operator. False for any other operator."""
        source, output = node.input[0], node.output[0]
        if self._keeps_channels(node):
            tied = self.equate(self.of(source), self.of(output))
            # a second output, such as a Dropout's mask, does not scale
            has_one_output = not any(node.output[1:])
            return tied and has_one_output
        pixels = self.view.pixels_per_channel(node)
        if pixels:
            per_pixel = np.repeat(self.of(source), pixels)
            return self.equate(per_pixel, self.of(output))
        if node.op_type == "Add":
            return self._add_sum(node)
        if node.op_type == "Mul":
            return self._add_gate(node)
        if axis_of(node) != 1:
            return False
        if node.op_type == "Concat":
            parts = self._joined(node.input)
            return self.equate(parts, self.of(output))
        if node.op_type == "Split":
            parts = self._joined(node.output)
            return self.equate(parts, self.of(source))
        return False

    def _keeps_channels(self, node: onnx.NodeProto) -> bool:
        """Whether output channel c is a homogeneous function of input channel c."""
        if node.op_type == "Clip":
            # bounded on one side only, it is ReLU; ReLU6 is not homogeneous
            return self.view.clip_bounds(node) == (0, None)
        return node.op_type in THROUGH or self.view.leaves_one_pixel(node)

    def _joined(self, names: Sequence[str]) -> Ids:
        """The channel numbers of several tensors one after another."""
        return np.concatenate([self.of(name) for name in names])

    def _add_sum(self, node: onnx.NodeProto) -> bool:
        """A sum of activations: all of them have the factor of the sum."""
        # a constant that is added would have to be scaled too
        if len(self.view.activations(node)) < len(node.input):
            return False
        output = self.of(node.output[0])
        # a term of another width is broadcast over the channels, and cannot be tied
        return all(self.equate(self.of(name), output) for name in node.input)

    def _add_gate(self, node: onnx.NodeProto) -> bool:
        """A product with a gate: the gated input passes its factor on, the gate is fixed."""
        gated = self.view.gated_input(node)
        if not gated:
            return False
        for name in node.input:
            if name != gated:
                self.fix(name)
        return self.equate(self.of(gated), self.of(node.output[0]))

    def groups(self) -> ChannelGroups:
        """One label for each connected component of all pairs."""
        least = self._least_connected()
        components, compact = np.unique(least, return_inverse=True)
        by_name: dict[str, Ids] = {}
        for name, numbers in self.numbers.items():
            by_name[name] = compact[numbers]
        return ChannelGroups(by_name, len(components))

    def _least_connected(self) -> Ids:
        """The least number that each number is connected with."""
        labels: Ids = np.arange(self.next_number)
        changed = True
        # Each round carries the least number one link further, then jumps along what is known, so
        # few rounds are needed.
        while changed:
            before = labels.copy()
            for first, second in self.pairs:
                first_labels = labels[first]
                second_labels = labels[second]
                least = np.minimum(first_labels, second_labels)
                for side in (first_labels, second_labels, first, second):
                    np.minimum.at(labels, side, least)
            labels = labels[labels]
            changed = bool((labels != before).any())
        return labels
