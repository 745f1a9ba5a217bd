"""What a graph computes from constants and from known shapes alone, so that rules see values
where exporters left arithmetic.

Known are: a node whose inputs are all known; Shape of a tensor whose sides are; those sides of
it that are, the batch open as it may be (sizes.py); what a Reshape asks for, where that leaves
one side open. The arithmetic is ONNX's own reference implementation, so a value is what a
runtime would compute. Shape inference and this take turns until nothing new is known: a
computed Pad gives the next tensor its size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx.reference import ReferenceEvaluator

from repzoo.errors import InputError
from repzoo.graph.tools.pieces import to_ir
from repzoo.graph.tools.symbolic_sizes import (
    Size,
    Sizes,
    made_up,
    same_shape,
    sizes_in,
    target,
)

Values = npt.NDArray[Any]

SMALL = (
    2**18
    # elements that a known value may have, where its inputs have fewer: a table looked up for an
    # attention has some 10^5
)
LARGE = 2**22  # the same of one that is only looked at
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
_STANDARDS = {
    "ReduceMean",
    "ReduceSum",
    "BatchNormalization",
}  # standardized weights are batch-normalized ones
_PURE = frozenset(_LAYOUT | _SIZES | _ARITHMETIC | _STANDARDS)


def fold_constants(model: ir.Model, limit: int = SMALL) -> dict[str, ir.TensorProtocol]:
    """Infer shapes and make an initializer of every known value, in place; the values by name.

    limit  elements that one may have, where its inputs have fewer

    Raises:
        InputError: types or shapes contradict each other.
    """
    found: dict[str, ir.TensorProtocol] = {}
    infer_shapes(model)
    while new := _all_known(model, limit):
        found |= new
        _forget_made_up(model)
        infer_shapes(model)
    return found


def _forget_made_up(model: ir.Model) -> None:
    """Shapes with sides that inference had to make up a name for: it may know them now, and
    would not look again.
    """
    for value in (value for node in model.graph for value in node.outputs):
        if (
            value.shape is not None
            and not value.is_graph_output()
            and any(made_up(side) for side in value.shape)
        ):
            value.shape = None


def _all_known(model: ir.Model, limit: int) -> dict[str, ir.TensorProtocol]:
    """What can be known before shapes are inferred again, which takes longer."""
    found: dict[str, ir.TensorProtocol] = {}
    while new := _known(model, limit):
        for name, (node, tensor) in new.items():
            _replace(model.graph, node, tensor)
            found[name] = tensor
    return found


@dataclass(frozen=True)
class KnownValues:
    """What `settle` finds in a model: values by name, and by the name of its output what a node
    gives back in the same shape.
    """

    values: Mapping[str, onnx.TensorProto]
    repeats: Mapping[str, str]


def known_values(model: onnx.ModelProto) -> KnownValues:
    """`model` stays as it is."""
    kinds = {node.op_type for node in model.graph.node}
    if not kinds & _PURE and "Shape" not in kinds:
        return KnownValues({}, {})
    twin = to_ir(model)
    values = {
        name: ir.to_proto(tensor) for name, tensor in fold_constants(twin).items()
    }
    pairs = [
        (node.outputs[0], source)
        for node in twin.graph
        if (source := shape_preserving_input(node)) is not None
    ]
    return KnownValues(
        values, {str(made.name): str(source.name) for made, source in pairs}
    )


def shape_preserving_input(node: ir.Node) -> ir.Value | None:
    """The input of a Reshape that has that shape already, or of a Transpose that only moves
    sides of one.
    """
    source = node.inputs[0] if _is_reshape(node) or _moves_ones(node) else None
    return (
        source if source is not None and same_shape(source, node.outputs[0]) else None
    )


def _moves_ones(node: ir.Node) -> bool:
    """Whether a Transpose keeps the order of all sides but those of one."""
    source = (
        node.inputs[0]
        if node.op_type == "Transpose" and node.domain in ("", "ai.onnx")
        else None
    )
    if source is None or source.shape is None:
        return False
    order = node.attributes.get_ints("perm", range(len(source.shape))[::-1])
    longer = [axis for axis in order if source.shape[axis] != 1]
    return longer == sorted(longer)


@dataclass(frozen=True)
class SizedModel:
    """A model at one batch size: its known values, large ones too, and the shapes of its
    tensors, 0 for what is still open.
    """

    values: Mapping[str, onnx.TensorProto]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def sides(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the tensors [N, C, H, W] whose sides are all known."""
        return {
            name: sides
            for name, sides in self.shapes.items()
            if len(sides) == 4 and all(sides)
        }


def at_batch_size(model: onnx.ModelProto, batch: int) -> SizedModel:
    """`model` with `batch` images where it leaves that open."""
    twin = to_ir(model)
    _fix_batch(twin.graph, batch)
    values = {
        name: ir.to_proto(tensor)
        for name, tensor in fold_constants(twin, LARGE).items()
    }
    tensors = [
        *twin.graph.inputs,
        *(value for node in twin.graph for value in node.outputs),
    ]
    shapes = {
        str(value.name): value.shape for value in tensors if value.shape is not None
    }
    return SizedModel(
        values,
        {
            name: tuple(side if isinstance(side, int) else 0 for side in of)
            for name, of in shapes.items()
        },
    )


def _fix_batch(graph: ir.Graph, batch: int) -> None:
    for value in graph.inputs:
        if (
            value.shape is not None
            and len(value.shape)
            and not isinstance(value.shape[0], int)
        ):
            value.shape = ir.Shape((batch, *value.shape[1:]))


