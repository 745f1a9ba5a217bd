"""Rewrites a float32 graph to compute in float16 or bfloat16, between float32 ends.

A node computes in half precision where ONNX's schema of its opset has it in that type; its
float32 inputs and outputs of the same type variable change together. Everything else stays as it
is: inputs that the schema has in float32 only (the scales of a Resize), nodes that compute shapes,
nodes with subgraphs, and nodes that the caller keeps in float32. A Cast stands only where a tensor
passes from one type to the other, one for all its readers. An initializer that both sides read is
stored in both types, so that no node kept in float32 reads rounded weights.

`write_rounded` writes the same arithmetic as a float32 graph in which every half-precision value
is rounded by a pair of Casts. Runtimes without half-precision kernels compute a half graph by
casts, and leave out those between two nodes; they do not leave out these pairs.

Nodes go by the name of their first output, as everywhere in the quantizer.

Sources: ONNX operator schemas (onnx.defs); IEEE 754-2019, binary16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from repzoo.graph.tools.onnx_edit import (
    redirect_readers,
    remove_unused_initializers,
    subgraphs,
    tensor_names,
    unused_name,
)
from repzoo.graph.tools.skeleton import without_weights
from repzoo.onnx_file import names_read, opset_of
from repzoo.protobuf_stream import without
from repzoo.remark import Remark

Array = npt.NDArray[Any]
HalfName = Literal["float16", "bfloat16"]

# Integers of these types are exact in half precision: none is above 2**8.
NARROW = (TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL)
# Without a dtype attribute, the type of their output is that of their input.
TYPE_BY_ATTRIBUTE = frozenset(
    {"Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike"}
)
SHAPE_SOURCES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Half:
    """A half-precision type.

    name     of ONNX and NumPy
    code     in TensorProto
    dtype    of arrays
    largest  finite value
    """

    name: HalfName
    code: int
    dtype: np.dtype[Any]
    largest: float

    def round(self, values: Array) -> Array:
        """`values` in this type; finite ones beyond its range become its largest."""
        # Such constants are bounds of a Clip: a node with larger weights is kept in float32.
        bounded = np.clip(values, -self.largest, self.largest)
        inside = np.where(np.isfinite(values), bounded, values)
        return np.asarray(inside.astype(self.dtype))


FLOAT16 = Half("float16", TensorProto.FLOAT16, np.dtype(np.float16), 65504.0)
BFLOAT16 = Half(
    "bfloat16",
    TensorProto.BFLOAT16,
    np.dtype(ml_dtypes.bfloat16),
    3.3895313892515355e38,  # (2 - 2**-7) 2**127
)


@dataclass(frozen=True)
class HalfPlan:
    """What of a graph is in half precision.

    half         the type
    inputs       of each node that computes in it: which of its inputs are in it, by position
    outputs      the same of its outputs
    unsupported  nodes that compute with float32 tensors and have no half-precision form, and why
    floats       float32 tensors that nodes compute, and float32 inputs of the graph
    """

    half: Half
    inputs: Mapping[str, frozenset[int]]
    outputs: Mapping[str, frozenset[int]]
    unsupported: Mapping[str, str]
    floats: Collection[str]


def name_of(node: onnx.NodeProto) -> str:
    """What a node goes by: its first output."""
    return next((name for name in node.output if name), "")


def plan_half(
    model: onnx.ModelProto, kept: Collection[str] = (), half: Half = FLOAT16
) -> HalfPlan:
    """Plan `model` in half precision, with the nodes `kept` in float32."""
    types = _element_types(model)
    constants = {item.name for item in model.graph.initializer}
    about_shapes = _known_without_images(model.graph)
    opset = opset_of(model)
    inputs: dict[str, frozenset[int]] = {}
    outputs: dict[str, frozenset[int]] = {}
    unsupported: dict[str, str] = {}
    for node in model.graph.node:
        name = name_of(node)
        if name in about_shapes or not _has_floats(node, types):
            continue
        form = _half_form(node, types, opset, half)
        if form.reason:
            unsupported[name] = form.reason
        elif name not in kept:
            inputs[name] = form.inputs
            outputs[name] = form.outputs
    floats = [
        name
        for name, kind in types.items()
        if kind == TensorProto.FLOAT and name not in constants | about_shapes
    ]
    return HalfPlan(half, inputs, outputs, unsupported, dict.fromkeys(floats))


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of each tensor where it is known, by ONNX's inference."""
    types = {item.name: item.data_type for item in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    for item in (*inferred.input, *inferred.value_info, *inferred.output):
        if item.type.HasField("tensor_type"):
            types.setdefault(item.name, item.type.tensor_type.elem_type)
    return types


def _known_without_images(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on constants and shapes only: half precision holds few sizes exactly."""
    known = {item.name for item in graph.initializer}
    computed: set[str] = set()
    for node in graph.node:
        reads = [name for name in names_read(node) if name]
        if node.op_type in SHAPE_SOURCES or all(name in known for name in reads):
            known.update(node.output)
            computed.update(node.output)
    return computed


def _has_floats(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    tensors = (*node.input, *node.output)
    return any(types.get(name) == TensorProto.FLOAT for name in tensors)


@dataclass(frozen=True)
class _Form:
    """Which inputs and outputs of a node can be in half precision, or why it has no such form."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    reason: str = ""


def _half_form(
    node: onnx.NodeProto, types: Mapping[str, int], opset: int, half: Half
) -> _Form:
    """What the schema of `node` says."""
    if any(True for _ in subgraphs(node)):
        return _Form(reason=Remark("it holds subgraphs"))
    if node.domain not in ("", "ai.onnx"):
        foreign = Remark("it is of the domain {domain}", domain=node.domain)
        return _Form(reason=foreign)
    if node.op_type in TYPE_BY_ATTRIBUTE:
        return _Form(reason=Remark("its type is that of its attributes"))
    if node.op_type == "Cast":
        return _cast_form(node, types)
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    if any(_is_sequence(formal) for formal in schema.outputs):
        return _Form(reason=Remark("its output is a sequence"))
    inputs = _half_inputs(node, types, schema, half)
    if inputs:
        return _Form(frozenset(inputs), _half_outputs(node, types, schema, inputs))
    if all(name in types for name in node.input if name):
        only = Remark("opset {opset} has it in float32 only", opset=opset)
        return _Form(reason=only)
    return _Form(reason=Remark("the type of its input is unknown"))


def _half_inputs(
    node: onnx.NodeProto, types: Mapping[str, int], schema: Any, half: Half
) -> dict[int, str]:
    """The type variables of those inputs that can be in half precision, by position."""
    inputs: dict[int, str] = {}
    for index, name in enumerate(node.input):
        formal = _formal(schema.inputs, index)
        is_float = types.get(name) == TensorProto.FLOAT
        if is_float and f"tensor({half.name})" in formal.types:
            inputs[index] = formal.type_str
    return inputs


def _half_outputs(
    node: onnx.NodeProto,
    types: Mapping[str, int],
    schema: Any,
    inputs: Mapping[int, str],
) -> frozenset[int]:
    """The outputs whose type is that of one of `inputs`."""
    outputs: set[int] = set()
    for index, name in enumerate(node.output):
        formal = _formal(schema.outputs, index)
        is_float = types.get(name, TensorProto.FLOAT) == TensorProto.FLOAT
        if name and is_float and formal.type_str in inputs.values():
            outputs.add(index)
    return frozenset(outputs)


def _cast_form(node: onnx.NodeProto, types: Mapping[str, int]) -> _Form:
    """A Cast of a camera's bytes can give half precision at once; others only read it."""
    if types.get(node.input[0]) == TensorProto.FLOAT:
        return _Form(inputs=frozenset({0}))
    if types.get(node.input[0]) in NARROW:
        return _Form(outputs=frozenset({0}))
    return _Form()


def _formal(formals: Any, index: int) -> Any:
    """The formal parameter of an input or output; the last one may stand for many."""
    return formals[min(index, len(formals) - 1)]


def _is_sequence(formal: Any) -> bool:
    return all(kind.startswith(("seq(", "optional(")) for kind in formal.types)


def write_half(model: onnx.ModelProto, plan: HalfPlan) -> onnx.ModelProto:
    """`model` with what `plan` says in half precision, and float32 inputs and outputs."""
    return _Writer(model, plan).write()


def write_rounded(model: onnx.ModelProto, plan: HalfPlan) -> onnx.ModelProto:
    """The arithmetic of `write_half` in a float32 graph that rounds every value of it."""
    return _RoundingWriter(model, plan).write()


@dataclass
class _Tensors:
    """The names under which tensors of the old graph stand in the new one.

    in_half, in_float  by old name
    """

    in_half: dict[str, str] = field(default_factory=dict)
    in_float: dict[str, str] = field(default_factory=dict)


class _Writer:
    """Writes the nodes of a graph one by one, with Casts before those that need them."""

    def __init__(self, model: onnx.ModelProto, plan: HalfPlan) -> None:
        self.model = model
        self.plan = plan
        self.half = plan.half
        self.constants = {item.name: item for item in model.graph.initializer}
        self.outputs = {item.name for item in model.graph.output}
        self.used = tensor_names(model.graph) | set(_inner_names(model.graph))
        self.tensors = _Tensors()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def write(self) -> onnx.ModelProto:
        """The new model."""
        for node in self.model.graph.node:
            self._write_node(node)
        result = without(self.model, "graph")
        # What is known of tensors no longer holds.
        result.graph.CopyFrom(
            without(self.model.graph, "node", "value_info", "initializer")
        )
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.model.graph.initializer)
        result.graph.initializer.extend(self.initializers)
        remove_unused_initializers(result.graph)
        return result

    def _write_node(self, node: onnx.NodeProto) -> None:
        copy = type(node)()
        copy.CopyFrom(node)
        name = name_of(node)
        half_inputs = self.plan.inputs.get(name, frozenset())
        for index, tensor in enumerate(node.input):
            if index in half_inputs:
                copy.input[index] = self.read_half(tensor)
            elif tensor:
                copy.input[index] = self.read_float(tensor)
        # What a subgraph reads from around it is no input of its node.
        for tensor in _captured(node):
            redirect_readers([copy], tensor, self.read_float(tensor))
        self.nodes.append(copy)
        for index in sorted(self.plan.outputs.get(name, ())):
            self.write_output(copy, index)

    def read_half(self, name: str) -> str:
        """The tensor that holds `name` in half precision; written now where there is none."""
        if name not in self.tensors.in_half:
            if name in self.constants:
                self.tensors.in_half[name] = self._store_half(name)
            else:
                self.tensors.in_half[name] = self.cast_to_half(name)
        return self.tensors.in_half[name]

    def read_float(self, name: str) -> str:
        """The tensor that holds `name` in its own type, float32 where that is a float."""
        in_half = self.tensors.in_half.get(name)
        # A constant, an input, or what a node in float32 computes has its own name still.
        if in_half != name:
            return self.tensors.in_float.get(name, name)
        if name not in self.tensors.in_float:
            new = self.new_name(f"{name}:float32")
            self._cast(name, new, TensorProto.FLOAT)
            self.tensors.in_float[name] = new
        return self.tensors.in_float[name]

    def _store_half(self, name: str) -> str:
        """The name of a new initializer with the values of the constant `name`."""
        new = self.new_name(f"{name}:{self.half.name}")
        values = numpy_helper.to_array(self.constants[name])
        self.initializers.append(self.rounded_constant(values, new))
        return new

    def rounded_constant(self, values: Array, name: str) -> onnx.TensorProto:
        """An initializer with `values` in half precision."""
        return numpy_helper.from_array(self.half.round(values), name)

    def cast_to_half(self, name: str) -> str:
        """Write the Cast of a float32 tensor; its name."""
        new = self.new_name(f"{name}:{self.half.name}")
        self._cast(name, new, self.half.code)
        return new

    def write_output(self, node: onnx.NodeProto, index: int) -> None:
        """Note that an output of `node`, the last written, is in half precision."""
        name = node.output[index]
        if node.op_type == "Cast":
            _set_cast_type(node, self.half.code)
        self.tensors.in_half[name] = name
        if name in self.outputs:
            # The graph's output keeps its name and its type.
            in_half = self.new_name(f"{name}:{self.half.name}")
            node.output[index] = in_half
            self._cast(in_half, name, TensorProto.FLOAT)
            self.tensors.in_half[name] = in_half

    def _cast(self, source: str, target: str, code: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], target, to=code))

    def new_name(self, name: str) -> str:
        """A tensor name that the graph does not have."""
        new = unused_name(name, self.used)
        self.used.add(new)
        return new


