"""What the certificate knows of a graph before it runs: constants, sizes, tensors with two names.

The fold has a reading of its own (graph/tools/constant_folding.py), which calculates with symbolic
sizes. A proof that used it would repeat its mistakes, so this one uses another method. Every open
size is given a number. ONNX's shape inference and ONNX's reference implementation then compute
whatever depends on constants and sizes alone. That is done twice, with different numbers: what is
the same both times does not depend on the open sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from repzoo.graph.certificate.attributes import (
    attribute,
    has_subgraph,
    integers,
    is_standard,
)
from repzoo.graph.tools.skeleton import strip_data, without_weights

Values = npt.NDArray[Any]
Shape = tuple[int, ...]

# Two numbers for each kind of open size. Heights and widths differ, so that swapping them shows.
# They are multiples of 32 * 7, so that networks with windows of 7 pixels at a stride of 32 divide
# evenly.
BATCHES = (2, 3)
HEIGHTS = (224, 672)
WIDTHS = (448, 896)
OTHER_SIDES = (6, 10)

LARGEST = 2**22  # elements of a computed value, unless one of its inputs has more
SIZE_OPERATORS = frozenset({"Shape", "Size"})

# Their outputs differ from run to run, so nothing is known of them. Dropout is here for its
# training mode.
RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


@dataclass
class Sample:
    """A graph with a number for every open size.

    values      tensors that follow from constants and sizes
    shapes      of all tensors whose shape could be inferred
    from_sizes  those of `values` that a size went into
    """

    values: dict[str, Values] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    from_sizes: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class KnownValues:
    """What is the same in every sample.

    values   computed tensors, by name
    shapes   by tensor name; 0 for a side that is open
    aliases  outputs of Reshape and Transpose that equal their input: the name of that input
    samples  what was compared
    """

    values: Mapping[str, onnx.TensorProto] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


def read_known_values(model: onnx.ModelProto, batch: int | None = None) -> KnownValues:
    """What follows from the constants and sizes of `model`, which stays as it was.

    batch  the number of images; None: any number
    """
    first = _sample(model, 0, batch, Sample())
    samples = [first]
    if _has_open_sizes(model, batch):
        # Values that no size went into are the same in both samples: they are computed once.
        constant = dict(first.values)
        for name in first.from_sizes:
            del constant[name]
        samples.append(_sample(model, 1, batch, Sample(values=constant)))
    return KnownValues(
        values=_common_values(samples),
        shapes=_common_shapes(samples),
        aliases=_common_aliases(model, samples),
        samples=samples,
    )


# --- what the samples agree on --------------------------------------------------------------------


def _common_values(samples: Sequence[Sample]) -> dict[str, onnx.TensorProto]:
    last = samples[-1].values
    common = {}
    for name, value in samples[0].values.items():
        if name in last and _is_same(value, last[name]):
            common[name] = numpy_helper.from_array(value, name)
    return common


def _is_same(value: Values, other: Values) -> bool:
    if other.dtype != value.dtype:
        return False
    is_float = value.dtype.kind == "f"
    return np.array_equal(value, other, equal_nan=is_float)


def _common_shapes(samples: Sequence[Sample]) -> dict[str, Shape]:
    last = samples[-1].shapes
    common = {}
    for name, shape in samples[0].shapes.items():
        other = last.get(name, ())
        if len(other) == len(shape):
            common[name] = _common_sides(shape, other)
    return common


def _common_sides(shape: Shape, other: Shape) -> Shape:
    """`shape` with 0 for the sides in which `other` differs."""
    sides = []
    for side, second in zip(shape, other, strict=True):
        sides.append(side if side == second else 0)
    return tuple(sides)


def _common_aliases(
    model: onnx.ModelProto,
    samples: Sequence[Sample],
) -> dict[str, str]:
    aliases = {}
    for node in model.graph.node:
        if node.op_type not in ("Reshape", "Transpose"):
            continue
        if not is_standard(node) or not node.input:
            continue
        if all(_keeps_tensor(node, sample.shapes) for sample in samples):
            aliases[node.output[0]] = node.input[0]
    return aliases


def _keeps_tensor(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> bool:
    """Whether a Reshape or Transpose gives the tensor that it reads, in the same shape."""
    before = shapes.get(node.input[0])
    after = shapes.get(node.output[0])
    if before is None or before != after:
        return False
    if node.op_type == "Reshape":
        return True
    reversed_axes = tuple(reversed(range(len(before))))
    order = integers(node, "perm", reversed_axes)
    # Sides of length 1 may move anywhere: the elements stay in order.
    long_axes = [axis for axis in order if before[axis] != 1]
    return long_axes == sorted(long_axes)


# --- one sample -----------------------------------------------------------------------------------


def _has_open_sizes(model: onnx.ModelProto, batch: int | None) -> bool:
    """Whether an input leaves a side open, apart from the first ones where `batch` is known."""
    for item in model.graph.input:
        for axis, dim in enumerate(item.type.tensor_type.shape.dim):
            is_batch = axis == 0 and batch is not None
            if not dim.HasField("dim_value") and not is_batch:
                return True
    return False


def _sample(
    model: onnx.ModelProto,
    number: int,
    batch: int | None,
    sample: Sample,
) -> Sample:
    """Sample `number` (0 or 1) of `model`, beginning with what `sample` has already."""
    shell = without_weights(model)
    _set_open_sizes(shell.graph, number, batch)
    _replace_nodes(shell.graph, sample.values)
    constants = stored_constants(model.graph)
    # A computed shape gives the next tensor its size, which another node may read. So this repeats
    # until nothing new is known.
    while True:
        sample.shapes.update(_inferred_shapes(shell))
        new = _compute(shell, constants, sample)
        if not new:
            return sample
        _replace_nodes(shell.graph, new)


def _set_open_sizes(graph: onnx.GraphProto, number: int, batch: int | None) -> None:
    """Give every open side of the inputs a number. Sides of one name get the same."""
    by_axis = (BATCHES[number], OTHER_SIDES[number], HEIGHTS[number], WIDTHS[number])
    by_name: dict[str, int] = {}
    for item in graph.input:
        for axis, dim in enumerate(item.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            size = by_axis[axis] if axis < len(by_axis) else OTHER_SIDES[number]
            if axis == 0 and batch is not None:
                size = batch
            if dim.dim_param:
                size = by_name.setdefault(dim.dim_param, size)
            dim.dim_value = size


def stored_constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers that no caller can replace, and what Constant nodes hold, by name."""
    replaceable = {item.name for item in graph.input}
    constants = {}
    for tensor in graph.initializer:
        if tensor.name not in replaceable:
            constants[tensor.name] = tensor
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None:
            constants[node.output[0]] = value.t
    return constants


