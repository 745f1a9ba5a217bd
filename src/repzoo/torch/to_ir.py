"""A torch.fx graph as an ONNX graph that the fold engine understands, and back.

Layers that the fold knows become the ONNX node of the same meaning (layers.py); everything else
becomes one opaque node. So the fold can be written once, for ONNX.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from repzoo.torch.layers import (
    FUNCTIONS,
    MODULES,
    PASS_THROUGH,
    OnnxNode,
    layer_from_ir,
)

OPAQUE = "repzoo.opaque"
OPSET = 17
ARITHMETIC: dict[Any, str] = {
    operator.add: "Add", operator.iadd: "Add", torch.add: "Add", "add": "Add", "add_": "Add",
    operator.sub: "Sub", operator.isub: "Sub", torch.sub: "Sub", "sub": "Sub",
    operator.mul: "Mul", operator.imul: "Mul", torch.mul: "Mul", "mul": "Mul",
    operator.truediv: "Div", operator.itruediv: "Div", torch.div: "Div", "div": "Div",
}  # fmt: skip
DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.float16: ir.DataType.FLOAT16,
}


@dataclass
class FxGraph:
    """The fx graph of `module` on its way to ONNX and back.

    values     the ONNX tensor of each fx node
    sources    the fx node of each ONNX tensor, by name
    constants  weights and numbers, by name
    nodes      the ONNX nodes, in order
    original   ids of those nodes: what the fold wrote is not among them
    """

    module: fx.GraphModule
    values: dict[fx.Node, ir.Value] = field(default_factory=dict)
    sources: dict[str, fx.Node] = field(default_factory=dict)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    original: set[int] = field(default_factory=set)

    def to_ir(self) -> ir.Graph:
        """The ONNX graph; weights are its initializers."""
        for node in self.module.graph.nodes:
            if node.op != "output":
                self.values[node] = self._convert(node)
                self.sources.setdefault(str(self.values[node].name), node)
        self.original = {id(node) for node in self.nodes}
        inputs = [
            self.values[node]
            for node in self.module.graph.nodes
            if node.op == "placeholder"
        ]
        last = next(node for node in self.module.graph.nodes if node.op == "output")
        outputs = dict.fromkeys(self.values[node] for node in last.all_input_nodes)
        return ir.Graph(
            inputs,
            list(outputs),
            nodes=self.nodes,
            initializers=list(self.constants.values()),
            opset_imports={"": OPSET},
        )

    def write_back(self, graph: ir.Graph) -> None:
        """Put what the fold wrote into the module.

        A new layer gets the name of the costliest one that it replaces.
        """
        for node in graph:
            if id(node) not in self.original and node.op_type in ("Conv", "Gemm"):
                self._write_layer(node)
        self.module.graph.eliminate_dead_code()
        self.module.delete_all_unused_submodules()
        _delete_unread_tensors(self.module)
        self.module.recompile()

    def constant(self, name: str, tensor: torch.Tensor) -> ir.Value:
        """`tensor` as an initializer called `name`, one for all who read it."""
        if name not in self.constants:
            values = tensor.detach().cpu().numpy()
            value = ir.Value(
                name=name,
                shape=ir.Shape(values.shape),
                type=ir.TensorType(ir.DataType.from_numpy(values.dtype)),
            )
            value.const_value = ir.Tensor(values, name=name)
            self.constants[name] = value
        return self.constants[name]

    # --- to ONNX ----------------------------------------------------------------------------------

    def _convert(self, node: fx.Node) -> ir.Value:
        if node.op == "placeholder":
            return self._typed_value(node)
        if node.op == "get_attr":
            name = str(node.target)
            return self.constant(name, _attribute(self.module, name))
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            if type(layer) in PASS_THROUGH:
                return self.values[node.all_input_nodes[0]]
        return self._add(
            node, self._layer(node) or self._arithmetic(node) or self._opaque(node)
        )

    def _add(self, node: fx.Node, made: ir.Node) -> ir.Value:
        """Add the ONNX node that was `made` of `node`; its output."""
        output = made.outputs[0]
        typed = self._typed_value(node)
        output.name = typed.name
        output.shape = typed.shape
        output.type = typed.type
        self.nodes.append(made)
        return output

    def _layer(self, node: fx.Node) -> ir.Node | None:
        """A module or function that an ONNX operator describes."""
        inputs = [self.values[item] for item in node.all_input_nodes]
        described: OnnxNode | None = None
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            convert = MODULES.get(type(layer))
            described = convert(layer, inputs[0]) if convert is not None else None
        elif node.target in FUNCTIONS:
            return FUNCTIONS[node.target](node, self.values)
        if described is None:
            return None
        name = str(node.target)
        weights = [
            self.constant(f"{name}.{key}", of) for key, of in described.weights.items()
        ]
        return ir.node(
            described.op_type,
            [inputs[0], *weights],
            attributes=described.attributes,
            name=name,
        )

    def _arithmetic(self, node: fx.Node) -> ir.Node | None:
        kind = ARITHMETIC.get(node.target) if node.op != "call_module" else None
        if kind is None or len(node.args) != 2 or node.kwargs:
            return None
        left, right = self._operand(node, 0), self._operand(node, 1)
        if left is None or right is None:
            return None
        return ir.node(kind, [left, right], name=node.name)

    def _operand(self, node: fx.Node, index: int) -> ir.Value | None:
        """A tensor or a number; None for anything else, such as a size."""
        value = node.args[index]
        if isinstance(value, fx.Node):
            is_tensor = "tensor_meta" in value.meta or value.op == "get_attr"
            return self.values[value] if is_tensor else None
        if isinstance(value, int | float):
            return self.constant(f"{node.name}.{index}", torch.tensor(float(value)))
        return None

    def _opaque(self, node: fx.Node) -> ir.Node:
        inputs = [self.values[item] for item in node.all_input_nodes]
        return ir.Node(OPAQUE, node.name, inputs, num_outputs=1, name=node.name)

    def _typed_value(self, node: fx.Node) -> ir.Value:
        """An ONNX tensor with the name, shape and type of the output of `node`."""
        meta = node.meta.get("tensor_meta")
        shape = getattr(meta, "shape", None)
        dtype = DTYPES.get(getattr(meta, "dtype", torch.float32), ir.DataType.FLOAT)
        return ir.Value(
            name=node.name,
            shape=None if shape is None else ir.Shape(tuple(shape)),
            type=ir.TensorType(dtype),
        )

    # --- from ONNX --------------------------------------------------------------------------------

    def _write_layer(self, node: ir.Node) -> None:
        """Call a new layer where the fx node of the output of `node` was called."""
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None  # the fold writes no Conv without an input
        root = self.sources[str(output.name)]
        target = str(node.name)
        if not _is_layer(self.module, target):
            target = f"folded_{root.name}"
        layer = layer_from_ir(node).to(next(self.module.parameters()).device)
        if "." in target:
            self.module.set_submodule(target, layer)
        else:
            setattr(self.module, target, layer)
        with self.module.graph.inserting_before(root):
            call = self.module.graph.call_module(
                target, (self.sources[str(source.name)],)
            )
        root.replace_all_uses_with(call)
        self.sources[str(output.name)] = call


def _is_layer(module: nn.Module, target: str) -> bool:
    try:
        return isinstance(module.get_submodule(target), nn.Conv2d | nn.Linear)
    except AttributeError:
        return False


def _attribute(module: nn.Module, target: str) -> torch.Tensor:
    value: Any = operator.attrgetter(target)(module)
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)


def _delete_unread_tensors(module: fx.GraphModule) -> None:
    """Delete the weights and statistics of containers that no node calls or reads any more.

    timm's norms with an activation inside are such containers.
    """
    called = {
        str(node.target) for node in module.graph.nodes if node.op == "call_module"
    }
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        owner, _, own = name.rpartition(".")
        in_called = any(f"{owner}.".startswith(f"{target}.") for target in called)
        if name not in read and not in_called:
            delattr(module.get_submodule(owner), own)
