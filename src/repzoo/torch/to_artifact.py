"""From one's own PyTorch module to an Artifact: one ONNX file with preprocessing and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from repzoo import __version__
from repzoo.artifact import Preprocess, Step
from repzoo.errors import InputError, first_line
from repzoo.graph.tools.export import export as export_module
from repzoo.settings import merge_keywords
from repzoo.storage import require_writable
from repzoo.torch.prepare import is_exported, plain_copy, unwrap

if TYPE_CHECKING:
    from repzoo.verbs.public_artifact import Artifact


def export(
    module: nn.Module,
    path: str | Path,
    *,
    labels: Sequence[str] = (),
    opset: int = 17,
    dynamic_batch: bool = True,
    preprocess: Preprocess | None = None,
    **settings: Any,
) -> Artifact:
    """Write `module` as an ONNX file in training form, and return it as an Artifact.

    `module` stays as it is; it is exported in eval mode with every BatchNormalization, for
    `repzoo.fold` to fold with a certificate.

    module         float32 [N, 3, size, size] -> logits [N, classes]
    path           the .onnx file
    labels         class names in the order of the outputs
    opset          11..20
    dynamic_batch  leave N open, or fix it at 1
    preprocess     how images were prepared for the module; for a timm model:
                   `Preprocess.from_timm(timm.data.resolve_model_data_config(module))`
    settings       its fields instead: `size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)`;
                   ImageNet's values where they are left out

    Raises:
        InputError: not a module, an unknown or impossible setting, labels that do not fit the
            outputs, a module that torch cannot export, or a place that cannot be written.
    """
    target = Path(path)
    require_writable(target)
    prepared = merge_keywords(Preprocess, preprocess, settings)
    if prepared.input != "float":
        raise InputError(
            f"a module takes floats, so it cannot be exported with input={prepared.input!r}; "
            "export it, then use repzoo.embed_input"
        )
    inner = unwrap(module)
    if is_exported(inner):
        raise InputError(
            "programs of torch.export are not written in training form; give the module that was "
            "exported"
        )
    step = Step("build", __version__, {"module": type(inner).__name__})
    try:
        artifact = export_module(
            plain_copy(inner),
            target.stem,
            prepared,
            tuple(labels),
            step,
            opset=opset,
            dynamic_batch=dynamic_batch,
        )
    except InputError:
        raise
    # The exporter runs the module's own code, which may raise anything.
    except Exception as error:
        raise InputError(
            f"torch cannot export {type(inner).__name__} on an input of 1x3x{prepared.size}x"
            f"{prepared.size} ({first_line(error)}); check `size`, and that the module takes one "
            "tensor"
        ) from error
    # Here, for the engines import this package and the verbs import the engines.
    from repzoo.verbs.public_artifact import Artifact

    return Artifact.wrap(artifact.save(target))
