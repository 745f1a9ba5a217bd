"""A range for every activation of a placement: chosen one by one, then shared where values move."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from repzoo.quant.calibration.histogram import Histogram
from repzoo.quant.calibration.sensitivity import Sensitivity, activation_sensitivity
from repzoo.quant.calibration.statistics import Statistics
from repzoo.quant.network.graph_view import GraphView
from repzoo.quant.network.layers import find_layers
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import DATA_MOVEMENT, QuantScheme
from repzoo.quant.parameters.input_alignment import align_to_pixel_values
from repzoo.quant.parameters.ranges import ChosenRange, choose_range

ChosenRanges = Mapping[str, ChosenRange]  # of each activation
# Operators whose results are within 0..1, and their range in INT8. One that clips the few largest
# values by a little multiplies all that they gate: EfficientNet-B0 loses 3 dB on its logits by such
# ranges, and nothing by this one.
SIGMOIDS = ("Sigmoid", "HardSigmoid")
WEIGHING_METHODS = ("auto", "mse")  # those that compare losses
SIGMOID_RANGE = ChosenRange("function", (0.0, 1.0))


def choose_ranges(
    model: onnx.ModelProto,
    placement: Placement,
    statistics: Statistics,
    scheme: QuantScheme,
    method: str,
) -> ChosenRanges:
    """A range for every activation that `placement` quantizes; of int16, all observed values.

    Args:
        model: the float model.
        placement: what is quantized.
        statistics: of `model`.
        scheme: number formats of the target.
        method: see `ranges.choose_range`.
    """
    return RangeChooser(model, statistics, scheme).choose(placement, method)


class RangeChooser:
    """`choose_ranges` for several placements and methods on one float model.

    What does not depend on them is computed once, and only where a method weighs losses: the
    sensitivities take most of the time.
    """

    def __init__(
        self, model: onnx.ModelProto, statistics: Statistics, scheme: QuantScheme
    ) -> None:
        self.model = model
        self._statistics = statistics
        self._scheme = scheme
        self._graph = GraphView(model)
        self._input_name = model.graph.input[0].name
        self._chosen: dict[tuple[str, str], ChosenRange] = {}  # (tensor, method)

    @functools.cached_property
    def _sensitivities(self) -> Mapping[str, Sensitivity]:
        layers = find_layers(self.model)
        return activation_sensitivity(self._graph, layers, self._statistics)

    def choose(self, placement: Placement, method: str) -> ChosenRanges:
        """See `choose_ranges`."""
        chosen: dict[str, ChosenRange] = {}
        for name in placement.tensors:
            if name in placement.nodes and self._is_sigmoid(name):
                chosen[name] = SIGMOID_RANGE
                continue
            own_method = "minmax" if name in placement.int16_tensors else method
            key = (name, own_method)
            if key not in self._chosen:
                self._chosen[key] = self._choose_one(name, own_method)
            chosen[name] = self._chosen[key]
        return _share_ranges(self._graph, placement, chosen)

    def _is_sigmoid(self, name: str) -> bool:
        producer = self._graph.producers.get(name)
        return producer is not None and producer.op_type in SIGMOIDS

    def _choose_one(self, name: str, method: str) -> ChosenRange:
        histogram = self._statistics.histograms[name]
        # noise that reaches no layer counts alike in all channels
        sensitivity = Sensitivity(np.ones(len(histogram.low)))
        if method in WEIGHING_METHODS:
            sensitivity = self._sensitivities.get(name, sensitivity)
        chosen = choose_range(histogram, sensitivity, method, self._scheme)
        if name == self._input_name and method in WEIGHING_METHODS:
            return _align_input_range(histogram, sensitivity, chosen, self._scheme)
        return chosen


def _align_input_range(
    histogram: Histogram,
    sensitivity: Sensitivity,
    chosen: ChosenRange,
    scheme: QuantScheme,
) -> ChosenRange:
    """`chosen`, aligned with the values of pixels where the scheme allows any range."""
    # a vendor tool that cannot search for ranges could not reproduce this one either
    low, _ = chosen.bounds
    if "mse" not in scheme.range_methods or scheme.is_symmetric(low):
        return chosen
    aligned = align_to_pixel_values(histogram, sensitivity.cost, chosen.bounds)
    if aligned == chosen.bounds:
        return chosen
    return ChosenRange(f"{chosen.method}, aligned", aligned)


def _share_ranges(
    graph: GraphView,
    placement: Placement,
    chosen: Mapping[str, ChosenRange],
) -> ChosenRanges:
    """`chosen` with one range on both sides of every operator that only moves data.

    Values on the steps of the first range are then on those of the second, and are not rounded a
    second time. A tensor that only a Concat reads takes the range of the Concat's output. Where
    that has no pair of its own, all that the Concat joins takes one range that covers them.
    """
    ranges = dict(chosen)
    concats: list[onnx.NodeProto] = []
    movers: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.output[0] not in placement.nodes:
            continue
        if node.op_type == "Concat":
            concats.append(node)
        elif node.op_type in (*DATA_MOVEMENT, "MaxPool"):
            movers.append(node)
    # backward, so that a Concat that feeds another Concat passes on the range of the last one
    for node in reversed(concats):
        if node.output[0] not in ranges:
            _join_ranges(ranges, graph.before_moves(node.output[0], placement.nodes))
            continue
        inputs = [name for name in node.input if graph.sole_consumer(name) is node]
        _copy_range(ranges, node.output[0], inputs)
    for node in movers:
        _copy_range(ranges, node.input[0], node.output)
    for name, source in placement.moved:
        ranges[name] = ranges[source]
    return ranges


def _join_ranges(ranges: dict[str, ChosenRange], names: Iterable[str]) -> None:
    """Give those of `names` that have a range the smallest one that covers all of theirs."""
    joined = [name for name in names if name in ranges]
    if len(joined) < 2:
        return
    bounds = [ranges[name].bounds for name in joined]
    low = min(low for low, _ in bounds)
    high = max(high for _, high in bounds)
    for name in joined:
        method = ranges[name].method
        if ranges[name].bounds != (low, high):
            method = f"{method}, joined"
        ranges[name] = ChosenRange(method, (low, high))


def _copy_range(
    ranges: dict[str, ChosenRange],
    source: str,
    targets: Iterable[str],
) -> None:
    """Give the range of `source` to those of `targets` that have one."""
    if source not in ranges:
        return
    for target in targets:
        if target in ranges:
            ranges[target] = ranges[source]
