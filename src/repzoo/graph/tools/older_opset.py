"""Graphs in the older opsets that vendors' tools take, such as opset 11.

onnx's own converter goes down for few operators: it has no way back from the Relu of opset 14. Most
newer versions of an operator only add types, so a float32 node is valid in the older version as it
is. What did change is rewritten here:

    Clip         its limits are attributes before opset 11
    Squeeze, Unsqueeze, ReduceSum, ReduceMean, ...   axes are an attribute before opset 13 or 18
    Split        its sizes are an attribute before opset 13
    Softmax      before opset 13 it flattens all axes from `axis` on: the same for the last axis
    HardSwish    x * HardSigmoid(x, 1/6, 1/2) before opset 14
    Gelu         0.5 x (1 + erf(x / sqrt(2))) before opset 20

Source: the operator schemas of the ONNX specification, which onnx.defs holds for every version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from repzoo.errors import InputError
from repzoo.graph.tools.onnx_edit import (
    add_initializer,
    remove_unused_initializers,
    tensor_names,
    unused_name,
)
from repzoo.onnx_file import opset_of
from repzoo.protobuf_stream import clone

# The oldest IR version in which initializers need not be listed among the inputs.
MIN_IR = 4
# Operators whose integer inputs were attributes: input position -> attribute.
AS_ATTRIBUTE = {
    "Squeeze": "axes",
    "Unsqueeze": "axes",
    "Split": "split",
    "ReduceMean": "axes",
    "ReduceSum": "axes",
    "ReduceMax": "axes",
    "ReduceMin": "axes",
    "ReduceL2": "axes",
    "ReduceProd": "axes",
}
SOFTMAX = ("Softmax", "LogSoftmax")


def limit_version(
    model: onnx.ModelProto, opset: int, ir_version: int
) -> onnx.ModelProto:
    """`model` in at most `opset` and `ir_version`; 0 sets no limit.

    A model within both limits is returned as it is.

    Raises:
        InputError: an operator has no form in that opset.
    """
    is_newer = bool(opset) and opset_of(model) > opset
    if not is_newer and not (ir_version and model.ir_version > ir_version):
        return model
    result = clone(model)
    if ir_version:
        result.ir_version = max(min(result.ir_version, ir_version), MIN_IR)
    if is_newer:
        _Converter(result, opset).convert()
    return result


class _Converter:
    """Rewrites the nodes of `model`, in place, for the older `opset`."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = opset
        self.current = opset_of(model)
        self.names = tensor_names(model.graph)
        self.constants: dict[str, onnx.TensorProto] = {}
        for item in model.graph.initializer:
            self.constants[item.name] = item
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def convert(self) -> None:
        """Rewrite all nodes, and state the older opset."""
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            nodes.extend(self._converted(node))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        for item in self.model.opset_import:
            if item.domain in ("", "ai.onnx"):
                item.version = self.opset
        remove_unused_initializers(self.graph)

    def _converted(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """What takes the place of `node`."""
        if node.domain not in ("", "ai.onnx"):
            self._refuse(node, f"it is of the domain {node.domain}")
        rewrite = REWRITES.get(node.op_type)
        if rewrite is not None and self._is_absent(node.op_type):
            yield from rewrite(self, node)
            return
        if self._is_absent(node.op_type):
            self._refuse(node, "that opset has no such operator")
        if node.op_type in AS_ATTRIBUTE:
            self._input_to_attribute(node, AS_ATTRIBUTE[node.op_type])
        if node.op_type == "Clip":
            self._clip_limits(node)
        if node.op_type in SOFTMAX:
            self._require_last_axis(node)
        self._require_same_form(node)
        yield node

    def _is_absent(self, op_type: str) -> bool:
        try:
            defs.get_schema(op_type, self.opset)
        except defs.SchemaError:
            return True
        return False

    def _input_to_attribute(self, node: onnx.NodeProto, name: str) -> None:
        """Move a constant second input into the attribute `name`, where the schema wants it."""
        schema = defs.get_schema(node.op_type, self.opset)
        if len(schema.inputs) > 1:
            return
        if len(node.input) > 1 and node.input[1]:
            values = [int(value) for value in self._constant(node, 1).reshape(-1)]
            node.attribute.append(helper.make_attribute(name, values))
        del node.input[1:]

    def _clip_limits(self, node: onnx.NodeProto) -> None:
        """Make the limits of a Clip attributes, before opset 11."""
        if len(defs.get_schema("Clip", self.opset).inputs) > 1:
            return
        for position, name in ((1, "min"), (2, "max")):
            if len(node.input) > position and node.input[position]:
                limit = float(self._constant(node, position))
                node.attribute.append(helper.make_attribute(name, limit))
        del node.input[1:]

    def _require_last_axis(self, node: onnx.NodeProto) -> None:
        """Write the axis of a Softmax out; refuse one that the older Softmax reads otherwise."""
        old = defs.get_schema(node.op_type, self.opset).since_version
        if old >= 13 or self.current < 13:
            return
        axes = [item.i for item in node.attribute if item.name == "axis"]
        axis = axes[0] if axes else -1
        rank = self._rank(node.output[0])
        if rank is None or axis not in (-1, rank - 1):
            self._refuse(node, "its axis is not known to be the last one")
            return
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", rank - 1))

    def _rank(self, name: str) -> int | None:
        for value in (*self.graph.output, *self.graph.value_info):
            if value.name == name and value.type.tensor_type.HasField("shape"):
                return len(value.type.tensor_type.shape.dim)
        return None

    def _require_same_form(self, node: onnx.NodeProto) -> None:
        """Refuse what the older version of an operator cannot say; drop attributes at default."""
        new = defs.get_schema(node.op_type, self.current)
        old = defs.get_schema(node.op_type, self.opset)
        if new.since_version == old.since_version:
            return
        if len(node.input) > old.max_input or len(node.output) > old.max_output:
            self._refuse(node, "it has more inputs or outputs than there")
        kept: list[onnx.AttributeProto] = []
        for item in node.attribute:
            if item.name in old.attributes:
                kept.append(item)
            elif not _is_default(item, new):
                self._refuse(node, f"it has no attribute {item.name} there")
        del node.attribute[:]
        node.attribute.extend(kept)

    def _constant(self, node: onnx.NodeProto, position: int) -> Any:
        """The value of a constant input."""
        name = node.input[position]
        if name not in self.constants:
            self._refuse(
                node, f"its input {name} is computed, and must be constant there"
            )
        return numpy_helper.to_array(self.constants[name])

    def _refuse(self, node: onnx.NodeProto, reason: str) -> None:
        raise InputError(
            f"{node.op_type} {node.name or node.output[0]} cannot be written in ONNX opset "
            f"{self.opset}, which the target takes at most: {reason}; export the model again with "
            f"--opset {max(self.opset, 11)}"
        )

    def hard_swish(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """x * HardSigmoid(x)."""
        gate = self._fresh(node, "gate")
        x = node.input[0]
        sigmoid = helper.make_node("HardSigmoid", [x], [gate], alpha=1 / 6, beta=0.5)
        product = helper.make_node("Mul", [x, gate], [node.output[0]], node.name)
        return [sigmoid, product]

    def gelu(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """0.5 x (1 + erf(x / sqrt(2))); the approximation by tanh is refused."""
        for item in node.attribute:
            if item.name == "approximate" and item.s not in (b"", b"none"):
                self._refuse(node, "it is approximated by tanh")
        x = node.input[0]
        divided, erf, shifted, product = (
            self._fresh(node, part) for part in ("divided", "erf", "shifted", "product")
        )
        return [
            helper.make_node("Div", [x, self._scalar(math.sqrt(2))], [divided]),
            helper.make_node("Erf", [divided], [erf]),
            helper.make_node("Add", [erf, self._scalar(1.0)], [shifted]),
            helper.make_node("Mul", [x, shifted], [product]),
            helper.make_node(
                "Mul", [product, self._scalar(0.5)], [node.output[0]], node.name
            ),
        ]

    def _fresh(self, node: onnx.NodeProto, part: str) -> str:
        name = unused_name(f"{node.output[0]}:{part}", self.names)
        self.names.add(name)
        return name

    def _scalar(self, value: float) -> str:
        return add_initializer(
            self.graph, f"constant:{value:.6g}", np.array(value, np.float32), self.names
        )


REWRITES: dict[str, Callable[[_Converter, onnx.NodeProto], list[onnx.NodeProto]]] = {
    "HardSwish": _Converter.hard_swish,
    "Gelu": _Converter.gelu,
}


def _is_default(item: onnx.AttributeProto, schema: defs.OpSchema) -> bool:
    """Whether an attribute says nothing that its absence does not say."""
    default = schema.attributes[item.name].default_value
    value = helper.get_attribute_value(item)
    if item.name in ("dilations", "num_outputs"):  # they have no default in the schema
        return item.name == "num_outputs" or set(value) == {1}
    return bool(default.name) and helper.get_attribute_value(default) == value
