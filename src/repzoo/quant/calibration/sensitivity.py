"""How much quantization noise in an activation disturbs the layers that read it, per channel.

Noise with power e_c in channel c, independent between channels and positions, adds

    sum_c e_c ||W[:, c]||^2

to the output power of a layer with weights W. The layer's signal power is tr(W H W') with
H = E[x x']. The cost of a channel is the ratio of the two for e_c = 1: noise over signal in the
layer's output for a unit of noise power in the channel.

Costs of layer inputs are propagated back through the operators in front of the layer. An operator
passes noise power on by the square of its slope:

    Add, data movement                 1
    y = f(x), elementwise              E[f'(x)^2]
    y = x g                            E[g^2] for x, E[x^2] for g
    mean over n positions              1 / n
    Flatten                            the sum over the channel's pixels
    any other operator                 the mean over all channels

The costs of several consumers add up. Propagation stops at the nearest layers: it does not pass
through a layer, nor beyond a tensor that a layer reads. Adding the cost to layers further down a
residual stream gains nothing on EfficientNet-Lite0, RepGhost and FasterNet entirely in INT8, and
loses 0.7 dB on RepViT. An expectation over a tensor that was not observed is taken to be 1.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.quant.calibration.statistics import Statistics, signal_power
from repzoo.quant.network.functions import FUNCTIONS, Function, identity
from repzoo.quant.network.graph_view import GraphView, axis_of
from repzoo.quant.network.layers import Layer, initializer_arrays, weight_rows

Float = npt.NDArray[np.float64]
Values = Mapping[str, npt.NDArray[np.float32]]
Costs = dict[str, Float]
InputCosts = Iterator[tuple[str, Float]]  # a node may read the same tensor twice
# Least squared slope of an activation function. Where it is flat for all calibration images, it
# need not be flat for the next one.
MIN_SQUARED_SLOPE = 0.01


def input_sensitivity(
    layers: Iterable[Layer],
    values: Values,
    statistics: Statistics,
) -> Costs:
    """The cost of noise in each activation that one of `layers` reads, [C] by tensor name.

    Costs add up where several layers read the same activation. `values` are the initializers.
    """
    costs: Costs = {}
    for layer in layers:
        rows = weight_rows(layer, values)
        signal = signal_power(rows, statistics.moments[layer.name])
        cost = np.zeros(layer.in_channels)
        # a layer whose output is always 0 cannot be disturbed
        if signal > 0:
            by_column = (rows**2).sum(axis=1)
            cost = layer.per_channel(by_column) / signal
        costs[layer.source] = costs.get(layer.source, 0.0) + cost
    return costs


@dataclass(frozen=True)
class Sensitivity:
    """The cost of a unit of squared error in each channel of an activation.

    Attributes:
        cost: [C].
        function: the error is measured behind this function: the elementwise activation function
            that alone reads the tensor, or the identity.
    """

    cost: Float
    function: Function = identity


def activation_sensitivity(
    graph: GraphView,
    layers: Mapping[str, Layer],
    statistics: Statistics,
) -> dict[str, Sensitivity]:
    """The sensitivity of every activation from which noise reaches one of the `layers`."""
    observed = statistics.observed(layers)
    values = initializer_arrays(graph.model)
    at_inputs = input_sensitivity(observed, values, statistics)
    propagation = SensitivityPropagation(graph, layers, statistics)
    costs = propagation.propagate(at_inputs, ends=at_inputs)
    sensitivities: dict[str, Sensitivity] = {}
    for name in costs:
        sensitivity = propagation.sensitivity_of(name, costs)
        if sensitivity is not None:
            sensitivities[name] = sensitivity
    return sensitivities


class SensitivityPropagation:
    """Propagates costs from layer inputs back to the activations that they are computed from.

    Args:
        graph: the float model.
        layers: names of its layers, where propagation stops.
        statistics: histograms, from which slopes and powers of factors are estimated.
    """

    def __init__(
        self,
        graph: GraphView,
        layers: Iterable[str],
        statistics: Statistics,
    ) -> None:
        self._graph = graph
        self._histograms = statistics.histograms
        self._layers = frozenset(layers)
        self._find_ends()
        self._index_producers()

    def _find_ends(self) -> None:
        """Find the composite activations, and the outputs of nodes that are not passed."""
        graph = self._graph
        # an activation function that was exported as several nodes is passed in one step,
        # from its end to the value that it starts from
        self._composites = graph.composite_activations()
        self._composite_ends: dict[str, tuple[str, str]] = {}
        stops = set(self._layers)
        for value, composite in self._composites.items():
            self._composite_ends[composite.output] = (value, composite.kind)
            stops.update(composite.nodes)
        self._stops = stops - self._composite_ends.keys()

    def _index_producers(self) -> None:
        """Note which node computes each tensor, by position, and that node's first input."""
        self._producers: dict[str, int] = {}
        self._first_inputs: dict[str, str] = {}
        for position, node in enumerate(self._graph.nodes):
            for output in node.output:
                self._producers[output] = position
                if node.input:
                    self._first_inputs[output] = node.input[0]

    def propagate(self, at_inputs: Mapping[str, Float], ends: Collection[str]) -> Costs:
        """Costs by tensor: those `at_inputs`, [C] each, and what they imply for other tensors.

        Nothing is added to the tensors `ends`.
        """
        costs = dict(at_inputs)
        queue = _BackwardQueue(self._producers)
        for name in costs:
            queue.add(name)
        # nodes are in topological order: backward, all costs of an output are known at its node
        for position in queue:
            node = self._graph.nodes[position]
            if node.output[0] in self._stops:
                continue
            for name, cost in self._input_costs(node, costs):
                if name in ends:
                    continue
                if name in costs:
                    cost = costs[name] + cost
                costs[name] = cost
                queue.add(name)
        return costs

    def sensitivity_of(self, name: str, costs: Costs) -> Sensitivity | None:
        """The sensitivity of the activation `name`, or None if no cost depends on it.

        `costs` are those of all activations, as `propagate` returns them.
        """
        kind, end = self._function_behind(name)
        if kind in FUNCTIONS and end in costs:
            return Sensitivity(costs[end], FUNCTIONS[kind])
        if name in costs:
            return Sensitivity(costs[name])
        return None

    def deciding_tensors(self, name: str) -> tuple[str, str]:
        """The tensors whose costs `sensitivity_of` an activation depends on."""
        _, end = self._function_behind(name)
        return name, end

    def _function_behind(self, name: str) -> tuple[str, str]:
        """(operator, output) of the one function that reads `name`; ("", name) if there is none."""
        if name in self._composites:
            composite = self._composites[name]
            return composite.kind, composite.output
        consumer = self._graph.sole_consumer(name)
        if consumer is None:
            return "", name
        return consumer.op_type, consumer.output[0]

    def producing_layer(self, tensor: str) -> str:
        """The layer that `tensor` comes from, following first inputs; else the model's input."""
        while tensor not in self._layers and tensor in self._first_inputs:
            tensor = self._first_inputs[tensor]
        return tensor

    def _input_costs(self, node: onnx.NodeProto, costs: Costs) -> InputCosts:
        """(input of `node`, its cost), given the `costs` of the node's outputs."""
        output = node.output[0]
        if node.op_type == "Split" and axis_of(node) == 1:
            return self._split_costs(node, costs)
        if output not in costs:
            return iter(())
        cost = costs[output]
        if output in self._composite_ends:
            value, kind = self._composite_ends[output]
            scaled = _scale(cost, self._squared_slope(kind, value))
            return self._match_channels([value], scaled)
        if node.op_type == "Concat" and axis_of(node) == 1:
            return self._concat_costs(node, cost)
        if node.op_type in ("Mul", "Div"):
            return self._product_costs(node, cost)
        scaled = _scale(self._unflatten(node, cost), self._gain(node))
        return self._match_channels(self._graph.activations(node), scaled)

    def _split_costs(self, node: onnx.NodeProto, costs: Costs) -> InputCosts:
        """(input, cost) of a Split of channels."""
        parts: list[Float] = []
        for name in node.output:
            # noise in an output that nothing reads costs nothing
            unread = np.zeros(self._channels(name))
            parts.append(costs.get(name, unread))
        inputs = self._graph.activations(node)
        return self._match_channels(inputs, np.concatenate(parts))

    def _concat_costs(self, node: onnx.NodeProto, cost: Float) -> InputCosts:
        """(input, cost) of a Concat of channels."""
        inputs = self._graph.activations(node)
        widths = [self._channels(name) for name in node.input]
        if sum(widths) == len(cost):
            parts = np.split(cost, np.cumsum(widths)[:-1])
        else:
            # the width of some input is unknown: every input gets the costs of all channels
            parts = [cost] * len(widths)
        for name, part in zip(node.input, parts, strict=True):
            if name in inputs:
                yield from self._match_channels([name], part)

    def _product_costs(self, node: onnx.NodeProto, cost: Float) -> InputCosts:
        """(input, cost) of a Mul or Div: that of each factor depends on the power of the other."""
        inputs = self._graph.activations(node)
        # both factors may be the same tensor, whose two costs then add up
        for name, other in zip(node.input, reversed(node.input), strict=True):
            power = self._power(other, len(cost))
            if node.op_type == "Div" and name == node.input[0]:
                # a divisor may be 0 in some channel
                divisor = np.maximum(power, np.finfo(np.float32).tiny)
                power = 1 / divisor
            if name in inputs:
                yield from self._match_channels([name], cost * power)

    def _match_channels(self, names: Iterable[str], cost: Float) -> InputCosts:
        """(name, cost [C]) of each of `names`, C being the tensor's own number of channels.

        Where that differs from the length of `cost`, all channels get the mean, and a single
        channel gets the sum. A tensor of unknown width is left out.
        """
        for name in names:
            channels = self._channels(name)
            if channels == len(cost):
                yield name, cost
            elif channels == 1:
                yield name, np.full(1, cost.sum())
            elif channels:
                yield name, np.full(channels, cost.mean())

    def _channels(self, name: str) -> int:
        """Channels of an activation, from its shape or its histogram; 0 if neither is known."""
        width = self._graph.width(name)
        if width or name not in self._histograms:
            return width
        return len(self._histograms[name].low)

    def _unflatten(self, node: onnx.NodeProto, cost: Float) -> Float:
        """The `cost` of a flattening node's output, summed over the pixels of each channel."""
        pixels = self._graph.pixels_per_channel(node)
        if not pixels or len(cost) % pixels:
            return cost
        by_channel = cost.reshape(-1, pixels)
        return np.asarray(by_channel.sum(axis=1))

    def _gain(self, node: onnx.NodeProto) -> Float | float:
        """Factor by which an operator with one input changes noise power, per channel or in all."""
        if node.op_type in FUNCTIONS:
            return self._squared_slope(node.op_type, node.input[0])
        if node.op_type == "AveragePool":
            for item in node.attribute:
                if item.name == "kernel_shape":
                    return 1 / math.prod(item.ints)
        if node.op_type in ("GlobalAveragePool", "ReduceMean"):
            before = self._pixels(node.input[0])
            after = self._pixels(node.output[0])
            if before and after:
                return after / before
        return 1.0

    def _pixels(self, name: str) -> int:
        """Pixels of each channel; 0 where a size is unknown, 1 where the rank is."""
        return math.prod(self._graph.shape(name)[2:])

    def _squared_slope(self, kind: str, name: str) -> Float | float:
        """E[f'(x)^2] over each channel of the tensor `name`, [C], for the function `kind`."""
        if name not in self._histograms:
            return 1.0
        histogram = self._histograms[name]
        squares = histogram.slopes(FUNCTIONS[kind]) ** 2
        return np.maximum(histogram.expectation(squares), MIN_SQUARED_SLOPE)

    def _power(self, name: str, channels: int) -> Float:
        """E[x^2] of a factor: [channels], or [1] where it is one number or of another width."""
        if name in self._graph.constants:
            values = self._graph.values(name).astype(np.float64)
            power = np.square(values.reshape(-1))
        elif name in self._histograms:
            power = self._histograms[name].power
        else:
            power = np.ones(1)
        if len(power) not in (1, channels):
            power = np.full(1, power.mean())
        return np.asarray(power)


class _BackwardQueue:
    """Positions of nodes to visit, the last node first, each once.

    Only nodes that noise reaches are visited. Walking through the whole graph for every layer
    would take time that grows with the square of the number of nodes.
    """

    def __init__(self, producers: Mapping[str, int]) -> None:
        self._producers = producers
        self._heap: list[int] = []  # negative, since heapq returns the smallest first
        self._known: set[int] = set()

    def add(self, tensor: str) -> None:
        """Visit the node that computes `tensor`; nothing computes inputs and constants."""
        position = self._producers.get(tensor)
        if position is not None and position not in self._known:
            self._known.add(position)
            heapq.heappush(self._heap, -position)

    def __iter__(self) -> Iterator[int]:
        """Yield positions; more may be added in between, of earlier nodes only."""
        while self._heap:
            yield -heapq.heappop(self._heap)


def _scale(cost: Float, factor: Float | float) -> Float:
    """`cost` [C] times a factor for each channel, or times the mean factor if C differs."""
    if np.size(factor) not in (1, len(cost)):
        factor = float(np.mean(factor))
    return np.asarray(cost * factor)
