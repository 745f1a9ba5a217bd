"""Adversarial cases: every kind of folded expression, with hostile BatchNorm parameters.

The numbers of a model can hide a wrong rule: beside a variance of 100, a forgotten epsilon of 1e-5
is less than the rounding of a weight. Here they cannot. Variances lie at, below and far above
epsilon, and at zero. Scales are positive, negative and zero. Means are large. gamma is in
proportion to the deviation, so that no number type overflows. Where the graph holds the border
constants of a BatchNorm (ScatterND), it keeps its own parameters: the constants belong to them.

Two expressions are of one kind when they differ in channel counts and values only. The one with the
fewest weights stands for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from repzoo.graph.certificate.attributes import integer, real
from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.training_form import TrainingForm
from repzoo.graph.certificate.unchanged import changed_nodes
from repzoo.protobuf_stream import clone

VARIANCES = (1.0, 0.0, 1e-3, 1e4)  # times epsilon
SIGNS = (1.0, -1.0, 0.0)
MEANS = (100.0, -1.0, 0.0, -100.0, 1.0)
SHIFTS = (0.5, -0.25)
COMBINATIONS = len(VARIANCES) * len(SIGNS)  # every variance meets every sign


@dataclass(frozen=True)
class _Expression:
    """What a folded node replaces.

    index   of the training form
    source  the tensor that it reads
    nodes   in order; the last computes the tensor of the folded node
    shape   of a probe of `source`
    """

    index: TensorIndex
    source: str
    nodes: Sequence[onnx.NodeProto]
    shape: tuple[int, ...]

    @property
    def batch_norms(self) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == "BatchNormalization"]

    @property
    def inputs(self) -> list[str]:
        """What its nodes read; a tensor that two of them read comes twice."""
        names: list[str] = []
        for node in self.nodes:
            names += node.input
        return names

    @property
    def constants(self) -> dict[str, TensorProto]:
        """The constants that its nodes read, by name."""
        constants = {}
        for name in self.inputs:
            if name in self.index.constants:
                constants[name] = self.index.constants[name]
        return constants

    @property
    def weights(self) -> int:
        """How many numbers its nodes read."""
        return sum(map(self._size, self.inputs))

    @property
    def fewest_channels(self) -> int:
        """The channels of its narrowest BatchNormalization."""
        scales = [node.input[1] for node in self.batch_norms]
        return min(map(self._size, scales))

    def kind(self) -> str:
        """What the expression is, apart from channel counts and values."""
        # Tensors are numbered, for their names say nothing.
        numbers: dict[str, int | list[int]] = {self.source: 0}
        lines = []
        for node in self.nodes:
            inputs = []
            for name in node.input:
                inputs.append(numbers.get(name, self._kernel_sides(name)))
            for position, name in enumerate(node.output):
                numbers[name] = len(numbers) + position
            is_grouped = integer(node, "group", 1) > 1
            lines.append((node.op_type, is_grouped, _attributes(node), inputs))
        return repr(lines)

    def _size(self, name: str) -> int:
        """How many numbers a constant has; 0 for another tensor."""
        tensor = self.index.constants.get(name)
        if tensor is None:
            return 0
        return math.prod(tensor.dims)

    def _kernel_sides(self, name: str) -> list[int]:
        """The sides of a constant that are no channel counts."""
        tensor = self.index.constants.get(name)
        if tensor is None:
            return []
        return list(tensor.dims[2:])


def _attributes(node: onnx.NodeProto) -> list[tuple[str, bytes]]:
    """All but the groups, which are a channel count."""
    attributes = []
    for item in node.attribute:
        if item.name != "group":
            attributes.append((item.name, item.SerializeToString(deterministic=True)))
    return sorted(attributes)


def adversarial_cases(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    origin: TrainingForm,
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """(kind, a model of one expression) for each kind of folded expression with a BatchNorm."""
    for kind, expression in _smallest_of_each_kind(after, origin).items():
        # A narrow expression has too few channels for all combinations: it comes several times.
        step = max(1, expression.fewest_channels)
        for first in range(0, COMBINATIONS, step):
            yield kind, _model(before, expression, first)


def _smallest_of_each_kind(
    after: onnx.ModelProto,
    origin: TrainingForm,
) -> Mapping[str, _Expression]:
    new = TensorIndex.of(after.graph)
    smallest: dict[str, _Expression] = {}
    for node in changed_nodes(after, origin, new):
        expression = _expression(node, origin, new)
        if expression is None or not expression.batch_norms:
            continue
        kind = expression.kind()
        if kind not in smallest or expression.weights < smallest[kind].weights:
            smallest[kind] = expression
    return smallest


def _expression(
    node: onnx.NodeProto,
    origin: TrainingForm,
    new: TensorIndex,
) -> _Expression | None:
    """What the folded `node` replaces; None if it is no fold."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    shape = origin.probe_shape(node, new)
    if shape is None:
        return None
    index = origin.index_for(node)
    source = index.resolve(node.input[0])
    target = index.resolve(node.output[0])
    return _Expression(index, source, index.between(source, target), shape)


