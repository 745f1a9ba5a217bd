"""Fold a PyTorch module without leaving PyTorch.

The module is traced with torch.fx and converted to an ONNX graph (to_ir.py) in which everything
that is not linear stays one opaque node. The fold engine for ONNX works on that graph. What it
wrote becomes `nn.Conv2d` and `nn.Linear` again. The result is a GraphModule: it trains, saves,
scripts and exports like any other module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.errors import CertificateError, InputError, MissingExtra
from repzoo.graph.certificate.comparison import Comparison, Equality, compare
from repzoo.graph.certificate.number_types import FLOAT32_ROUNDOFF
from repzoo.graph.fold.engine import fold_graph
from repzoo.graph.tools.fold_result import Fold, Refusal

try:
    import torch
    from torch import fx, nn
    from torch.utils import _pytree as pytree
except ModuleNotFoundError as error:
    raise MissingExtra("folding PyTorch modules", "torch") from error

from repzoo.torch.norms import absorb_norms
from repzoo.torch.prepare import eval_copy, plain_copy, unwrap
from repzoo.torch.to_ir import FxGraph
from repzoo.torch.trace import Inputs, clones, trace

DEFAULT_SIZE = (3, 224, 224)

Module = nn.Module | torch.export.ExportedProgram
Example = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class FoldedModule:
    """A folded module, with the folds that were made and those that were refused."""

    module: fx.GraphModule
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]


def fold(module: Module, example: Example | None = None) -> fx.GraphModule:
    """An equal module in eval mode, with linear parts folded where that is cheaper.

    `module` stays as it is. Its outputs may be a tensor, a tuple, a list or a dict. The result has
    no more convolutions than `module`. Weights that weight_norm, spectral_norm or pruning compute
    become ordinary weights. Layers keep their number type, float16 and bfloat16 included.

    module   a torch.nn.Module, or what torch.export.export returns
    example  an input, float [N, channels, height, width], or a tuple of several; default: that of
             the exported program, else one image of the size in timm's `default_cfg`, else
             3x224x224

    Raises:
        InputError: torch.fx cannot trace the module, it does not take `example`, or it changes
            parts of tensors in place that it reads again.
        CertificateError: the outputs on the example differ by more than rounding explains.
    """
    return fold_with_log(module, example).module


def fold_with_log(module: Module, example: Example | None = None) -> FoldedModule:
    """As `fold`, with the log of folds and refusals.

    Every convolution and BatchNorm that is left as it was has a refusal that says why.
    """
    inner = unwrap(module)
    inputs = _inputs(module, example)
    folded = _fold(inner, inputs)
    comparison = _compare(inner, folded.module, inputs)
    if comparison.equality is Equality.INCONCLUSIVE:
        # The network amplifies rounding until float32 outputs say nothing. In float64 there is 10^9
        # times as much room.
        wide = plain_copy(inner).double()
        wide_inputs = tuple(item.double() for item in inputs)
        comparison = _compare(wide, _fold(wide, wide_inputs).module, wide_inputs)
    if comparison.equality is Equality.DIFFERENT:
        raise CertificateError(
            f"the folded module is not proven equal: largest error {comparison.error:.3g}, "
            f"bound {comparison.bound:.3g}; "
            "this is a defect in repzoo unless the weights are not finite"
        )
    return folded


def _inputs(module: Module, example: Example | None) -> Inputs:
    """The tensors of `example`, or of the default that `fold` names."""
    if example is None and isinstance(module, torch.export.ExportedProgram):
        if module.example_inputs is None or module.example_inputs[1]:
            raise InputError(
                "the exported program holds no example of its inputs by position; give `example`"
            )
        example = module.example_inputs[0]
    if example is None:
        return (_default_example(module),)
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(item, torch.Tensor) for item in inputs):
        raise InputError(
            f"`example` must be a tensor or a tuple of tensors; got {type(example).__name__}"
        )
    return inputs


def _default_example(module: Any) -> torch.Tensor:
    """A random image of the size in timm's `default_cfg`, like the weights of `module`."""
    config = getattr(module, "default_cfg", None)
    size = DEFAULT_SIZE
    if isinstance(config, dict):
        size = config.get("input_size", DEFAULT_SIZE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, *size, generator=generator)
    weights = [item for item in module.parameters() if item.is_floating_point()]
    return images.to(weights[0]) if weights else images


def _fold(module: nn.Module, inputs: Inputs) -> FoldedModule:
    """The fold of `module`, not compared with it yet."""
    traced = trace(module, inputs)
    norms = absorb_norms(traced)
    converted = FxGraph(traced)
    graph = converted.to_ir()
    folds, refusals = fold_graph(graph)
    converted.write_back(graph)
    written = (*norms, *converted.folds_in_module(folds))
    refused = _without_folded([*refusals, *converted.refusals], norms)
    return FoldedModule(traced, written, refused)


def _without_folded(
    refusals: Iterable[Refusal], folds: Iterable[Fold]
) -> tuple[Refusal, ...]:
    """The last refusal of each node, without the nodes that `folds` took in."""
    folded: set[str] = set()
    for fold in folds:
        folded.update(fold.nodes)
    by_node: dict[str, Refusal] = {}
    for item in refusals:
        if item.node not in folded:
            by_node[item.node] = item
    return tuple(by_node.values())


def _compare(module: nn.Module, folded: nn.Module, inputs: Inputs) -> Comparison:
    """Compare both on `inputs`, with the bound that moving the module's own weights measures."""
    jittered = plain_copy(module)
    with torch.no_grad():
        expected = _rows(eval_copy(module)(*clones(inputs)))
        actual = _rows(folded(*clones(inputs)))
        _move_weights(jittered)
        moved = _rows(jittered(*clones(inputs)))
    return compare(expected, actual, moved, _coarsest_roundoff(module))


def _coarsest_roundoff(module: nn.Module) -> float:
    """The largest unit roundoff among the number types of the weights."""
    roundoffs = []
    for weight in module.parameters():
        if weight.is_floating_point():
            roundoffs.append(torch.finfo(weight.dtype).eps / 2)
    return max(roundoffs, default=FLOAT32_ROUNDOFF)


def _move_weights(module: nn.Module) -> None:
    """Move every weight of `module`, in place, to one of its two neighbors."""
    generator = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        if not weight.is_floating_point():
            continue
        up = torch.rand(weight.shape, generator=generator) < 0.5
        direction = torch.where(up, torch.inf, -torch.inf)
        direction = direction.to(weight.device, weight.dtype)
        weight.copy_(torch.nextafter(weight, direction))


def _rows(outputs: Any) -> npt.NDArray[np.float64]:
    """The outputs as one float64 array [N, values].

    Classes and other whole numbers are left out where there are real numbers.
    """
    tensors = []
    real = []
    for item in pytree.tree_leaves(outputs):
        if isinstance(item, torch.Tensor):
            tensors.append(item)
            if item.is_floating_point():
                real.append(item)
    if not tensors:
        raise InputError(
            "the module returns no tensor, so nothing shows whether a folded one is equal; return "
            "a tensor, or a tuple or dict of tensors"
        )
    rows = []
    for tensor in real or tensors:
        first = tensor.shape[0] if tensor.dim() else 1
        rows.append(tensor.double().reshape(first, -1).cpu().numpy())
    # Outputs of different first axes, such as a scalar beside logits, go into one row.
    if len(set(map(len, rows))) > 1:
        rows = [item.reshape(1, -1) for item in rows]
    return np.concatenate(rows, axis=1)
