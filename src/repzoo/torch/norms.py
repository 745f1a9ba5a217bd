"""Fold BatchNorms into convolutions that the fold's algebra does not know.

Transposed, one- and three-dimensional convolutions, and those that do not pad with zeros, are
linear in their weight and bias. So a BatchNorm after one scales its weight (arXiv:1806.08342,
section 3.2.2). torch has a function for that.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from repzoo.graph.tools.fold_result import Fold
from repzoo.torch.layers import can_absorb_norm


def absorb_norms(traced: fx.GraphModule) -> list[Fold]:
    """Fold each BatchNorm that alone reads such a convolution, in place."""
    folds = []
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for norm in list(traced.graph.nodes):
        before = norm.all_input_nodes[0] if norm.all_input_nodes else None
        if before is None or not _is_pair(traced, before, norm):
            continue
        # A layer that is called twice keeps the weights that the other call needs.
        if calls[str(before.target)] > 1:
            continue
        folds.append(_absorb(traced, before, norm))
    traced.recompile()
    return folds


def _is_pair(traced: fx.GraphModule, before: fx.Node, norm: fx.Node) -> bool:
    if before.op != "call_module" or norm.op != "call_module":
        return False
    layer = traced.get_submodule(str(norm.target))
    is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    has_own_forward = type(layer).forward is not nn.modules.batchnorm._BatchNorm.forward
    if not is_norm or has_own_forward or layer.running_mean is None:
        return False
    return (
        can_absorb_norm(traced.get_submodule(str(before.target)))
        and len(before.users) == 1
    )


def _absorb(traced: fx.GraphModule, before: fx.Node, norm: fx.Node) -> Fold:
    conv: Any = traced.get_submodule(str(before.target))
    layer: Any = traced.get_submodule(str(norm.target))
    is_transposed = isinstance(conv, nn.modules.conv._ConvTransposeNd)
    folded = fuse_conv_bn_eval(conv, layer, transpose=is_transposed)
    traced.set_submodule(str(before.target), folded)
    norm.replace_all_uses_with(before)
    traced.graph.erase_node(norm)
    strides = 1 if is_transposed else math.prod(conv.stride)
    macs = conv.weight.numel() / strides
    return Fold(
        output=norm.name,
        nodes=(str(norm.target), str(before.target)),
        kind=f"BatchNorm+{type(conv).__name__}",
        macs_before=macs + layer.num_features / strides,
        macs_after=macs,
    )