def _model(
    before: onnx.ModelProto,
    expression: _Expression,
    first: int,
) -> onnx.ModelProto:
    """The expression as a model of its own.

    first  the combination in the first channel of the first node; a later node begins with a later
           combination
    """
    initializers = {}
    for name, tensor in expression.constants.items():
        initializers[name] = _copy_with_name(tensor, name)
    nodes = []
    for number, node in enumerate(expression.nodes):
        copy = clone(node)
        nodes.append(copy)
        is_norm = node.op_type == "BatchNormalization"
        if is_norm and not _has_border(node, expression.nodes):
            hostile = _hostile_parameters(node, expression.index, first + number)
            initializers |= _replace_parameters(copy, hostile, number)
    element_type = _float_type(expression.constants.values())
    value_info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "adversarial_case",
        [value_info(expression.source, element_type, expression.shape)],
        [value_info(nodes[-1].output[0], element_type, None)],
        _read_by(nodes, initializers),
    )
    return onnx.helper.make_model(
        graph, opset_imports=before.opset_import, ir_version=before.ir_version
    )


def _replace_parameters(
    norm: onnx.NodeProto, parameters: Sequence[TensorProto], number: int
) -> dict[str, TensorProto]:
    """Let `norm`, node `number` of its model, read `parameters`, in place; these by new names."""
    by_name = {}
    for index, tensor in enumerate(parameters):
        # Two BatchNorms that share a parameter get values of their own.
        tensor.name = f"{norm.input[index + 1]}.{number}.{index}"
        norm.input[index + 1] = tensor.name
        by_name[tensor.name] = tensor
    return by_name


def _read_by(
    nodes: Iterable[onnx.NodeProto],
    initializers: Mapping[str, TensorProto],
) -> list[TensorProto]:
    """Those of `initializers` that a node reads."""
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
    return [tensor for name, tensor in initializers.items() if name in read]


def _float_type(tensors: Iterable[TensorProto]) -> int:
    """The element type of the first of `tensors` that is no index and no size."""
    types = [item.data_type for item in tensors]
    integers = (TensorProto.INT64, TensorProto.INT32)
    return next(kind for kind in types if kind not in integers)


def _has_border(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether constants around the output of `node` follow from its own parameters."""
    has_scatter = False
    is_padded = False
    for other in nodes:
        has_scatter |= other.op_type == "ScatterND"
        is_padded |= other.op_type == "Pad" and other.input[0] == node.output[0]
    return has_scatter and is_padded


def _copy_with_name(tensor: TensorProto, name: str) -> TensorProto:
    copy = clone(tensor)
    copy.name = name
    return copy


def _hostile_parameters(
    node: onnx.NodeProto,
    index: TensorIndex,
    first: int,
) -> list[TensorProto]:
    """gamma, beta, mean and variance in the number type of those of `node`."""
    own = index.constants[node.input[1]]
    epsilon = real(node, "epsilon", 1e-5)
    combinations = first + np.arange(math.prod(own.dims))
    variance = np.take(VARIANCES, combinations, mode="wrap") * epsilon
    deviation = np.sqrt(variance + epsilon)
    gamma = np.take(SIGNS, combinations, mode="wrap") * deviation
    beta = np.take(SHIFTS, combinations, mode="wrap")
    mean = np.take(MEANS, combinations, mode="wrap")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(own.data_type)
    parameters = (gamma, beta, mean, variance)
    return [numpy_helper.from_array(values.astype(dtype)) for values in parameters]