def infer_shapes(model: ir.Model) -> None:
    """Shapes and types of all tensors, in place.

    Raises:
        InputError: they contradict each other.
    """
    with _warnings_of("onnx_ir.passes.common.shape_inference") as said:
        passes.ShapeInferencePass()(model)
    errors = [str(record.exc_info[1]) for record in said if record.exc_info]
    if errors:
        reason = " ".join(errors[0].split())
        raise InputError(
            "types or shapes in the graph contradict each other, so no runtime can hold to "
            f"them: {reason}"
        )


@contextmanager
def _warnings_of(name: str) -> Iterator[list[logging.LogRecord]]:
    """What a library says to its logger, kept from the terminal: that is how this one reports
    failure.
    """
    said: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        said.append(record)
        return False

    logger = logging.getLogger(name)
    logger.addFilter(keep)
    try:
        yield said
    finally:
        logger.removeFilter(keep)


def _known(model: ir.Model, limit: int) -> dict[str, tuple[ir.Node, ir.TensorProtocol]]:
    """The known values that are not constants yet, by name, each with its node."""
    held = sizes_in(model.graph)
    shapes = {
        value: sides
        for value, of in held.items()
        if (sides := _fixed(value, of)) is not None
    } | _targets(model, held)
    chosen: dict[ir.Value, ir.Node] = {}
    for node in model.graph:
        if node.outputs[0] not in shapes and _is_known(
            node, limit, lambda value: value in shapes or value in chosen
        ):
            chosen[node.outputs[0]] = node
    found = {**shapes, **_computed(model, chosen, shapes)}
    makers = {value: value.producer() for value in found}
    return {
        str(value.name): (made, ir.tensor(found[value], name=value.name))
        for value, made in makers.items()
        if made is not None
    }


def _fixed(value: ir.Value, held: list[Size]) -> Values | None:
    """`held` as a tensor where all of it is known."""
    made = [size for size in held if isinstance(size, int)]
    if (
        value.is_graph_output()
        or value.shape is None
        or not value.shape.is_static()
        or len(made) < len(held)
    ):
        return None
    return (
        np.asarray(made, np.int64).reshape(value.shape.numpy())
        if math.prod(value.shape.numpy()) == len(made)
        else None
    )


def _targets(model: ir.Model, known: Sizes) -> dict[ir.Value, Values]:
    """Computed shapes that nothing but Reshapes read, as constants that say the same to each of
    them.
    """
    found = {}
    for shape in {node.inputs[1]: None for node in model.graph if _is_reshape(node)}:
        if (
            shape is None
            or shape.is_graph_output()
            or not all(_is_reshape(use.node) and use.idx == 1 for use in shape.uses())
        ):
            continue
        made = [target(use.node, known) for use in shape.uses()]
        if made[0] is not None and all(one == made[0] for one in made):
            found[shape] = np.asarray(made[0], np.int64)
    return found


def _is_reshape(node: ir.Node) -> bool:
    return (
        node.op_type == "Reshape"
        and node.domain in ("", "ai.onnx")
        and len(node.inputs) > 1
    )


def _is_known(node: ir.Node, limit: int, known: Callable[[ir.Value], bool]) -> bool:
    output = node.outputs[0]
    if (
        node.op_type not in _PURE
        or node.domain not in ("", "ai.onnx")
        or output.is_graph_output()
        or output.shape is None
    ):
        return False
    if any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
        return False
    read = [value for value in node.inputs if value is not None]
    if (
        not read
        or not all(known(value) or _is_constant(value) for value in read)
        or not output.shape.is_static()
    ):
        return False
    sizes = [
        math.prod(value.shape.numpy())
        if value.shape is not None and value.shape.is_static()
        else 0
        for value in read
    ]
    return math.prod(output.shape.numpy()) <= max(limit, *sizes)


def _is_constant(value: ir.Value) -> bool:
    return (
        not value.is_graph_input()
        and ir.convenience.get_const_tensor(value) is not None
    )


def _computed(
    model: ir.Model,
    chosen: Mapping[ir.Value, ir.Node],
    shapes: Mapping[ir.Value, Values],
) -> dict[ir.Value, Values]:
    """Values of the `chosen` nodes; none where ONNX's reference cannot compute them, as a
    runtime could not either.
    """
    if not chosen:
        return {}
    read = {
        value
        for node in chosen.values()
        for value in node.inputs
        if value is not None and value not in chosen
    }
    fed = {
        str(value.name): shapes[value] if value in shapes else _array(value)
        for value in read
    }
    make = onnx.helper.make_tensor_value_info
    inputs = [
        make(name, onnx.helper.np_dtype_to_tensor_dtype(item.dtype), item.shape)
        for name, item in fed.items()
    ]
    outputs = [
        make(str(value.name), onnx.TensorProto.UNDEFINED, None) for value in chosen
    ]
    opsets = [
        onnx.helper.make_opsetid(domain, version)
        for domain, version in model.opset_imports.items()
    ]
    nodes = [ir.to_proto(node) for node in chosen.values()]
    part = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "known", inputs, outputs), opset_imports=opsets
    )
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(part).run(None, fed)
    except Exception:  # whatever it raises, the graph keeps its own nodes
        return {}
    return {
        value: np.asarray(result) for value, result in zip(chosen, results, strict=True)
    }


def _array(value: ir.Value) -> Values:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None  # _is_constant
    return np.asarray(tensor.numpy())


def _replace(graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
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
