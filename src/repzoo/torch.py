"""Folding without leaving PyTorch: `repzoo.torch.fold(module)` gives an equal `nn.Module` without BatchNorms and branches.

The module is traced with torch.fx and drawn as a graph of the same operators that ONNX has; whatever else it computes stays one
opaque node. The one fold engine (graph/fold.py, on graph/algebra.py and graph/rules.py) works on that drawing, and what it wrote
becomes `nn.Conv2d` and `nn.Linear` again. The result is an fx.GraphModule: it trains, saves, scripts and exports like any other.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from repzoo.errors import CertificateError, InputError, MissingExtra
from repzoo.graph.certificate.certify import compare
from repzoo.graph.fold.engine import Fold, fold_graph
from repzoo.graph.fold.rules import Refusal

try:
    import torch
    from torch import fx, nn
    from torch.fx.passes.shape_prop import ShapeProp
    from torch.nn import functional
except ModuleNotFoundError as error:
    raise MissingExtra("folding PyTorch modules", "torch") from error

OPAQUE = "repzoo.opaque"

_ARITHMETIC: dict[Any, str] = {
    operator.add: "Add", operator.iadd: "Add", torch.add: "Add", "add": "Add", "add_": "Add",
    operator.sub: "Sub", operator.isub: "Sub", torch.sub: "Sub", "sub": "Sub",
    operator.mul: "Mul", operator.imul: "Mul", torch.mul: "Mul", "mul": "Mul",
    operator.truediv: "Div", operator.itruediv: "Div", torch.div: "Div", "div": "Div",
}  # fmt: skip
_DROPOUTS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Folded:
    """A folded module with what was done and what was refused."""

    module: fx.GraphModule
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]


def fold(module: nn.Module, example: torch.Tensor | None = None) -> fx.GraphModule:
    """An equal module in eval mode, with every linear piece that can become one cheaper layer folded; `module` stays as it is.

    example  an input, float [N, channels, height, width]; default: one image of the size in timm's default_cfg, else 3x224x224

    Raises:
        InputError: the module cannot be traced by torch.fx, or does not take one tensor.
        CertificateError: the outputs differ by more than float32 can tell apart.
    """
    return fold_with_log(module, example).module


def fold_with_log(module: nn.Module, example: torch.Tensor | None = None) -> Folded:
    """As `fold`, with the log of folds and refusals."""
    images = _example(module) if example is None else example
    traced = _traced(module, images)
    drawing = _Drawing(traced)
    graph = drawing.drawn()
    folds, refusals = fold_graph(graph)
    drawing.write_back(graph)
    _certify(module, traced, images)
    return Folded(traced, folds, refusals)


def _example(module: nn.Module) -> torch.Tensor:
    config = getattr(module, "default_cfg", None) or {}
    size = config.get("input_size", (3, 224, 224)) if isinstance(config, dict) else (3, 224, 224)
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


def _traced(module: nn.Module, images: torch.Tensor) -> fx.GraphModule:
    twin = _with_forward(copy.deepcopy(module).eval())
    try:
        with torch.no_grad():
            traced = _without_assertions(fx.GraphModule(twin, _Tracer().traced(twin)))
            ShapeProp(traced).propagate(images)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be traced by torch.fx ({str(error).splitlines()[0]}); export it to ONNX and fold that: "
            "repzoo fold"
        ) from error
    return traced.eval()


def _with_forward(module: nn.Module) -> nn.Module:
    """`module` with the `forward` that it chose when it was made where others have theirs: in its class, where torch.fx looks."""
    chosen = getattr(vars(module).get("forward"), "__func__", None)
    if chosen is not None:
        kind = type(module)
        module.__class__ = type(
            kind.__name__, (kind,), {"forward": chosen, "__module__": kind.__module__}
        )
        del module.forward
    return module


def _without_assertions(traced: fx.GraphModule) -> fx.GraphModule:
    """Checks of shapes and ranks read tensors too, which would keep two layers apart."""
    for node in reversed(traced.graph.nodes):
        if node.target is torch._assert:
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Stops at every convolution and linear layer, also at subclasses that compute their padding from the input's size.

    A part whose code cannot be traced, since it decides by what it sees, stays one node too; the rest folds around it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole: set[str] = set()
        self.culprit = ""

    def traced(self, module: nn.Module) -> fx.Graph:
        """`module` as a graph; each part that cannot be traced costs another try. Raises what tracing raises where that is its own code."""
        while True:
            self.culprit = ""
            try:
                return self.trace(module)
            except Exception:
                if not self.culprit:
                    raise
                self.whole.add(self.culprit)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """As it is, noting the innermost module that fails."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.culprit = self.culprit or self.path_of_module(m)
            raise

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` stays one node."""
        known = isinstance(m, nn.Conv2d | nn.Linear) or module_qualified_name in self.whole
        return known or super().is_leaf_module(m, module_qualified_name)


def _certify(module: nn.Module, folded: nn.Module, images: torch.Tensor) -> None:
    """Compare on the example, with the bound that jittering the module's own weights measures."""
    twin = copy.deepcopy(module).eval()
    with torch.no_grad():
        expected, got = twin(images), folded(images)
        generator = torch.Generator().manual_seed(1)
        for weight in twin.parameters():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            weight.copy_(
                torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf).to(weight.dtype))
            )
        jittered = twin(images)
    kinds = [weight.dtype for weight in twin.parameters() if weight.is_floating_point()]
    roundoff = max((torch.finfo(kind).eps / 2 for kind in kinds), default=2.0**-24)
    before, after, moved = (
        one.double().reshape(len(one), -1).cpu().numpy() for one in (expected, got, jittered)
    )
    made = compare(before, after, moved, roundoff)
    if not made.error <= made.bound:
        raise CertificateError(
            f"the folded module is not proven equal: largest error {made.error:.3g}, bound {made.bound:.3g}"
        )


@dataclass
class _Drawing:
    """The fx graph of `module` as an onnx_ir graph; `values` maps fx nodes to tensors, `sources` tensors back to fx nodes."""

    module: fx.GraphModule
    values: dict[fx.Node, ir.Value] = field(default_factory=dict)
    sources: dict[str, fx.Node] = field(default_factory=dict)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    drawn_ids: set[int] = field(default_factory=set)

    def drawn(self) -> ir.Graph:
        """The graph, weights as initializers."""
        for node in self.module.graph.nodes:
            if node.op == "output":
                continue
            self._draw(node)
        self.drawn_ids = {id(node) for node in self.nodes}
        inputs = [self.values[node] for node in self.module.graph.nodes if node.op == "placeholder"]
        last = next(node for node in self.module.graph.nodes if node.op == "output")
        outputs = list(dict.fromkeys(self.values[node] for node in last.all_input_nodes))
        return ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.constants.values()),
            opset_imports={"": 17},
        )

    def write_back(self, graph: ir.Graph) -> None:
        """Put what the fold wrote into the module: new layers under the name of the costliest one that each replaces."""
        for node in graph:
            if id(node) in self.drawn_ids or node.op_type not in ("Conv", "Gemm"):
                continue
            source, root = (
                self.sources[str(value.name)]
                for value in (node.inputs[0], node.outputs[0])
                if value is not None
            )
            target = (
                str(node.name) if _is_layer(self.module, str(node.name)) else f"folded_{root.name}"
            )
            layer = _layer(node).to(next(self.module.parameters()).device)
            self.module.set_submodule(target, layer) if "." in target else setattr(
                self.module, target, layer
            )
            with self.module.graph.inserting_before(root):
                new = self.module.graph.call_module(target, (source,))
            root.replace_all_uses_with(new)
            self.sources[str(node.outputs[0].name)] = new
        self.module.graph.eliminate_dead_code()
        self.module.delete_all_unused_submodules()
        _drop_unread_tensors(self.module)
        self.module.recompile()

    def _draw(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = self._named(node)
        elif node.op == "get_attr":
            self.values[node] = self._constant(
                str(node.target), _attribute(self.module, str(node.target))
            )
        else:
            self._compute(node)
        self.sources.setdefault(str(self.values[node].name), node)

    def _compute(self, node: fx.Node) -> None:
        draw = self._drawer(node)
        made = draw(node) if draw is not None else None
        if isinstance(made, ir.Value):
            self.values[node] = made  # passes its input through
            return
        made = made or ir.Node(
            OPAQUE,
            node.name,
            [self.values[item] for item in node.all_input_nodes],
            num_outputs=1,
            name=node.name,
        )
        output = made.outputs[0]
        like = self._named(node)
        output.name, output.shape, output.type = like.name, like.shape, like.type
        self.nodes.append(made)
        self.values[node] = output

    def _drawer(self, node: fx.Node) -> Callable[[fx.Node], ir.Node | ir.Value | None] | None:
        if node.op == "call_module":
            kind = type(self.module.get_submodule(str(node.target)))
            return (
                self._pass_through
                if kind in _DROPOUTS
                else _MODULES.get(kind) and (lambda one: _MODULES[kind](self, one))
            )
        if node.target in _ARITHMETIC:
            return self._arithmetic
        function = _FUNCTIONS.get(node.target)
        return None if function is None else (lambda one: function(self, one))

    def _pass_through(self, node: fx.Node) -> ir.Value:
        return self.values[node.all_input_nodes[0]]

    def _arithmetic(self, node: fx.Node) -> ir.Node | None:
        if len(node.args) != 2 or node.kwargs:
            return None
        sides = [self._operand(node, index) for index in (0, 1)]
        return (
            None
            if any(side is None for side in sides)
            else ir.node(_ARITHMETIC[node.target], sides, name=node.name)
        )

    def _operand(self, node: fx.Node, index: int) -> ir.Value | None:
        value = node.args[index]
        if isinstance(value, fx.Node):
            return (
                self.values[value]
                if "tensor_meta" in value.meta or value.op == "get_attr"
                else None
            )
        return (
            self._constant(f"{node.name}.{index}", torch.tensor(float(value)))
            if isinstance(value, int | float)
            else None
        )

    def _named(self, node: fx.Node) -> ir.Value:
        meta = node.meta.get("tensor_meta")
        shape = getattr(meta, "shape", None)
        kind = _DTYPES.get(getattr(meta, "dtype", torch.float32), ir.DataType.FLOAT)
        return ir.Value(
            name=node.name,
            shape=ir.Shape(tuple(shape)) if shape is not None else None,
            type=ir.TensorType(kind),
        )

    def _constant(self, name: str, tensor: torch.Tensor) -> ir.Value:
        if name not in self.constants:
            values = tensor.detach().cpu().numpy()
            made = ir.Value(
                name=name,
                shape=ir.Shape(values.shape),
                type=ir.TensorType(ir.DataType.from_numpy(values.dtype)),
            )
            made.const_value = ir.Tensor(values, name=name)
            self.constants[name] = made
        return self.constants[name]

    def layer(
        self,
        kind: str,
        node: fx.Node,
        inputs: list[tuple[str, torch.Tensor | None]],
        attributes: dict[str, Any],
    ) -> ir.Node:
        """The ONNX node `kind` of the layer called at `node`, its weights from `inputs` (name, values)."""
        weights = [
            self._constant(f"{node.target}.{name}", values)
            for name, values in inputs
            if values is not None
        ]
        return ir.node(
            kind,
            [self.values[node.all_input_nodes[0]], *weights],
            attributes=attributes,
            name=str(node.target),
        )

    def weights(self, node: fx.Node, *names: str) -> list[ir.Value | None]:
        """Tensors that a functional call reads, by keyword or position."""
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        found = (given.get(name) for name in names)
        return [self.values[value] if isinstance(value, fx.Node) else None for value in found]


def _conv(drawing: _Drawing, node: fx.Node) -> ir.Node | None:
    layer = drawing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    window = {
        "strides": layer.stride,
        "pads": layer.padding * 2,
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    return drawing.layer("Conv", node, [("weight", layer.weight), ("bias", layer.bias)], window)


def _batchnorm(drawing: _Drawing, node: fx.Node) -> ir.Node | None:
    layer = drawing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    if layer.running_mean is None or layer.running_var is None:
        return None
    gamma = layer.weight if layer.affine else torch.ones_like(layer.running_mean)
    beta = layer.bias if layer.affine else torch.zeros_like(layer.running_mean)
    named = [
        ("weight", gamma),
        ("bias", beta),
        ("running_mean", layer.running_mean),
        ("running_var", layer.running_var),
    ]
    return drawing.layer("BatchNormalization", node, named, {"epsilon": layer.eps})  # type: ignore[arg-type]


def _linear(drawing: _Drawing, node: fx.Node) -> ir.Node | None:
    layer = drawing.module.get_submodule(str(node.target))
    shape = drawing.values[node.all_input_nodes[0]].shape
    if shape is None or len(shape) != 2:
        return None
    assert isinstance(layer, nn.Linear)
    inputs: list[tuple[str, torch.Tensor | None]] = [("weight", layer.weight), ("bias", layer.bias)]
    return drawing.layer("Gemm", node, inputs, {"transB": 1})


def _average_pool(drawing: _Drawing, node: fx.Node) -> ir.Node | None:
    layer = drawing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.AvgPool2d)
    if layer.divisor_override is not None:
        return None
    kernel, strides, padding = (
        _pair(value) for value in (layer.kernel_size, layer.stride, layer.padding)
    )
    settings: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": padding * 2}
    settings |= {
        "ceil_mode": int(layer.ceil_mode),
        "count_include_pad": int(layer.count_include_pad),
    }
    return drawing.layer("AveragePool", node, [], settings)


def _functional_batchnorm(drawing: _Drawing, node: fx.Node) -> ir.Node | None:
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    source, mean, variance, gamma, beta = drawing.weights(node, *names)[:5]
    if given.get("training") or any(
        value is None for value in (source, mean, variance, gamma, beta)
    ):
        return None
    settings = {"epsilon": float(given.get("eps", 1e-5))}  # type: ignore[arg-type]
    return ir.node(
        "BatchNormalization",
        [source, gamma, beta, mean, variance],
        attributes=settings,
        name=node.name,
    )


_MODULES: dict[type[nn.Module], Callable[[_Drawing, fx.Node], ir.Node | None]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm1d: _batchnorm,
    nn.BatchNorm2d: _batchnorm,
    nn.SyncBatchNorm: _batchnorm,
    nn.Linear: _linear,
    nn.AvgPool2d: _average_pool,
}
_FUNCTIONS: dict[Any, Callable[[_Drawing, fx.Node], ir.Node | None]] = {
    functional.batch_norm: _functional_batchnorm
}
_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.float16: ir.DataType.FLOAT16,
}


def _layer(node: ir.Node) -> nn.Module:
    """The torch layer of a Conv or Gemm that the fold wrote."""
    weight, *bias = (
        torch.from_numpy(np.array(value.const_value.numpy()))
        for value in node.inputs[1:]
        if value and value.const_value
    )
    layer: nn.Module
    if node.op_type == "Gemm":
        layer = nn.Linear(weight.shape[1], weight.shape[0], bool(bias), dtype=weight.dtype)
    else:
        layer = _conv2d(node, weight, bool(bias))
    layer.load_state_dict({"weight": weight, **({"bias": bias[0]} if bias else {})})
    pads = tuple(node.attributes.get_ints("pads", ()) or ())
    return (
        layer
        if pads[:2] == pads[2:]
        else nn.Sequential(nn.ZeroPad2d((pads[1], pads[3], pads[0], pads[2])), layer)
    )


def _conv2d(node: ir.Node, weight: torch.Tensor, bias: bool) -> nn.Module:
    groups = node.attributes.get_int("group", 1)
    strides, dilations, pads = (
        tuple(node.attributes.get_ints(name, ()) or ()) for name in ("strides", "dilations", "pads")
    )
    padding: Any = pads[:2] if pads[:2] == pads[2:] else 0  # uneven pads get a layer of their own
    window: dict[str, Any] = {
        "stride": strides,
        "padding": padding,
        "dilation": dilations,
        "groups": groups,
    }
    return nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        bias=bias,
        dtype=weight.dtype,
        **window,
    )


def _drop_unread_tensors(module: fx.GraphModule) -> None:
    """Delete weights and statistics of containers (a norm with an activation inside) that no node calls or reads any more."""
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        owner, _, own = name.rpartition(".")
        if name not in read and not any(f"{owner}.".startswith(f"{target}.") for target in called):
            delattr(module.get_submodule(owner), own)


def _is_layer(module: nn.Module, target: str) -> bool:
    try:
        return isinstance(module.get_submodule(target), nn.Conv2d | nn.Linear)
    except AttributeError:
        return False


def _attribute(module: nn.Module, target: str) -> torch.Tensor:
    found: Any = operator.attrgetter(target)(module)
    return found if isinstance(found, torch.Tensor) else torch.tensor(found)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
