"""Which channels of which tensors must be scaled together, so that the network's function stays the same.

A channel's factor passes through operators that are positively homogeneous, channel by channel: f(x / s) = f(x) / s for s > 0.
ReLU, LeakyReLU and pooling are; so is a sum of tensors scaled alike, a product with a gate that has a number for each channel
(squeeze-and-excitation), and joining or cutting channels. ReLU6, hard-swish, GELU and sigmoid are not, and hold their channels
still. A layer of weights ends what comes in (its columns take the factor up) and begins what goes out (its rows do).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.layers import Layer, constants

Ids = npt.NDArray[np.int64]
THROUGH = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout"})
FIXED = 0  # the label of channels that must not be scaled


@dataclass(frozen=True)
class Channels:
    """labels[tensor] [C]: channels of one label share one factor; label 0 is fixed. `count` labels, 0 included."""

    labels: Mapping[str, Ids]
    count: int


def linked(model: onnx.ModelProto, layers: Mapping[str, Layer]) -> Channels:
    """The channels of every activation of `model`, labelled; `layers` are those whose weights may be rewritten."""
    graph = _Graph(model, layers)
    for node in model.graph.node:
        graph.link(node)
    for value in (*model.graph.input, *model.graph.output):
        graph.fix(value.name)
    return graph.solved()


class _Graph:
    """Numbers for the channels of each tensor, and pairs of numbers that must be equal."""

    def __init__(self, model: onnx.ModelProto, layers: Mapping[str, Layer]) -> None:
        self.layers, self.constants = layers, constants(model)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        self.shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in values}
        self.numbers: dict[str, Ids] = {}
        self.next = 1
        self.pairs: list[tuple[Ids, Ids]] = []

    def of(self, name: str) -> Ids:
        """The numbers of a tensor's channels; a tensor of unknown width has one, which is fixed."""
        if name not in self.numbers:
            shape = self.shapes.get(name, [])
            width = shape[1] if len(shape) > 1 and shape[1] > 0 else 0
            self.numbers[name] = np.arange(self.next, self.next + width) if width else np.zeros(1, np.int64)
            self.next += width
        return self.numbers[name]

    def fix(self, *names: str) -> None:
        for name in names:
            if name and name not in self.constants:
                self.pairs.append((self.of(name), np.zeros(len(self.of(name)), np.int64)))

    def equal(self, one: Ids, two: Ids) -> bool:
        if len(one) == len(two):
            self.pairs.append((one, two))
        return len(one) == len(two)

    def link(self, node: onnx.NodeProto) -> None:
        """Record what `node` asks of its channels; what it does not understand is fixed."""
        if node.output[0] in self.layers:
            one = self.layers[node.output[0]]
            if len(self.of(one.source)) != one.inputs:
                self.fix(one.source)
            if len(self.of(one.name)) != one.outputs:
                self.fix(one.name)
        elif not self._passes(node):
            self.fix(*node.input, *node.output)

    def _passes(self, node: onnx.NodeProto) -> bool:
        kind, out = node.op_type, node.output[0]
        if kind in THROUGH or (kind == "Clip" and self._is_relu(node)) or self._flattens_pixels(node):
            return self.equal(self.of(node.input[0]), self.of(out)) and not any(node.output[1:])
        if kind == "Add" and not any(name in self.constants for name in node.input):
            return all(self.equal(self.of(name), self.of(out)) for name in node.input)
        if kind == "Mul" and (gated := self._gated(node)):
            self.fix(*(name for name in node.input if name != gated))
            return self.equal(self.of(gated), self.of(out))
        if kind == "Concat" and self._axis(node) == 1:
            return self.equal(np.concatenate([self.of(name) for name in node.input]), self.of(out))
        if kind == "Split" and self._axis(node) == 1:
            return self.equal(np.concatenate([self.of(name) for name in node.output]), self.of(node.input[0]))
        return False

    def _is_relu(self, node: onnx.NodeProto) -> bool:
        """Whether a Clip is max(x, 0)."""
        if any(item.name in ("min", "max") for item in node.attribute):
            return False
        low, high = [*node.input[1:], "", ""][:2]
        return low in self.constants and not self.constants[low].any() and not high

    def _flattens_pixels(self, node: onnx.NodeProto) -> bool:
        """Whether it turns [N, C, 1, 1] into [N, C] or back, or takes means over pixels alone."""
        before, after = self.shapes.get(node.input[0], []), self.shapes.get(node.output[0], [])
        if node.op_type == "ReduceMean":
            return len(before) == 4 and len(after) in (2, 4) and before[1] == after[1] > 0 and all(d == 1 for d in after[2:])
        if node.op_type not in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
            return False
        known = len(before) > 1 and len(after) > 1 and before[1] == after[1] > 0
        return known and all(d == 1 for d in (*before[2:], *after[2:]))

    def _gated(self, node: onnx.NodeProto) -> str:
        """The input of a Mul whose other input is one number for each channel; "" where there is none."""
        sizes = {name: self.shapes.get(name, []) for name in node.input if name not in self.constants}
        gates = [name for name, shape in sizes.items() if len(shape) == 4 and shape[2:] == [1, 1]]
        others = [name for name in sizes if name not in gates]
        return others[0] if len(gates) == len(others) == 1 else ""

    def _axis(self, node: onnx.NodeProto) -> int:
        return next((item.i for item in node.attribute if item.name == "axis"), 0)

    def solved(self) -> Channels:
        labels: Ids = np.arange(self.next)
        changed = True
        while changed:  # each round carries the least number one link further and jumps along what is known: few are needed
            before = labels.copy()
            for one, two in self.pairs:
                least = np.minimum(labels[one], labels[two])
                for side in (labels[one], labels[two], one, two):
                    np.minimum.at(labels, side, least)
            labels = labels[labels]
            changed = bool((labels != before).any())
        kept, compact = np.unique(labels, return_inverse=True)
        return Channels({name: compact[numbers] for name, numbers in self.numbers.items()}, len(kept))
