"""What each node costs in INT8 and in float, from profiles of whole models, and the cheapest
placement by these costs.

A profile says how long each operator of the runtime took (engines/executed.py). That time goes to
the layer, or other node, that the operator computes. Operators between them, such as an activation
function that is not fused, go to the node before. What only converts or reorders is not a node's:
it is fitted as microseconds for each tensor that changes between float and INT8, and for each
of its elements.

Nodes that are alike (operator, weights, output shape) cost alike, so each gets the median of all.

The cheapest placement is a minimum cut: a node costs one time on the INT8 side and another on the
float side, and a tensor whose writer and reader are on different sides costs a conversion, once for
all its readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from repzoo.engines.executed import ExecutedOperator
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.search.min_cut import MinCut

# Names of operators, in any runtime, that compute a layer.
PRODUCTS = ("conv", "gemm", "matmul", "fullyconnected")
# Microseconds of a conversion where no profile shows one: each, and for each element.
CONVERSION = (2.0, 0.0005)
IMPOSSIBLE = 1e7  # microseconds
ROUNDING = 1e-9  # relative errors of a fit


@dataclass(frozen=True)
class Conversions:
    """Microseconds that a tensor takes to change between float and INT8."""

    each: float
    per_element: float

    def cost(self, elements: int) -> float:
        """Microseconds for a tensor of so many elements."""
        return self.each + self.per_element * elements


class NodeCosts:
    """Costs of the nodes of `space`, from the profiles that are added.

    profiles  the operators of each placement that was added, by its nodes in INT8
    """

    def __init__(self, space: PlacementSpace) -> None:
        self.profiles: dict[frozenset[str], Sequence[ExecutedOperator]] = {}
        self._space = space
        self._layers = {node.output[0] for node in space.layers}
        self._units: dict[str, onnx.NodeProto] = {}
        for node in (*space.layers, *space.around):
            self._units[node.output[0]] = node
        # by kind of node and side: microseconds
        self._times: dict[tuple[str, bool], list[float]] = {}
        # of each profile: (changing tensors, their elements, microseconds of conversions)
        self._borders: list[tuple[int, int, float]] = []
        self._float_conversions = 0.0

    def add(
        self, placement: Placement | None, operators: Sequence[ExecutedOperator]
    ) -> None:
        """A profile of the model with `placement`; None: of the float model, which comes first."""
        inside = placement.nodes if placement else frozenset()
        times, conversions = self._attribute(operators)
        for name, microseconds in times.items():
            key = (self._space.signature(self._units[name]), name in inside)
            self._times.setdefault(key, []).append(microseconds)
        if placement is None:
            self._float_conversions = conversions
            return
        self.profiles[inside] = operators
        changing = [tensor for tensor in self._tensors() if tensor.changes(inside)]
        elements = sum(tensor.elements for tensor in changing)
        extra = max(0.0, conversions - self._float_conversions)
        self._borders.append((len(changing), elements, extra))

    def cost(self, name: str, int8: bool) -> float | None:
        """Microseconds of a node on one side; None if no profile has it."""
        times = self._times.get((self._space.signature(self._units[name]), int8))
        return float(np.median(times)) if times else None

    def conversions(self) -> Conversions:
        """Fitted to the profiles by least squares, and never negative."""
        counts = np.array([border[:2] for border in self._borders], np.float64)
        times = np.array([border[2] for border in self._borders])
        if len(times) < 2 or np.linalg.matrix_rank(counts) < 2:
            return Conversions(*CONVERSION)
        fitted = np.linalg.lstsq(counts, times, rcond=None)[0]
        # What is 0 but for rounding may come out below it, on some processors.
        negligible = ROUNDING * times.max() / counts.max(axis=0)
        if (fitted < -negligible).any():
            # one of them alone explains more than both
            slope = float(times @ counts[:, 1] / (counts[:, 1] @ counts[:, 1]))
            return Conversions(0.0, slope)
        each, per_element = np.maximum(fitted, 0.0).tolist()
        return Conversions(each, per_element)

    def total(self, placement: Placement) -> float:
        """Microseconds of what placements differ in.

        A node that no profile has on one side counts as on the other: it must not look free.
        """
        conversions = self.conversions()
        total = 0.0
        for name in self._units:
            int8 = name in placement.nodes
            cost = self.cost(name, int8)
            if cost is None:
                cost = self.cost(name, not int8)
            total += cost or 0.0
        for tensor in self._tensors():
            if tensor.changes(placement.nodes):
                total += conversions.cost(tensor.elements)
        return total

    def cheapest(self, conversion_factor: float = 1.0) -> frozenset[str]:
        """The nodes in INT8 of the cheapest placement, if conversions cost that many times more."""
        tensors = list(self._tensors())
        numbers = {name: number for number, name in enumerate(self._units)}
        cut = MinCut(len(numbers) + 2 * len(tensors))
        for name, number in numbers.items():
            int8, in_float = self.cost(name, True), self.cost(name, False)
            # where one side is unknown, the neighbors decide
            if int8 is not None and in_float is not None:
                cut.add_costs(number, int8, in_float)
        conversions = self.conversions()
        for index, tensor in enumerate(tensors):
            cost = conversion_factor * conversions.cost(tensor.elements)
            spare = len(numbers) + 2 * index
            tensor.add_to(cut, numbers, spare, cost)
        chosen = cut.solve()
        return frozenset(name for name, number in numbers.items() if number in chosen)

    def _attribute(
        self, operators: Sequence[ExecutedOperator]
    ) -> tuple[dict[str, float], float]:
        """(microseconds by node, microseconds of conversions)."""
        times: dict[str, float] = {}
        conversions = 0.0
        for operator in operators:
            owner = self._owner(operator, times)
            if owner:
                times[owner] = times.get(owner, 0.0) + operator.microseconds
            else:
                conversions += operator.microseconds
        return times, conversions

    def _owner(self, operator: ExecutedOperator, done: Iterable[str]) -> str:
        """The node to which the time of `operator` goes; "" for a conversion."""
        nodes = [name for name in operator.nodes if self._space.writes(name)]
        for name in nodes:
            if name in self._layers:
                return name
        is_product = any(part in operator.kind.lower() for part in PRODUCTS)
        if is_product and nodes:
            # a layer that is called after what was fused into it
            for name in self._before(nodes[0]):
                if name in self._layers and name not in done:
                    return name
        for name in nodes:
            if name in self._units:
                return name
        before = self._before(nodes[0]) if nodes else []
        return before[0] if before else ""

    def _before(self, name: str) -> list[str]:
        """The nearest nodes of the space behind which `name` is computed, the nearest first."""
        found: list[str] = []
        seen: set[str] = set()
        pending = [name]
        while pending:
            value = pending.pop(0)
            if value in seen:
                continue
            seen.add(value)
            if value in self._units and value != name:
                found.append(value)
            if value in self._layers:
                continue
            pending.extend(self._space.sources(value))
        return found

    def _tensors(self) -> Iterable[_Tensor]:
        """The tensors that nodes of the space read or write."""
        writers = {
            self._space.written(node): name for name, node in self._units.items()
        }
        names = dict.fromkeys(writers)
        for node in self._units.values():
            names.update(dict.fromkeys(self._space.read(node)))
        for name in names:
            readers = self._space.readers(name)
            inside = tuple(reader for reader in readers if reader in self._units)
            yield _Tensor(
                writers.get(name),
                inside,
                len(inside) < len(readers),
                self._space.elements(name),
            )


@dataclass(frozen=True)
class _Tensor:
    """An activation between nodes.

    writer             the node that writes it; None: something that always computes in float
    readers            the nodes that read it
    is_read_in_float   whether something reads it that always computes in float
    """

    writer: str | None
    readers: tuple[str, ...]
    is_read_in_float: bool
    elements: int

    def changes(self, inside: frozenset[str]) -> bool:
        """Whether it changes between float and INT8 where `inside` runs in INT8."""
        int8_readers = inside.intersection(self.readers)
        if self.writer not in inside:
            return bool(int8_readers)
        return self.is_read_in_float or len(int8_readers) < len(self.readers)

    def add_to(
        self, cut: MinCut, numbers: dict[str, int], spare: int, cost: float
    ) -> None:
        """Add the cost of its conversions; `spare` and the next are numbers of no node."""
        readers = [numbers[name] for name in self.readers]
        if self.writer is None:
            cut.add_costs(spare, cost, 0.0)
        else:
            writer = numbers[self.writer]
            cut.add_border(spare, writer, cost)
            cut.add_border(writer, spare + 1, cost)
            if self.is_read_in_float:
                cut.add_costs(spare + 1, IMPOSSIBLE, 0.0)
        for reader in readers:
            # quantized, once, if a reader is in INT8; dequantized, once, if one is in float
            cut.add_border(reader, spare, IMPOSSIBLE)
            cut.add_border(spare + 1, reader, IMPOSSIBLE)
