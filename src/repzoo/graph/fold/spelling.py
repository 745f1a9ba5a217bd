"""Before the sweeps: functions are written in the operators that engines fuse.

Exporters write one function in many ways, and an engine fuses only those that it was taught. The
executed graphs of ONNX Runtime 1.31 and OpenVINO 2026.4 show which. `yes` means that nothing is
left of a function between two convolutions but one kernel, or none.

| written as                                        | ONNX Runtime | OpenVINO |
|---------------------------------------------------|--------------|----------|
| GELU: Div, Erf, Add, Mul by x, Mul (x or all) 1/2 | yes          | yes      |
| GELU: Mul by 1/sqrt(2), or a half of 1 + erf      | no           | yes      |
| GELU by tanh: Pow, the half of x                  | yes          | yes      |
| GELU by tanh: two products for x^3                | no           | yes      |
| GELU by tanh: the half at the end                 | no           | no       |
| Gelu (opset 20)                                   | yes          | yes      |
| HardSwish (opset 14)                              | yes          | yes      |
| hard-swish: HardSigmoid, Mul                      | yes          | no       |
| hard-swish: Add, Clip, Mul, Div                   | no           | yes      |
| HardSigmoid (but a Clip is no faster there)       | yes          | no       |
| hard-sigmoid: Add, Clip, Div                      | no           | yes      |
| hard-sigmoid: the layer before, Clip to 0..1      | yes          | yes      |
| SiLU: Sigmoid, Mul                                | yes          | yes      |
| Swish (opset 24)                                  | no           | yes      |
| LeakyRelu; Relu; Clip                             | yes          | yes      |
| Mul, Max; PRelu with one slope                    | no           | yes      |
| Max with 0; Relu, Min                             | no           | no       |

The mean of each channel over the image is a GlobalAveragePool. ONNX Runtime runs that on its own
layout of blocks of channels, and converts the image for a ReduceMean.

Each function that was written anew leaves a Respelling, and the certificate compares both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from repzoo.graph.fold.fused import composites_with_nodes, fused_nodes
from repzoo.graph.fold.tensors import constant_values, rank_of
from repzoo.graph.fold.write import UsedNames
from repzoo.graph.tools.fold_result import Respelling
from repzoo.graph.tools.ir_facts import is_standard

GELU_OPSET = 20
HARD_SWISH_OPSET = 14
CLIP_OPSET = 11  # from here on its bounds are inputs
# Constants in files have 4 to 8 digits.
TOLERANCE = 2e-6
LAYERS = ("Conv", "Gemm", "BatchNormalization")


def respell(graph: ir.Graph) -> tuple[Respelling, ...]:
    """Write the functions of `graph` as engines fuse them, in place. Tensors need their shapes."""
    speller = _Speller(graph)
    fused = fused_nodes(graph)
    for node in list(graph):
        rule = NODES.get(node.op_type)
        if rule is not None and is_standard(node) and node not in fused:
            speller.apply(rule, [*_before(node), node])
    # After single nodes: a Relu and a Min may have become the Clip of a composite.
    for composite, nodes in composites_with_nodes(graph):
        rule = COMPOSITES.get(composite.kind)
        if rule is not None:
            speller.apply(rule, nodes)
    return tuple(speller.respellings)


@dataclass
class _Function:
    """A function of one tensor, as it is written and, later, as it is written anew.

    nodes   that compute it, in order; the last one computes its result
    opset   of the graph
    source  the tensor that it is a function of
    steps   the new nodes
    """

    nodes: list[ir.Node]
    opset: int
    source: ir.Value
    names: UsedNames
    steps: list[ir.Node] = field(default_factory=list)
    numbers: list[ir.Value] = field(default_factory=list)

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    def number(self, value: float) -> ir.Value:
        """A constant in the number type of the source."""
        assert self.source.dtype is not None
        name = f"{self.output.name}.number{len(self.numbers)}"
        values = np.asarray(value, self.source.dtype.numpy())
        tensor = ir.Tensor(values, name=self.names.unused(name))
        constant = ir.Value(
            name=tensor.name,
            shape=ir.Shape(()),
            type=self.source.type,
            const_value=tensor,
        )
        self.numbers.append(constant)
        return constant

    def step(
        self, operator: str, *inputs: ir.Value | float, **attributes: float | str
    ) -> ir.Value:
        """A new node; numbers among its inputs become constants. Its output."""
        operands: list[ir.Value] = []
        for item in inputs:
            operand = item if isinstance(item, ir.Value) else self.number(item)
            operands.append(operand)
        number = len(self.steps)
        node = ir.node(
            operator,
            operands,
            attributes=dict(attributes),
            name=f"{self.output.name}.{operator}{number}",
        )
        value = node.outputs[0]
        value.name = self.names.unused(f"{self.output.name}.step{number}")
        value.shape = self.source.shape
        value.type = self.source.type
        self.steps.append(node)
        return value


# Adds the steps of the new spelling, or none where the present one stays.
Rule = Callable[[_Function], object]


class _Speller:
    """Writes functions of one graph anew, and remembers which."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = UsedNames(graph)
        self.respellings: list[Respelling] = []

    def apply(self, rule: Rule, nodes: list[ir.Node]) -> None:
        """Replace `nodes`, which compute one function, if the rule has another spelling."""
        source = _source(nodes)
        is_float = source is not None and source.dtype in (
            ir.DataType.FLOAT,
            ir.DataType.FLOAT16,
            ir.DataType.DOUBLE,
        )
        if source is None or not is_float:
            return
        opset = nodes[0].version or self._graph.opset_imports.get("", 0)
        function = _Function(nodes, opset, source, self._names)
        rule(function)
        if function.steps:
            self._write(function)

    def _write(self, function: _Function) -> None:
        old = function.output
        new = function.steps[-1].outputs[0]
        new.name = old.name
        new.shape = old.shape
        new.type = old.type
        for constant in function.numbers:
            self._graph.register_initializer(constant)
        self.respellings.append(_record(function))
        ir.convenience.replace_nodes_and_values(
            self._graph,
            function.nodes[-1],
            function.nodes[::-1],
            function.steps,
            [old],
            [new],
        )
        for node in function.steps:
            self._names.add(node)


