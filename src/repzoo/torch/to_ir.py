"""A torch.fx graph as an ONNX graph that the fold engine understands, and back.

Layers that the fold knows become the ONNX node of the same meaning (layers.py); everything else
becomes one opaque node. So the fold can be written once, for ONNX.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from repzoo.graph.tools.fold_result import Fold, Refusal
from repzoo.torch.layers import (
    ATEN,
    FUNCTIONS,
    PASS_THROUGH,
    OnnxNode,
    describe_call,
    describe_layer,
    layer_from_ir,
)

OPAQUE = "repzoo.opaque"
OPSET = 17
LAYERS = ("Conv", "Gemm")
ARITHMETIC: dict[Any, str] = {
    operator.add: "Add", operator.iadd: "Add", torch.add: "Add", "add": "Add", "add_": "Add",
    operator.sub: "Sub", operator.isub: "Sub", torch.sub: "Sub", "sub": "Sub", "sub_": "Sub",
    operator.mul: "Mul", operator.imul: "Mul", torch.mul: "Mul", "mul": "Mul", "mul_": "Mul",
    operator.truediv: "Div", operator.itruediv: "Div", torch.div: "Div", "div": "Div",
    ATEN.add.Tensor: "Add", ATEN.add_.Tensor: "Add", ATEN.sub.Tensor: "Sub",
    ATEN.sub_.Tensor: "Sub", ATEN.mul.Tensor: "Mul", ATEN.mul_.Tensor: "Mul",
    ATEN.div.Tensor: "Div", ATEN.div_.Tensor: "Div",
}  # fmt: skip
# Functions that return their input: (input, probability, training).
DROPOUT = (ATEN.dropout.default, ATEN.feature_dropout.default, nn.functional.dropout)
# What the fold computes with. Half precision is widened, and rounded once when layers are written.
DTYPES = {torch.float64: ir.DataType.DOUBLE}
HALF = (torch.float16, torch.bfloat16)


@dataclass
class FxGraph:
    """The fx graph of `module` on its way to ONNX and back.

    values     the ONNX tensor of each fx node
    sources    the fx node of each ONNX tensor, by name
    known      the values that depend on weights alone, by fx node
    constants  weights and numbers, by name
    nodes      the ONNX nodes, in order
    original   ids of those nodes: what the fold wrote is not among them
    layers     names of the convolutions and linear layers among them
    refusals   layers that no ONNX node describes
    """

    module: fx.GraphModule
    values: dict[fx.Node, ir.Value] = field(default_factory=dict)
    sources: dict[str, fx.Node] = field(default_factory=dict)
    known: dict[fx.Node, Any] = field(default_factory=dict)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    original: set[int] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)

    def to_ir(self) -> ir.Graph:
        """The ONNX graph; weights are its initializers."""
        for node in self.module.graph.nodes:
            if node.op != "output":
                self.values[node] = self._convert(node)
                self.sources.setdefault(str(self.values[node].name), node)
        self.original = {id(node) for node in self.nodes}
        self.layers = {str(node.name) for node in self.nodes if node.op_type in LAYERS}
        inputs = self.module.graph.find_nodes(op="placeholder")
        last = self.module.graph.output_node()
        outputs = dict.fromkeys(self.values[node] for node in last.all_input_nodes)
        return ir.Graph(
            [self.values[node] for node in inputs],
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
            if id(node) in self.original or node.op_type not in LAYERS:
                continue
            if node.name in self.layers:
                self._write_layer(node)
            else:
                self._refuse_new_layer(node)
        self.module.graph.eliminate_dead_code()
        self.module.delete_all_unused_submodules()
        _delete_unread_tensors(self.module)
        self.module.recompile()

    def folds_in_module(self, folds: Sequence[Fold]) -> tuple[Fold, ...]:
        """Those of `folds` that `write_back` wrote: they took in a convolution or linear layer."""
        written = []
        for fold in folds:
            if not self.layers.isdisjoint(fold.nodes):
                written.append(fold)
        return tuple(written)

    def constant(self, name: str, tensor: torch.Tensor) -> ir.Value:
        """`tensor` as an initializer called `name`, one for all who read it."""
        if name not in self.constants:
            wide = tensor.float() if tensor.dtype in HALF else tensor
            values = wide.detach().cpu().numpy()
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
        known = self._known_value(node)
        if isinstance(known, torch.Tensor):
            name = str(node.target) if node.op == "get_attr" else node.name
            return self.constant(name, known)
        if self._is_identity(node):
            return self.values[node.all_input_nodes[0]]
        converted = self._layer(node) or self._arithmetic(node) or self._opaque(node)
        return self._add(node, converted)

    def _known_value(self, node: fx.Node) -> Any:
        """What `node` returns if that depends on weights alone; None if not."""
        if node.op == "get_attr":
            self.known[node] = _attribute(self.module, str(node.target))
        inputs = node.all_input_nodes
        is_call = node.op in ("call_function", "call_method")
        if is_call and inputs and all(item in self.known for item in inputs):
            self.known[node] = self._call(node)
        return self.known.get(node)

    def _call(self, node: fx.Node) -> Any:
        """What a call returns whose arguments are known."""
        signature = (node.args, node.kwargs)
        args, kwargs = fx.node.map_arg(signature, self.known.__getitem__)
        with torch.no_grad():
            if node.op == "call_method":
                owner, *rest = args
                return getattr(owner, str(node.target))(*rest, **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)

    def _is_identity(self, node: fx.Node) -> bool:
        """Whether `node` returns its input."""
        if node.op == "call_module":
            return type(self.module.get_submodule(str(node.target))) in PASS_THROUGH
        if node.op != "call_function" or node.target not in DROPOUT:
            return False
        training = node.args[2] if len(node.args) > 2 else True
        return node.kwargs.get("training", training) is False

    def _add(self, node: fx.Node, converted: ir.Node) -> ir.Value:
        """Add the ONNX node that `node` was converted to; its output."""
        output = converted.outputs[0]
        typed = self._typed_value(node)
        output.name = typed.name
        output.shape = typed.shape
        output.type = typed.type
        self.nodes.append(converted)
        return output

    def _layer(self, node: fx.Node) -> ir.Node | None:
        """A module or function that an ONNX operator describes."""
        is_function = node.op == "call_function" and node.target in FUNCTIONS
        if not is_function and node.op != "call_module":
            return None
        source = self.values[node.all_input_nodes[0]] if node.all_input_nodes else None
        if source is None:
            return None
        rank = -1 if source.shape is None else len(source.shape)
        if is_function:
            name = node.name
            description = describe_call(node.target, self._arguments(node), rank)
        else:
            name = str(node.target)
            description = describe_layer(self.module.get_submodule(name), rank)
        if isinstance(description, OnnxNode):
            return self._onnx_node(node, name, source, description)
        if description:
            self.refusals.append(Refusal(name, description))
        return None

    def _arguments(self, node: fx.Node) -> dict[int | str, Any]:
        """The arguments of a function, by position or by name."""
        arguments: dict[int | str, Any] = {}
        for position, value in enumerate(node.args):
            arguments[position] = self._argument(value)
        for name, value in node.kwargs.items():
            arguments[name] = self._argument(value)
        return arguments

    def _argument(self, value: Any) -> Any:
        """An argument of a function: a weight that is known as its tensor."""
        if not isinstance(value, fx.Node):
            return value
        return self.known.get(value, value)

    def _onnx_node(
        self, node: fx.Node, name: str, source: ir.Value, description: OnnxNode
    ) -> ir.Node:
        """The node that `description` says, called `name`, with `source` as its input."""
        # Weights that the graph reads keep their names, so that two calls that share one show it.
        read: dict[int, ir.Value] = {}
        for item in node.all_input_nodes:
            if item in self.known:
                read[id(self.known[item])] = self.values[item]
        weights = []
        for key, tensor in description.weights.items():
            value = read.get(id(tensor))
            weights.append(value or self.constant(f"{name}.{key}", tensor))
        return ir.node(
            description.op_type,
            [source, *weights],
            attributes=description.attributes,
            name=name,
        )

    def _arithmetic(self, node: fx.Node) -> ir.Node | None:
        """An addition, subtraction, multiplication or division of two tensors or numbers."""
        if node.op == "call_module" or len(node.args) != 2 or node.kwargs:
            return None
        kind = ARITHMETIC.get(node.target)
        if kind is None:
            return None
        left = self._operand(node, 0)
        right = self._operand(node, 1)
        if left is None or right is None:
            return None
        return ir.node(kind, [left, right], name=node.name)

    def _operand(self, node: fx.Node, index: int) -> ir.Value | None:
        """A tensor or a number; None for anything else, such as a size."""
        value = node.args[index]
        if isinstance(value, fx.Node):
            is_tensor = "tensor_meta" in value.meta or value in self.known
            return self.values[value] if is_tensor else None
        if isinstance(value, int | float):
            return self.constant(f"{node.name}.{index}", torch.tensor(float(value)))
        return None

    def _opaque(self, node: fx.Node) -> ir.Node:
        """A node that the fold does not look into."""
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
        dtype = root.meta["tensor_meta"].dtype
        layer = layer_from_ir(node).to(_device(self.module), dtype)
        if "." in target:
            self.module.set_submodule(target, layer)
        else:
            setattr(self.module, target, layer)
        with self.module.graph.inserting_before(root):
            argument = self.sources[str(source.name)]
            call = self.module.graph.call_module(target, (argument,))
        root.replace_all_uses_with(call)
        self.sources[str(output.name)] = call

    def _refuse_new_layer(self, node: ir.Node) -> None:
        """Leave what `node` would replace as it is, for it would be one more convolution."""
        self.refusals.append(
            Refusal(
                str(node.name),
                "no convolution or linear layer that can absorb it is next to it, or that one's "
                "result is read elsewhere too",
            )
        )


def _is_layer(module: nn.Module, target: str) -> bool:
    """Whether `target` is the path of a layer, and not the name of a function's node."""
    try:
        return isinstance(module.get_submodule(target), nn.Conv2d | nn.Linear)
    except AttributeError:
        return False


def _device(module: nn.Module) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _attribute(module: nn.Module, target: str) -> torch.Tensor:
    """The tensor, or the number, that a get_attr node reads."""
    value: Any = operator.attrgetter(target)(module)
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value)


def _delete_unread_tensors(module: fx.GraphModule) -> None:
    """Delete the weights and statistics of containers that no node calls or reads any more.

    timm's norms with an activation inside are such containers.
    """
    called: set[str] = set()
    read: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "call_module":
            called.add(str(node.target))
        elif node.op == "get_attr":
            read.add(str(node.target))
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        owner, _, own = name.rpartition(".")
        if name not in read and called.isdisjoint(_path_to(owner)):
            delattr(module.get_submodule(owner), own)


def _path_to(name: str) -> set[str]:
    """`name` and all modules around it: "a.b.c" is in "a.b", which is in "a"."""
    names = set()
    while name:
        names.add(name)
        name, _, _ = name.rpartition(".")
    return names