def _inferred_shapes(shell: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of the tensors of `shell` that ONNX can infer completely."""
    # With data propagation ONNX follows computed sizes through the usual arithmetic, which saves
    # rounds.
    graph = onnx.shape_inference.infer_shapes(shell, data_prop=True).graph
    shapes = {}
    for item in (*graph.input, *graph.value_info, *graph.output):
        shape = _full_shape(item)
        if shape is not None:
            shapes[item.name] = shape
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes


def _full_shape(item: onnx.ValueInfoProto) -> Shape | None:
    """The shape of a tensor; None where a side is open, or the shape is not known."""
    declared = item.type.tensor_type
    if not declared.HasField("shape"):
        return None
    dims = declared.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


def _compute(
    shell: onnx.ModelProto,
    constants: Mapping[str, onnx.TensorProto],
    sample: Sample,
) -> dict[str, Values]:
    """The values that become known with the shapes of `sample`; they are added to it."""
    new: dict[str, Values] = {}
    for node in shell.graph.node:
        if all(name in sample.values or name in constants for name in node.output):
            continue
        inputs = _inputs(node, constants, sample)
        if inputs is None or not _is_small(node, inputs, sample.shapes):
            continue
        outputs = _run(node, inputs, shell)
        new.update(outputs)
        sample.values.update(outputs)
        for name, value in outputs.items():
            sample.shapes[name] = value.shape
        if _reads_sizes(node, sample):
            sample.from_sizes.update(outputs)
    return new


def _reads_sizes(node: onnx.NodeProto, sample: Sample) -> bool:
    """Whether a size goes into what `node` computes."""
    if node.op_type in SIZE_OPERATORS:
        return True
    return not sample.from_sizes.isdisjoint(node.input)


def _inputs(
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    sample: Sample,
) -> dict[str, Values] | None:
    """The inputs of `node` by name; None unless all that it computes with is known."""
    if not is_standard(node) or node.op_type in RANDOM or has_subgraph(node):
        return None
    if node.op_type in SIZE_OPERATORS:
        return _stand_in(node.input[0], sample)
    inputs = {}
    for name in filter(None, node.input):
        if name in sample.values:
            inputs[name] = sample.values[name]
        elif name in constants:
            inputs[name] = numpy_helper.to_array(constants[name])
        else:
            return None
    return inputs


def _stand_in(name: str, sample: Sample) -> dict[str, Values] | None:
    """An array that takes no memory, for a node that reads the shape of `name` only."""
    shape = sample.shapes.get(name)
    if shape is None:
        return None
    return {name: np.broadcast_to(np.float32(0), shape)}


def _is_small(
    node: onnx.NodeProto,
    inputs: Mapping[str, Values],
    shapes: Mapping[str, Shape],
) -> bool:
    """Whether the outputs of `node` have a known size, and one that may be computed."""
    sizes = [value.size for value in inputs.values()]
    limit = max([LARGEST, *sizes])
    for name in filter(None, node.output):
        shape = shapes.get(name)
        if shape is None or math.prod(shape) > limit:
            return False
    return True


def _run(
    node: onnx.NodeProto,
    inputs: Mapping[str, Values],
    shell: onnx.ModelProto,
) -> dict[str, Values]:
    """The outputs of `node` by name; nothing where ONNX's reference cannot compute them."""
    names = list(filter(None, node.output))
    try:
        model = _model_of(node, inputs, shell)
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, dict(inputs))
    # Whatever the reference raises, the node is then one that nothing is known of.
    except Exception:
        return {}
    return {name: np.asarray(value) for name, value in zip(names, results, strict=True)}


