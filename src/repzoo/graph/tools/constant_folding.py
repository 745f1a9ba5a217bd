"""Constant folding: what a graph computes from constants and known shapes becomes an initializer.

Known are a node whose inputs are all known, Shape of a tensor with known sides, the sizes that
symbolic_sizes.py follows, and the target of a Reshape that leaves at most one side open. The batch
may stay open. The arithmetic is that of ONNX's reference implementation, so a value is what a
runtime would compute. Folding and shape inference take turns until nothing new is known: a pad
that was computed gives the next tensor its size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx.reference import ReferenceEvaluator

from repzoo.errors import InputError
from repzoo.graph.tools.ir_facts import constant_tensor, is_standard
from repzoo.graph.tools.ir_model import to_ir
from repzoo.graph.tools.symbolic_sizes import (
    Size,
    Sizes,
    have_same_shape,
    is_made_up,
    reshape_target,
    sizes_in,
)
from repzoo.printable import one_line

Values = npt.NDArray[Any]

# Elements that a value may have where its inputs have fewer. A table that an attention looks up has
# about 10^5; an Expand to the size of an image batch must stay a node.
SMALL = 2**18
# The same for values that are only looked at, never written.
LARGE = 2**22
_LAYOUT = {
    "Identity",
    "Cast",
    "Reshape",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Concat",
    "Slice",
    "Gather",
    "Expand",
}
_SIZES = {
    "ConstantOfShape",
    "Range",
    "ReduceProd",
    "Where",
    "Equal",
    "Greater",
    "Less",
    "Not",
    "And",
    "Or",
    "Mod",
    "Ceil",
    "Floor",
}
_ARITHMETIC = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Pow",
    "Min",
    "Max",
    "Clip",
}
# Weight standardization normalizes weights, some exporters by a BatchNormalization.
_STANDARDIZATION = {"ReduceMean", "ReduceSum", "BatchNormalization"}
_PURE = frozenset(_LAYOUT | _SIZES | _ARITHMETIC | _STANDARDIZATION)


def fold_constants(model: ir.Model, limit: int = SMALL) -> dict[str, ir.TensorProtocol]:
    """Infer shapes and make an initializer of every known value, in place; the values by name.

    limit  elements that a value may have where its inputs have fewer

    Raises:
        InputError: types or shapes contradict each other.
    """
    folded: dict[str, ir.TensorProtocol] = {}
    infer_shapes(model)
    while new := _fold_until_stable(model, limit):
        folded |= new
        _forget_made_up_shapes(model)
        infer_shapes(model)
    return folded


def values_at_batch_size(
    model: onnx.ModelProto, batch: int
) -> dict[str, onnx.TensorProto]:
    """The known values of `model`, large ones too, with `batch` images where it leaves that open.

    `model` stays as it is.
    """
    sized = to_ir(model)
    _fix_batch(sized.graph, batch)
    values = fold_constants(sized, LARGE)
    return {name: ir.to_proto(tensor) for name, tensor in values.items()}


def shape_preserving_input(node: ir.Node) -> ir.Value | None:
    """The input of a node that returns its elements in the same order and shape; else None.

    That is a Reshape to the shape that its input has, or a Transpose that only moves sides of 1.
    """
    if not _is_reshape(node) and not _moves_only_ones(node):
        return None
    source = node.inputs[0]
    if source is None or not have_same_shape(source, node.outputs[0]):
        return None
    return source


def infer_shapes(model: ir.Model) -> None:
    """Infer the shapes and types of all tensors, in place.

    Raises:
        InputError: they contradict each other.
    """
    with _captured_log("onnx_ir.passes.common.shape_inference") as records:
        passes.ShapeInferencePass()(model)
    for record in records:
        if record.exc_info:
            reason = one_line(record.exc_info[1])
            raise InputError(
                "types or shapes in the graph contradict each other, so no runtime can hold to "
                f"them: {reason}"
            )


@contextmanager
def _captured_log(name: str) -> Iterator[list[logging.LogRecord]]:
    """What a library logs in this block, kept from the terminal.

    The pass reports a failure of ONNX's inference in no other way.
    """
    records: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        """Store a record, and keep it from the handlers."""
        records.append(record)
        return False

    logger = logging.getLogger(name)
    logger.addFilter(keep)
    try:
        yield records
    finally:
        logger.removeFilter(keep)


def _fix_batch(graph: ir.Graph, batch: int) -> None:
    """Set the first side of every input that leaves it open."""
    for value in graph.inputs:
        if value.shape is None or not len(value.shape):
            continue
        first, *others = value.shape
        if not isinstance(first, int):
            value.shape = ir.Shape((batch, *others))


def _forget_made_up_shapes(model: ir.Model) -> None:
    """Unset shapes with sides that inference made up a name for.

    It may know them now, and would not look again.
    """
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None or value.is_graph_output():
                continue
            if any(is_made_up(side) for side in value.shape):
                value.shape = None


def _fold_until_stable(model: ir.Model, limit: int) -> dict[str, ir.TensorProtocol]:
    """Fold what can be known before shapes are inferred again, which takes longer."""
    folded: dict[str, ir.TensorProtocol] = {}
    while new := _known(model, limit):
        for name, (node, tensor) in new.items():
            _replace(model.graph, node, tensor)
            folded[name] = tensor
    return folded


def _known(model: ir.Model, limit: int) -> dict[str, tuple[ir.Node, ir.TensorProtocol]]:
    """The known values that are no constants yet, by name, each with the node that computes it."""
    sizes = sizes_in(model.graph)
    values = _known_sizes(sizes)
    values |= _reshape_targets(model, sizes)
    foldable: dict[ir.Value, ir.Node] = {}
    for node in model.graph:
        output = node.outputs[0]
        if output not in values and _is_foldable(node, limit, values, foldable):
            foldable[output] = node
    values |= _compute(model, foldable, values)
    known = {}
    for value, array in values.items():
        producer = value.producer()
        if producer is not None:
            known[str(value.name)] = (producer, ir.tensor(array, name=value.name))
    return known


def _known_sizes(sizes: Sizes) -> dict[ir.Value, Values]:
    """The tensors of sizes of which no size is open."""
    values: dict[ir.Value, Values] = {}
    for value, held in sizes.items():
        array = _as_array(value, held)
        if array is not None:
            values[value] = array
    return values


def _as_array(value: ir.Value, sizes: list[Size]) -> Values | None:
    """A tensor of sizes as an array; None if a size is open, or the shape is not known."""
    if value.is_graph_output() or value.shape is None or not value.shape.is_static():
        return None
    numbers = [size for size in sizes if isinstance(size, int)]
    shape = value.shape.numpy()
    has_open = len(numbers) < len(sizes)
    if has_open or math.prod(shape) != len(numbers):
        return None
    return np.asarray(numbers, np.int64).reshape(shape)


def _reshape_targets(model: ir.Model, sizes: Sizes) -> dict[ir.Value, Values]:
    """Constants for the computed shapes that only Reshapes read and mean the same to each."""
    shapes: dict[ir.Value, None] = {}
    for node in model.graph:
        if _is_reshape(node) and node.inputs[1] is not None:
            shapes[node.inputs[1]] = None
    targets: dict[ir.Value, Values] = {}
    for shape in shapes:
        target = _common_target(shape, sizes)
        if target is not None:
            targets[shape] = np.asarray(target, np.int64)
    return targets


def _common_target(shape: ir.Value, sizes: Sizes) -> list[int] | None:
    """Constants that mean the same as `shape` to all that read it; None if none do."""
    if shape.is_graph_output():
        return None
    targets = []
    for use in shape.uses():
        if not _is_reshape(use.node) or use.idx != 1:
            return None
        targets.append(reshape_target(use.node, sizes))
    first, *others = targets
    return first if all(other == first for other in others) else None


def _is_reshape(node: ir.Node) -> bool:
    """Whether `node` is a Reshape whose shape is an input, as since opset 5."""
    return node.op_type == "Reshape" and is_standard(node) and len(node.inputs) > 1


def _moves_only_ones(node: ir.Node) -> bool:
    """Whether `node` is a Transpose that keeps the order of all sides other than 1."""
    if node.op_type != "Transpose" or not is_standard(node):
        return False
    source = node.inputs[0]
    if source is None or source.shape is None:
        return False
    reverse = range(len(source.shape))[::-1]
    order = node.attributes.get_ints("perm", reverse)
    longer = [axis for axis in order if source.shape[axis] != 1]
    return longer == sorted(longer)


def _is_foldable(
    node: ir.Node,
    limit: int,
    values: Container[ir.Value],
    foldable: Container[ir.Value],
) -> bool:
    """Whether all inputs of `node` are known, and its output may become a constant.

    values, foldable  the tensors that are known, and those that will be computed with this one
    """
    output = node.outputs[0]
    if node.op_type not in _PURE or not is_standard(node):
        return False
    if output.is_graph_output() or output.shape is None:
        return False
    for other in node.outputs[1:]:
        if other.uses() or other.is_graph_output():
            return False
    inputs = [value for value in node.inputs if value is not None]
    for value in inputs:
        is_known = value in values or value in foldable
        if not is_known and constant_tensor(value) is None:
            return False
    return _stays_small(output, inputs, limit)


def _stays_small(output: ir.Value, inputs: list[ir.Value], limit: int) -> bool:
    """Whether `output` has at most `limit` elements, or no more than one of `inputs`."""
    if not inputs or output.shape is None or not output.shape.is_static():
        return False
    largest_input = max(map(_element_count, inputs))
    return _element_count(output) <= max(limit, largest_input)


def _element_count(value: ir.Value) -> int:
    """Elements of a tensor; 0 if its shape is not known."""
    if value.shape is None or not value.shape.is_static():
        return 0
    return math.prod(value.shape.numpy())


def _compute(
    model: ir.Model,
    foldable: Mapping[ir.Value, ir.Node],
    values: Mapping[ir.Value, Values],
) -> dict[ir.Value, Values]:
    """What the `foldable` nodes compute; nothing if ONNX's reference cannot compute them.

    A runtime could not either, so the nodes stay.
    """
    if not foldable:
        return {}
    feeds = _feeds(foldable, values)
    part = _submodel(model, list(foldable), list(foldable.values()), feeds)
    # Every operator's NumPy code raises what it likes.
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(part).run(None, feeds)
    except Exception:
        return {}
    pairs = zip(foldable, results, strict=True)
    return {value: np.asarray(result) for value, result in pairs}


def _feeds(
    foldable: Mapping[ir.Value, ir.Node], values: Mapping[ir.Value, Values]
) -> dict[str, Values]:
    """What the `foldable` nodes read and do not compute themselves, by name."""
    feeds: dict[str, Values] = {}
    for node in foldable.values():
        for value in node.inputs:
            if value is None or value in foldable:
                continue
            known = values.get(value)
            feeds[str(value.name)] = _constant(value) if known is None else known
    return feeds


def _submodel(
    model: ir.Model,
    outputs: Sequence[ir.Value],
    nodes: Sequence[ir.Node],
    feeds: Mapping[str, Values],
) -> onnx.ModelProto:
    """A model of `nodes` that is fed `feeds` and returns `outputs`."""
    value_info = onnx.helper.make_tensor_value_info
    inputs = []
    for name, array in feeds.items():
        element_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(value_info(name, element_type, array.shape))
    results = []
    for value in outputs:
        undefined = onnx.TensorProto.UNDEFINED
        results.append(value_info(str(value.name), undefined, None))
    protos = [ir.to_proto(node) for node in nodes]
    graph = onnx.helper.make_graph(protos, "known", inputs, results)
    opsets = []
    for domain, version in model.opset_imports.items():
        opsets.append(onnx.helper.make_opsetid(domain, version))
    return onnx.helper.make_model(graph, opset_imports=opsets)


def _constant(value: ir.Value) -> Values:
    tensor = constant_tensor(value)
    assert tensor is not None  # see _is_foldable
    return np.asarray(tensor.numpy())


def _replace(graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    """Replace `node` by an initializer with the name of its first output."""
    old = node.outputs[0]
    value = ir.Value(
        name=old.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    ir.convenience.replace_all_uses_with(old, value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)