class _RoundingWriter(_Writer):
    """Writes float32 nodes and rounds what would be in half precision."""

    def rounded_constant(self, values: Array, name: str) -> onnx.TensorProto:
        """An initializer with rounded `values`, in float32."""
        rounded = self.half.round(values).astype(np.float32)
        return numpy_helper.from_array(rounded, name)

    def cast_to_half(self, name: str) -> str:
        """Write the rounding of a float32 tensor; its name."""
        return self._round(name, self.new_name(f"{name}:rounded"))

    def write_output(self, node: onnx.NodeProto, index: int) -> None:
        """Round an output of `node`, the last written; its readers read the rounded tensor."""
        name = node.output[index]
        exact = self.new_name(f"{name}:exact")
        node.output[index] = exact
        self.tensors.in_half[name] = self._round(exact, name)

    def read_float(self, name: str) -> str:
        """`name` itself: all tensors are in float32."""
        return name

    def _round(self, source: str, target: str) -> str:
        in_half = self.new_name(f"{target}:{self.half.name}")
        self._cast(source, in_half, self.half.code)
        self._cast(in_half, target, TensorProto.FLOAT)
        return target


def _set_cast_type(node: onnx.NodeProto, code: int) -> None:
    for item in node.attribute:
        if item.name == "to":
            item.i = code


def _captured(node: onnx.NodeProto) -> list[str]:
    """Tensors that the subgraphs of `node` read, their own included."""
    if not any(True for _ in subgraphs(node)):
        return []
    return list(dict.fromkeys(name for name in names_read(node) if name))


def _inner_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of all tensors in subgraphs: a new name must hide none of them."""
    for node in graph.node:
        for inner in subgraphs(node):
            yield from tensor_names(inner)
            yield from _inner_names(inner)
