"""Make a plain module of what people have: copied, in eval mode, its weights ordinary tensors."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune

from repzoo.errors import InputError

# What wraps a module for several devices or for a compiler, and where the module is.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


def unwrap(module: nn.Module | torch.export.ExportedProgram) -> nn.Module:
    """The module itself, without DataParallel or torch.compile around it.

    Raises:
        InputError: not a module, or a TorchScript program.
    """
    if isinstance(module, torch.export.ExportedProgram):
        return module.module()
    inner: Any = module
    while type(inner).__name__ in WRAPPERS:
        inner = getattr(inner, WRAPPERS[type(inner).__name__])
    if isinstance(inner, torch.jit.ScriptModule):
        raise InputError(
            "a TorchScript program keeps no layers that could be folded; fold the module that it "
            "was made from, or export it to ONNX: repzoo fold"
        )
    if not isinstance(inner, nn.Module):
        raise InputError(
            f"a torch.nn.Module or torch.export.ExportedProgram is needed; got "
            f"{type(module).__name__}"
        )
    return inner


def eval_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` in eval mode."""
    copied = copy.deepcopy(module, _detached_tensors(module))
    # torch.export's modules refuse eval(): their mode is fixed when they are exported.
    if not is_exported(copied):
        copied.eval()
    return copied


def plain_copy(module: nn.Module) -> nn.Module:
    """`eval_copy` with every parametrized weight computed once.

    In eval mode weight_norm, spectral_norm and pruning compute the same weight at every call.
    """
    plain = eval_copy(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the older weight_norm
        for layer in list(plain.modules()):
            _remove_parametrizations(layer)
            _remove_hooks(layer)
    return plain


def is_exported(module: nn.Module) -> bool:
    """Whether `module` comes from torch.export."""
    return isinstance(module, fx.GraphModule) and "eval" in vars(module)


def _detached_tensors(module: nn.Module) -> dict[int, Any]:
    """Copies of computed tensors, which deepcopy refuses, by id.

    The older weight_norm keeps such a tensor as `weight`.
    """
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for value in vars(layer).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return memo


def _remove_parametrizations(layer: nn.Module) -> None:
    if not parametrize.is_parametrized(layer):
        return
    # torch removes the weight's property from the class, which the caller's module shares.
    kind = type(layer)
    members = dict(vars(kind))
    for name in ("__dict__", "__weakref__"):
        members.pop(name, None)
    layer.__class__ = type(kind.__name__, kind.__bases__, members)
    for name in list(layer.parametrizations):  # type: ignore[arg-type]
        parametrize.remove_parametrizations(layer, name)


def _remove_hooks(layer: nn.Module) -> None:
    """Undo weight_norm, spectral_norm and pruning of the kind that hooks into every call."""
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)  # type: ignore[no-untyped-call]
        elif type(hook).__name__ == "WeightNorm":
            nn.utils.remove_weight_norm(layer, hook.name)  # type: ignore[attr-defined]
        elif type(hook).__name__ == "SpectralNorm":
            nn.utils.remove_spectral_norm(layer, hook.name)  # type: ignore[attr-defined]
