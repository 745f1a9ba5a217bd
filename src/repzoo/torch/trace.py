"""Trace a module with torch.fx, as far as its code allows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from repzoo.errors import InputError


def trace(module: nn.Module, images: torch.Tensor) -> fx.GraphModule:
    """A copy of `module` in eval mode as an fx graph, its tensors with their shapes on `images`.

    Raises:
        InputError: torch.fx cannot trace it, or it does not take `images`.
    """
    twin = _with_class_forward(copy.deepcopy(module).eval())
    try:
        with torch.no_grad():
            traced = _without_assertions(
                fx.GraphModule(twin, _Tracer().trace_parts(twin))
            )
            ShapeProp(traced).propagate(images)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{type(module).__name__} cannot be traced by torch.fx ({reason}); "
            "export it to ONNX and fold that: repzoo fold"
        ) from error
    return traced.eval()


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
                self.opaque.add(self.failed)

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
        if isinstance(m, nn.Conv2d | nn.Linear) or module_qualified_name in self.opaque:
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _with_class_forward(module: nn.Module) -> nn.Module:
    """Move a `forward` that was set on the instance to its class, where torch.fx looks for it."""
    chosen = getattr(vars(module).get("forward"), "__func__", None)
    if chosen is not None:
        kind = type(module)
        members = {"forward": chosen, "__module__": kind.__module__}
        module.__class__ = type(kind.__name__, (kind,), members)
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
