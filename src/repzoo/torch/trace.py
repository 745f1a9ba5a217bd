"""Trace a module with torch.fx, as far as its code allows."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.nn import functional

from repzoo.errors import InputError, first_line
from repzoo.torch.inplace import remove_inplace
from repzoo.torch.layers import ATEN, is_leaf
from repzoo.torch.prepare import is_exported, plain_copy

Inputs = tuple[torch.Tensor, ...]
# Forwards of a fixed number of inputs: torch.fx traces every parameter that it finds, also one
# that has a default and is not used.
FORWARDS: dict[int, Callable[..., Any]] = {
    1: lambda self, x: self.original_forward(x),
    2: lambda self, x, y: self.original_forward(x, y),
    3: lambda self, x, y, z: self.original_forward(x, y, z),
}
# Functions that only check; torch.fx has the second in some versions.
ASSERTIONS = (torch._assert, getattr(fx._symbolic_trace, "_assert_is_none", None))


def trace(module: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """A copy of `module` in eval mode as an fx graph, its tensors with their shapes on `inputs`.

    Raises:
        InputError: torch.fx cannot trace it, or it does not take `inputs`.
    """
    plain = plain_copy(module)
    twin = plain if is_exported(plain) else _with_class_forward(plain, len(inputs))
    try:
        with torch.no_grad():
            traced = fx.GraphModule(twin, _graph_of(twin), type(module).__name__)
            # First, for torch.fx removes an operation in place whose result nobody reads.
            remove_inplace(traced)
            _remove_assertions(traced)
            _use_functions(traced)
            _Shapes(traced).run(*clones(inputs))
    except InputError:
        raise
    except Exception as error:
        shapes = " and ".join(str(list(item.shape)) for item in inputs)
        raise InputError(
            f"{type(module).__name__} cannot be traced by torch.fx on an input of {shapes} "
            f"({first_line(error)}); give an `example` that it takes, or export it to ONNX "
            "and fold that: repzoo fold"
        ) from error
    return traced.eval()


def _graph_of(module: nn.Module) -> fx.Graph:
    """The graph of `module`. That of an exported program is changed in place before."""
    if is_exported(module):
        assert isinstance(module, fx.GraphModule)
        # Checks of shapes that were not traced through.
        for node in list(module.graph.nodes):
            if node.target == "_guards_fn":
                module.graph.erase_node(node)
        module.recompile()
    return _Tracer().trace_parts(module)


class _Tracer(fx.Tracer):
    """Stops at every convolution and linear layer, and at parts that cannot be traced.

    A part whose code decides by the values that it sees cannot be traced. It stays one node, and
    the rest folds around it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opaque: set[str] = set()
        self.failed = ""

    def trace_parts(self, module: nn.Module) -> fx.Graph:
        """`module` as a graph; each part that cannot be traced costs another attempt.

        Raises whatever tracing raises where the code of `module` itself is at fault.
        """
        while True:
            self.failed = ""
            try:
                return self.trace(module)
            except Exception:
                if not self.failed:
                    raise
                self.opaque |= _same_kind(module, self.failed)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """As in fx.Tracer; notes the innermost module that fails."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` stays one node."""
        if is_leaf(m) or module_qualified_name in self.opaque:
            return True
        return super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape and type of every tensor. torch's ShapeProp would print each error."""

    def run_node(self, n: fx.Node) -> Any:
        """The value of `n`."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["tensor_meta"] = _extract_tensor_metadata(value)
        return value


def _same_kind(module: nn.Module, failed: str) -> set[str]:
    """The part that failed, and where it has no parts of its own, all others of its class."""
    part = module.get_submodule(failed)
    if any(part.children()):
        return {failed}
    return {name for name, item in module.named_modules() if type(item) is type(part)}


def _with_class_forward(module: nn.Module, count: int) -> nn.Module:
    """Give the class of `module` a forward of `count` inputs, where torch.fx looks for it.

    A `forward` may have been set on the instance, or may have optional parameters.
    """
    chosen = getattr(vars(module).get("forward"), "__func__", None)
    kind = type(module)
    members: dict[str, Any] = {"__module__": kind.__module__}
    own = chosen or kind.forward
    if _parameter_count(own) != count and count in FORWARDS:
        members |= {"original_forward": own, "forward": FORWARDS[count]}
    elif chosen is not None:
        members["forward"] = chosen
    else:
        return module
    module.__class__ = type(kind.__name__, (kind,), members)
    vars(module).pop("forward", None)
    return module


def _parameter_count(forward: Callable[..., Any]) -> int:
    """How many inputs torch.fx sees; -1 for an open number."""
    parameters = list(inspect.signature(forward).parameters.values())[
        1:
    ]  # without self
    for item in parameters:
        if item.kind not in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD):
            return -1
    return len(parameters)


def _remove_assertions(traced: fx.GraphModule) -> None:
    """Checks of shapes and ranks read tensors too, which would keep two layers apart."""
    for node in reversed(traced.graph.nodes):
        if node.op == "call_function" and node.target in ASSERTIONS:
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _use_functions(traced: fx.GraphModule) -> None:
    """Write the operators of decomposed export programs as the functions that they come from."""
    for node in list(traced.graph.nodes):
        if node.target is ATEN.convolution.default:
            _use_conv2d(node)
        elif node.target is operator.getitem:
            _use_batch_norm(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _use_conv2d(node: fx.Node) -> None:
    """Write `aten.convolution` as conv2d, where it is one of images and not transposed."""
    x, weight, bias, strides, pads, dilations, is_transposed, _, groups = node.args
    if is_transposed or not isinstance(strides, Sequence) or len(strides) != 2:
        return
    node.target = ATEN.conv2d.default
    node.args = (x, weight, bias, strides, pads, dilations, groups)


def _use_batch_norm(item: fx.Node) -> None:
    """Write `item`, the first result of a BatchNorm that returns a tuple, as batch_norm."""
    norm, index = item.args
    if index != 0 or not isinstance(norm, fx.Node):
        return
    if norm.target is not ATEN._native_batch_norm_legit_no_training.default:
        return
    x, weight, bias, mean, variance, _, epsilon = norm.args
    item.target = functional.batch_norm
    item.args = (x, mean, variance, weight, bias)
    item.kwargs = {"eps": epsilon}


def clones(inputs: Inputs) -> Inputs:
    """Copies, for a module may change its inputs in place."""
    return tuple(images.clone() for images in inputs)
