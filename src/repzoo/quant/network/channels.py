"""Which channels of which tensors must be scaled together, so that the network's function stays the same.

A channel's factor passes through operators that are positively homogeneous, channel by channel: f(x / s) = f(x) / s for s > 0.
ReLU, LeakyReLU and pooling are; so is a sum of tensors scaled alike, a product with a gate that has a number for each channel
(squeeze-and-excitation), joining or cutting channels, and flattening, which makes a channel of each pixel. A layer of weights ends
what comes in (its columns take the factor up) and begins what goes out (its rows do).

ReLU6 is homogeneous below 6: min(x / s, 6) = min(x, 6 s) / s. A channel that stayed below 6 / REACH on every calibration image is
free as long as 6 s stays above REACH times what it reached, so `least` holds the factors from below; one that saturates is fixed.
So no operator is added, and the function is the same on the calibration images and wherever a channel reaches no more than REACH
times as far; beyond, the channel is cut at 6 s and not at 6, which the INT8 tensor's own range does anyway. (Nagel et al.,
arXiv:1906.04721, section 5.1.1, put ReLU in place of ReLU6 throughout, which is another function; per-channel bounds, Min with a
constant vector, would be exact, and an operator that no engine fuses into the convolution.)

That seldom pays: on EfficientNet-Lite0 with one scale a tensor (128 calibration images) the logits' signal-to-noise ratio is 18.7 dB
without and 16.9 dB with it, 17.9 dB unequalized. So ReLU6 is opened by a rung of its own, which selection images must prefer.

Hard-swish, SiLU, GELU and sigmoid bend everywhere: f(x / s) is no multiple of f(x) for any s but 1. Scaling around them would take
a Mul by channel before and after, two passes over memory that INT8 came to save. They hold their channels still; what is linear on
either side of them (the residual stream, the depthwise chain before) is equalized up to there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.network.graph_view import GraphView, axis_of
from repzoo.quant.network.layers import Layer

Ids = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
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
REACH = (
    1.25  # how far beyond what calibration images reached a channel must still pass a ReLU6 uncut
)


@dataclass(frozen=True)
class ChannelGroups:
    """labels[tensor] [C]: channels of one label share one factor; label 0 is fixed. `count` labels, 0 included.

    least  [count]: the smallest factor that a label may take, 0 where any will do; empty where there is no such bound
    """

    labels: Mapping[str, Ids]
    count: int
    lower_bounds: Float = field(default_factory=lambda: np.zeros(0))


def link_channels(
    model: onnx.ModelProto, layers: Mapping[str, Layer], reached: Mapping[str, Float] | None = None
) -> ChannelGroups:
    """The channels of every activation of `model`, labeled; `layers` are those whose weights may be rewritten.

    reached  the largest value of each channel [C] of some tensors on calibration images; only outputs of ReLU6 are asked for, and
             one that is not given holds still
    """
    graph = _Graph(GraphView(model), layers, reached or {})
    for node in model.graph.node:
        graph.link(node)
    for value in (*model.graph.input, *model.graph.output):
        graph.fix(value.name)
    return graph.solved()


class _Graph:
    """Numbers for the channels of each tensor, and pairs of numbers that must be equal."""

    def __init__(
        self, wiring: GraphView, layers: Mapping[str, Layer], reached: Mapping[str, Float]
    ) -> None:
        self.wiring, self.layers, self.reached = wiring, layers, reached
        self.numbers: dict[str, Ids] = {}
        self.next = 1
        self.pairs: list[tuple[Ids, Ids]] = []
        self.bounds: list[tuple[Ids, Float]] = []

    def of(self, name: str) -> Ids:
        """The numbers of a tensor's channels; a tensor of unknown width has one, which is fixed."""
        if name not in self.numbers:
            width = self.wiring.width(name)
            self.numbers[name] = (
                np.arange(self.next, self.next + width) if width else np.zeros(1, np.int64)
            )
            self.next += width
        return self.numbers[name]

    def fix(self, *names: str) -> None:
        for name in names:
            if name and name not in self.wiring.constants:
                self.pairs.append((self.of(name), np.zeros(len(self.of(name)), np.int64)))

    def equal(self, one: Ids, two: Ids) -> bool:
        if len(one) == len(two):
            self.pairs.append((one, two))
        return len(one) == len(two)

    def link(self, node: onnx.NodeProto) -> None:
        """Record what `node` asks of its channels; what it does not understand is fixed."""
        if node.output[0] in self.layers:
            one = self.layers[node.output[0]]
            if len(self.of(one.source)) != one.in_channels:
                self.fix(one.source)
            if len(self.of(one.name)) != one.out_channels:
                self.fix(one.name)
        elif not self._passes(node):
            self.fix(*node.input, *node.output)

    def _passes(self, node: onnx.NodeProto) -> bool:
        kind, out = node.op_type, node.output[0]
        if (
            kind in THROUGH
            or (kind == "Clip" and self.wiring.clip_bounds(node) == (0, None))
            or self.wiring.flattens_pixels(node)
        ):
            return self.equal(self.of(node.input[0]), self.of(out)) and not any(node.output[1:])
        if pixels := self.wiring.pixels_per_channel(node):
            return self.equal(np.repeat(self.of(node.input[0]), pixels), self.of(out))
        if (
            kind == "Clip"
            and (top := self._top(node)) > 0
            and len(self.reached.get(out, ())) == len(self.of(out))
        ):
            return self._passes_below(top, self.of(node.input[0]), self.of(out), self.reached[out])
        if kind == "Add" and len(self.wiring.activations(node)) == len(node.input):
            return all(self.equal(self.of(name), self.of(out)) for name in node.input)
        if kind == "Mul" and (gated := self.wiring.gated_input(node)):
            self.fix(*(name for name in node.input if name != gated))
            return self.equal(self.of(gated), self.of(out))
        if kind == "Concat" and axis_of(node) == 1:
            return self.equal(np.concatenate([self.of(name) for name in node.input]), self.of(out))
        if kind == "Split" and axis_of(node) == 1:
            return self.equal(
                np.concatenate([self.of(name) for name in node.output]), self.of(node.input[0])
            )
        return False

    def _top(self, node: onnx.NodeProto) -> float:
        """u of a Clip that is min(max(x, 0), u), else 0."""
        low, high = self.wiring.clip_bounds(node)
        return high if low == 0 and high is not None else 0.0

    def _passes_below(self, top: float, before: Ids, after: Ids, reached: Float) -> bool:
        """A ReLU6: channels that stay below `top` are tied and bounded, the others fixed."""
        if len(before) != len(after):
            return False
        free = reached * REACH <= top
        self.pairs.append((before, np.where(free, after, FIXED)))
        self.pairs.append((after, np.where(free, before, FIXED)))
        self.bounds.append((after[free], np.maximum(reached[free], 0.0) * REACH / top))
        return True

    def solved(self) -> ChannelGroups:
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
        least = np.zeros(len(kept))
        for numbers, bounds in self.bounds:
            np.maximum.at(least, compact[numbers], bounds)
        least[FIXED] = 0
        return ChannelGroups(
            {name: compact[numbers] for name, numbers in self.numbers.items()}, len(kept), least
        )