def _record(function: _Function) -> Respelling:
    constants = []
    for value in function.numbers:
        assert value.const_value is not None
        constants.append(ir.to_proto(value.const_value))
    return Respelling(
        source=str(function.source.name),
        output=str(function.output.name),
        nodes=tuple(ir.to_proto(node) for node in function.steps),
        constants=tuple(constants),
    )


def _source(nodes: list[ir.Node]) -> ir.Value | None:
    """The only tensor that `nodes` read from outside, constants aside."""
    inner = {output for node in nodes for output in node.outputs}
    sources: list[ir.Value] = []
    for node in nodes:
        for value in node.inputs:
            if value is None or value in inner or value in sources:
                continue
            if constant_values(value) is None:
                sources.append(value)
    return sources[0] if len(sources) == 1 else None


def _before(node: ir.Node) -> list[ir.Node]:
    """The node before a Max or Min that may belong to its function."""
    wanted = {"Max": "Mul", "Min": "Relu"}.get(node.op_type)
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if value is None or producer is None or producer.op_type != wanted:
            continue
        if len(value.uses()) == 1 and not value.is_graph_output():
            return [producer]
    return []


# --- the rules ------------------------------------------------------------------------------------


def _numbers(node: ir.Node) -> list[float]:
    """The constants of one element that a node reads."""
    numbers: list[float] = []
    for value in node.inputs:
        values = constant_values(value)
        if values is not None and values.size == 1:
            numbers.append(float(values.reshape(())))
    return numbers


def _holds(nodes: list[ir.Node], expected: list[float]) -> bool:
    """Whether the constants of `nodes` are these, in any order."""
    actual = sorted(number for node in nodes for number in _numbers(node))
    if len(actual) != len(expected):
        return False
    pairs = zip(actual, sorted(expected), strict=True)
    return all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12) for a, b in pairs)


def _half_of_sum(nodes: list[ir.Node]) -> bool:
    """Whether the 1/2 multiplies 1 + erf or 1 + tanh."""
    sums = [node for node in nodes if node.op_type == "Add" and 1.0 in _numbers(node)]
    for node in nodes:
        reads_sum = any(value.producer() in sums for value in node.inputs if value)
        if reads_sum and _numbers(node):
            return True
    return False


def _gelu(function: _Function) -> None:
    root = math.sqrt(2)
    divisors: list[float] = []
    for node in function.nodes:
        if node.op_type == "Div":
            divisors += _numbers(node)
    ends_in_division = 2.0 in divisors
    divides = len(divisors) > ends_in_division
    half = 2 if ends_in_division else 0.5
    if not _holds(function.nodes, [root if divides else 1 / root, 1, half]):
        return
    if function.opset >= GELU_OPSET:
        function.step("Gelu", function.source)
        return
    if divides and not ends_in_division and not _half_of_sum(function.nodes):
        return
    erf = function.step("Erf", function.step("Div", function.source, root))
    product = function.step("Mul", function.source, function.step("Add", erf, 1))
    function.step("Mul", product, 0.5)


