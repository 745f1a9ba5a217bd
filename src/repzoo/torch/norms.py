"""Fold BatchNorms into convolutions that the fold's algebra does not know.

Transposed, one- and three-dimensional convolutions, and those that do not pad with zeros, are
linear in their weight and bias. So a BatchNorm after one scales its weight (arXiv:1806.08342,
section 3.2.2). torch has a function for that.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from repzoo.graph.tools.fold_result import Fold
from repzoo.torch.layers import can_absorb_norm


def absorb_norms(traced: fx.GraphModule) -> list[Fold]:
    """Fold each BatchNorm that alone reads such a convolution, in place."""
    folds = []
    modules = traced.graph.find_nodes(op="call_module")
    calls = Counter(str(node.target) for node in modules)
    for norm in list(traced.graph.nodes):
        if not norm.all_input_nodes:
            continue
        call = norm.all_input_nodes[0]
        # A layer that is called twice keeps the weights that the other call needs.
        if _is_pair(traced, call, norm) and calls[str(call.target)] == 1:
            folds.append(_absorb(traced, call, norm))
    traced.recompile()
    return folds


def _is_pair(traced: fx.GraphModule, call: fx.Node, norm: fx.Node) -> bool:
    """Whether `norm` is a BatchNorm, and `call` a convolution that it alone reads."""
    if call.op != "call_module" or norm.op != "call_module" or len(call.users) > 1:
        return False
    layer = traced.get_submodule(str(norm.target))
    base = nn.modules.batchnorm._BatchNorm
    if not isinstance(layer, base) or layer.running_mean is None:
        return False
    # A subclass may do more than normalize, as timm's norms with an activation inside do.
    if type(layer).forward is not base.forward:
        return False
    return can_absorb_norm(traced.get_submodule(str(call.target)))


def _absorb(traced: fx.GraphModule, call: fx.Node, norm: fx.Node) -> Fold:
    """Fold `norm` into the convolution that `call` calls, in place."""
    conv: Any = traced.get_submodule(str(call.target))
    layer: Any = traced.get_submodule(str(norm.target))
    is_transposed = isinstance(conv, nn.modules.conv._ConvTransposeNd)
    folded = fuse_conv_bn_eval(conv, layer, transpose=is_transposed)
    traced.set_submodule(str(call.target), folded)
    norm.replace_all_uses_with(call)
    traced.graph.erase_node(norm)
    # Multiplications for each pixel of the input.
    strides = 1 if is_transposed else math.prod(conv.stride)
    macs = conv.weight.numel() / strides
    return Fold(
        output=norm.name,
        nodes=(str(norm.target), str(call.target)),
        kind=f"BatchNorm+{type(conv).__name__}",
        macs_before=macs + layer.num_features / strides,
        macs_after=macs,
    )