def _model_of(
    node: onnx.NodeProto,
    inputs: Mapping[str, Values],
    shell: onnx.ModelProto,
) -> onnx.ModelProto:
    """A model of `node` alone, with the opsets of `shell`."""
    declared = []
    for name, value in inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        declared.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    outputs = []
    for name in filter(None, node.output):
        outputs.append(onnx.helper.make_empty_tensor_value_info(name))
    graph = onnx.helper.make_graph([node], "node", declared, outputs)
    return onnx.helper.make_model(graph, opset_imports=shell.opset_import)


def _replace_nodes(graph: onnx.GraphProto, values: Mapping[str, Values]) -> None:
    """Put initializers in the place of the nodes that compute `values`."""
    if not values:
        return
    outputs = {item.name for item in graph.output}
    kept = [node for node in graph.node if not _is_replaced(node, values)]
    del graph.node[:]
    graph.node.extend(kept)
    for name, value in values.items():
        if name not in outputs:
            tensor = numpy_helper.from_array(value, name)
            graph.initializer.append(strip_data(tensor))


def _is_replaced(node: onnx.NodeProto, values: Mapping[str, Values]) -> bool:
    """Whether all outputs of `node` are among `values`."""
    outputs = set(node.output) - {""}
    return outputs.issubset(values)