def _gelu_by_tanh(function: _Function) -> None:
    factor = math.sqrt(2 / math.pi)
    cube = 0.044715
    has_power = any(node.op_type == "Pow" for node in function.nodes)
    halves = [node for node in function.nodes if 0.5 in _numbers(node)]
    in_front = bool(halves) and function.source in halves[0].inputs
    power = [3.0] if has_power else []
    if not _holds(function.nodes, [*power, cube, factor, 1, 0.5]):
        return
    x = function.source
    if function.opset >= GELU_OPSET:
        function.step("Gelu", x, approximate="tanh")
        return
    if has_power and in_front and not _half_of_sum(function.nodes):
        return
    scaled = function.step("Mul", function.step("Pow", x, 3), cube)
    inner = function.step("Mul", function.step("Add", x, scaled), factor)
    total = function.step("Add", function.step("Tanh", inner), 1)
    function.step("Mul", function.step("Mul", x, 0.5), total)


def _hard_swish(function: _Function) -> None:
    if function.opset < HARD_SWISH_OPSET:
        return
    gate = [node for node in function.nodes if node.op_type == "HardSigmoid"]
    if gate:
        slope, shift = _slope_and_shift(gate[0])
        is_swish = math.isclose(slope, 1 / 6, rel_tol=TOLERANCE) and shift == 0.5
    else:
        is_sixth = any(node.op_type == "Div" for node in function.nodes)
        is_swish = _holds(function.nodes, [3, 0, 6, 6 if is_sixth else 1 / 6])
    if is_swish:
        function.step("HardSwish", function.source)


def _hard_sigmoid(function: _Function) -> None:
    """As the layer before it, scaled and shifted, and a Clip. A layer that nobody else reads."""
    layer = function.source.producer()
    is_read_once = len(function.source.uses()) == 1
    if layer is None or layer.op_type not in LAYERS or not is_standard(layer):
        return
    if not is_read_once or function.source.is_graph_output():
        return
    if function.opset < CLIP_OPSET:
        return
    is_sixth = any(node.op_type == "Div" for node in function.nodes)
    if _holds(function.nodes, [3, 0, 6, 6 if is_sixth else 1 / 6]):
        scaled = function.step("Mul", function.source, 1 / 6)
        function.step("Clip", function.step("Add", scaled, 0.5), 0, 1)


def _slope_and_shift(node: ir.Node) -> tuple[float, float]:
    """Of a HardSigmoid. Defaults: ONNX operator HardSigmoid-6."""
    slope = node.attributes.get("alpha")
    shift = node.attributes.get("beta")
    return (
        0.2 if slope is None else slope.as_float(),
        0.5 if shift is None else shift.as_float(),
    )


def _swish(function: _Function) -> None:
    slope = function.nodes[0].attributes.get("alpha")
    if slope is None or slope.as_float() == 1:
        gate = function.step("Sigmoid", function.source)
        function.step("Mul", function.source, gate)


def _maximum(function: _Function) -> None:
    """Max(x, 0), or Max(x, slope * x)."""
    *product, node = function.nodes
    numbers = _numbers(node)
    if not product and len(node.inputs) == 2 and numbers == [0.0]:
        function.step("Relu", function.source)
    slope = _numbers(product[0]) if product else []
    reads_source = function.source in node.inputs
    if slope and 0 < slope[0] < 1 and reads_source and len(node.inputs) == 2:
        function.step("LeakyRelu", function.source, alpha=slope[0])


def _minimum(function: _Function) -> None:
    """Min(Relu(x), high)."""
    *relu, node = function.nodes
    numbers = _numbers(node)
    is_clip = bool(relu) and len(node.inputs) == 2 and len(numbers) == 1
    if is_clip and numbers[0] > 0 and function.opset >= CLIP_OPSET:
        function.step("Clip", function.source, 0, numbers[0])


def _parametric_relu(function: _Function) -> None:
    """A PRelu with one slope."""
    slope = _numbers(function.nodes[0])
    if slope:
        function.step("LeakyRelu", function.source, alpha=slope[0])


def _spatial_mean(function: _Function) -> None:
    """The mean over height and width, both kept with length 1."""
    (node,) = function.nodes
    keeps = node.attributes.get("keepdims")
    if rank_of(function.source) != 4 or (keeps is not None and not keeps.as_int()):
        return
    stored = node.attributes.get("axes")
    if stored is not None:
        axes = list(stored.as_ints())
    else:
        values = constant_values(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if values is None else [int(axis) for axis in values.reshape(-1)]
    if sorted(axis % 4 for axis in axes) == [2, 3]:
        function.step("GlobalAveragePool", function.source)


COMPOSITES: dict[str, Rule] = {
    "Gelu": _gelu,
    "GeluTanh": _gelu_by_tanh,
    "HardSwish": _hard_swish,
    "HardSigmoid": _hard_sigmoid,
}
NODES: dict[str, Rule] = {
    "Swish": _swish,
    "Max": _maximum,
    "Min": _minimum,
    "PRelu": _parametric_relu,
    "ReduceMean": _spatial_mean,
}
