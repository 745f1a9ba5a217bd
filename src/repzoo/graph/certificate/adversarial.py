"""Specimens: each kind of expression that was folded, with adversarial BatchNorms in the place of the model's own.

A wrong rule can hide behind a model's numbers: beside a variance of 100, a forgotten epsilon of 1e-5 is less than the rounding of
a weight. In a specimen it cannot: variances lie at, below and far above epsilon and at zero, scales are positive, negative and
zero, means are large. A border of constants (borders.py) keeps the BatchNorm that it belongs to. Two expressions are of one kind
when they differ in channel counts and values only; the one with the fewest weights stands for all. gamma is in proportion to the
deviation, so that no number type overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.graph.certificate.index import TensorIndex
from repzoo.graph.certificate.operators import integer
from repzoo.graph.certificate.proof import TrainingForm, changed_nodes

VARIANCES = (1.0, 0.0, 1e-3, 1e4)  # times epsilon
SIGNS = (1.0, -1.0, 0.0)
MEANS = (100.0, -1.0, 0.0, -100.0, 1.0)
SHIFTS = (0.5, -0.25)
ROUNDS = len(VARIANCES) * len(SIGNS)  # channels in which every variance meets every sign

Place = tuple[
    onnx.NodeProto, list[onnx.NodeProto], TensorIndex
]  # a folded node, the nodes that it replaces, in order, and their graph


def adversarial_cases(
    before: onnx.ModelProto, after: onnx.ModelProto, origin: TrainingForm
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """(kind, a model of one expression) for each kind in `before` that holds a BatchNormalization and that `after` folded."""
    new = TensorIndex.of(after.graph)
    for kind, (node, inside, old) in _smallest(after, origin, new).items():
        source, shape = old.resolve(node.input[0]), origin.probe(node, new)
        if shape is None:
            continue
        for turn in range(0, ROUNDS, max(1, _fewest_channels(inside, old))):
            yield kind, _model(before, old, source, inside, shape, turn)


def _smallest(
    after: onnx.ModelProto, origin: TrainingForm, new: TensorIndex
) -> Mapping[str, Place]:
    """For each kind, the expression with the fewest weights."""
    found: dict[str, tuple[int, Place]] = {}
    for node in changed_nodes(after, origin, new):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        old = origin.before(node)
        source = old.resolve(node.input[0])
        inside = old.between(source, old.resolve(node.output[0]))
        if any(item.op_type == "BatchNormalization" for item in inside):
            size = sum(_size(name, old) for item in inside for name in item.input)
            kind = _kind(inside, source, old)
            if kind not in found or size < found[kind][0]:
                found[kind] = size, (node, inside, old)
    return {kind: place for kind, (_, place) in found.items()}


def _kind(inside: list[onnx.NodeProto], source: str, index: TensorIndex) -> str:
    """What the expression is, but for channel counts and values."""
    numbers, lines = {source: 0}, []
    for node in inside:
        settings = {
            item.name: item.SerializeToString(deterministic=True)
            for item in node.attribute
            if item.name != "group"
        }
        groups = min(integer(node, "group", 1), 2)
        read = [
            numbers[name] if name in numbers else list(_dims(name, index)[2:])
            for name in node.input
        ]
        numbers |= {name: len(numbers) + place for place, name in enumerate(node.output)}
        lines.append((node.op_type, groups, sorted(settings.items()), read))
    return repr(lines)


def _dims(name: str, index: TensorIndex) -> tuple[int, ...]:
    held = index.constants.get(name)
    return tuple(held.dims) if held is not None else ()


def _size(name: str, index: TensorIndex) -> int:
    return math.prod(_dims(name, index)) if name in index.constants else 0


def _fewest_channels(inside: list[onnx.NodeProto], index: TensorIndex) -> int:
    return min(
        _size(node.input[1], index) for node in inside if node.op_type == "BatchNormalization"
    )


def _model(
    before: onnx.ModelProto,
    index: TensorIndex,
    source: str,
    inside: list[onnx.NodeProto],
    shape: tuple[int, ...],
    turn: int,
) -> onnx.ModelProto:
    """The expression as a model of its own; `turn` is the kind of BatchNorm in its first channel."""
    nodes = []
    stored = {
        name: index.constants[name]
        for node in inside
        for name in node.input
        if name in index.constants
    }
    types = [
        item.data_type
        for item in stored.values()
        if item.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    ]
    kept = {name: _named(item, name) for name, item in stored.items()}
    for number, node in enumerate(inside):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if copy.op_type == "BatchNormalization" and not _is_framed(node, inside):
            own = [f"{name}.{number}.{place}" for place, name in enumerate(node.input[1:])]
            copy.input[1:] = own
            kept |= dict(zip(own, _adverse(node, index, turn + number, own), strict=True))
        nodes.append(copy)
    value = onnx.helper.make_tensor_value_info
    target = inside[-1].output[0]
    inputs, outputs = [value(source, types[0], shape)], [value(target, types[0], None)]
    read = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes, "specimen", inputs, outputs, [item for name, item in kept.items() if name in read]
    )
    return onnx.helper.make_model(
        graph, opset_imports=before.opset_import, ir_version=before.ir_version
    )


def _is_framed(node: onnx.NodeProto, inside: list[onnx.NodeProto]) -> bool:
    """Whether constants that are written around what `node` gives are those that its own parameters give."""
    writes = any(other.op_type == "ScatterND" for other in inside)
    return writes and any(
        other.op_type == "Pad" and other.input[0] == node.output[0] for other in inside
    )


def _named(item: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(item)
    copy.name = name
    return copy


def _adverse(
    node: onnx.NodeProto, index: TensorIndex, turn: int, names: list[str]
) -> list[onnx.TensorProto]:
    """gamma, beta, mean, variance in the type of the node's own."""
    held = index.constants[node.input[1]]
    epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
    channels = np.arange(math.prod(held.dims)) + turn
    sign, shift, mean, variance = (
        np.take(values, channels, mode="wrap") for values in (SIGNS, SHIFTS, MEANS, VARIANCES)
    )
    variance = variance * epsilon
    values = sign * np.sqrt(variance + epsilon), shift, mean, variance
    dtype = onnx.helper.tensor_dtype_to_np_dtype(held.data_type)
    return [
        numpy_helper.from_array(np.asarray(item).astype(dtype), name)
        for item, name in zip(values, names, strict=True)
    ]
