"""Fold a PyTorch module without leaving PyTorch.

The module is traced with torch.fx and converted to an ONNX graph (to_ir.py) in which everything
that is not linear stays one opaque node. The fold engine for ONNX works on that graph. What it
wrote becomes `nn.Conv2d` and `nn.Linear` again. The result is a GraphModule: it trains, saves,
scripts and exports like any other module.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from repzoo.errors import CertificateError, MissingExtra
from repzoo.graph.certificate.comparison import Comparison, Equality, compare
from repzoo.graph.fold.engine import fold_graph
from repzoo.graph.tools.fold_result import Fold, Refusal

try:
    import torch
    from torch import fx, nn
except ModuleNotFoundError as error:
    raise MissingExtra("folding PyTorch modules", "torch") from error

from repzoo.torch.to_ir import FxGraph
from repzoo.torch.trace import trace

DEFAULT_SIZE = (3, 224, 224)


@dataclass(frozen=True)
class FoldedModule:
    """A folded module, with the folds that were made and those that were refused."""

    module: fx.GraphModule
    folds: tuple[Fold, ...]
    refusals: tuple[Refusal, ...]


def fold(module: nn.Module, example: torch.Tensor | None = None) -> fx.GraphModule:
    """An equal module in eval mode, with linear parts folded where that is cheaper.

    `module` stays as it is.

    example  an input, float [N, channels, height, width]; default: one image of the size in timm's
             `default_cfg`, else 3x224x224

    Raises:
        InputError: torch.fx cannot trace the module, or it does not take one tensor.
        CertificateError: the outputs on the example differ by more than rounding explains.
    """
    return fold_with_log(module, example).module


def fold_with_log(
    module: nn.Module, example: torch.Tensor | None = None
) -> FoldedModule:
    """As `fold`, with the log of folds and refusals."""
    images = _default_example(module) if example is None else example
    folded = _fold(module, images)
    comparison = _compare(module, folded.module, images)
    if comparison.equality is Equality.INCONCLUSIVE:
        # The network amplifies rounding until float32 outputs say nothing. In float64 there is 10^9
        # times as much room.
        wide = copy.deepcopy(module).double()
        comparison = _compare(
            wide, _fold(wide, images.double()).module, images.double()
        )
    if comparison.equality is Equality.DIFFERENT:
        raise CertificateError(
            f"the folded module is not proven equal: largest error {comparison.error:.3g}, "
            f"bound {comparison.bound:.3g}; "
            "this is a defect in repzoo unless the weights are not finite"
        )
    return folded


def _default_example(module: nn.Module) -> torch.Tensor:
    config = getattr(module, "default_cfg", None) or {}
    size = (
        config.get("input_size", DEFAULT_SIZE)
        if isinstance(config, dict)
        else DEFAULT_SIZE
    )
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


def _fold(module: nn.Module, images: torch.Tensor) -> FoldedModule:
    traced = trace(module, images)
    converted = FxGraph(traced)
    graph = converted.to_ir()
    folds, refusals = fold_graph(graph)
    converted.write_back(graph)
    return FoldedModule(traced, folds, refusals)


def _compare(module: nn.Module, folded: nn.Module, images: torch.Tensor) -> Comparison:
    """Compare both on `images`, with the bound that moving the module's own weights measures."""
    jittered = copy.deepcopy(module).eval()
    with torch.no_grad():
        outputs = [jittered(images), folded(images)]
        _move_weights(jittered)
        outputs.append(jittered(images))
    dtypes = [
        weight.dtype for weight in module.parameters() if weight.is_floating_point()
    ]
    roundoff = max((torch.finfo(dtype).eps / 2 for dtype in dtypes), default=2.0**-24)
    expected, actual, moved = (_rows(output) for output in outputs)
    return compare(expected, actual, moved, roundoff)


def _move_weights(module: nn.Module) -> None:
    """Move every weight of `module`, in place, to one of its two neighbors."""
    generator = torch.Generator().manual_seed(1)
    for weight in module.parameters():
        up = torch.rand(weight.shape, generator=generator) < 0.5
        direction = torch.where(up, torch.inf, -torch.inf).to(weight.dtype)
        weight.copy_(torch.nextafter(weight, direction))


def _rows(output: torch.Tensor) -> Any:
    """An output as a float64 array [N, values]."""
    return output.double().reshape(len(output), -1).cpu().numpy()
