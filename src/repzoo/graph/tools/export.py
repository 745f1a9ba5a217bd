"""A PyTorch classifier to ONNX in its training form: every BatchNormalization stays for the fold.

torch's own exporter fuses Conv+BN unless it is told to preserve the training graph. So it is
checked that no BatchNormalization is missing.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

import onnx

from repzoo.artifact import MAX_MODEL_BYTES, Artifact, Preprocess, Step
from repzoo.errors import InputError, RepzooError
from repzoo.onnx_file import model_inputs

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT = "data", "output"
OPSETS = range(11, 21)


def export(
    module: torch.nn.Module,
    name: str,
    preprocess: Preprocess,
    labels: tuple[str, ...],
    step: Step,
    *,
    opset: int = 17,
    dynamic_batch: bool = True,
) -> Artifact:
    """The Artifact of `module`, with `step` as its history.

    Its input `data` is float32 [N, 3, height, width], its output `output` [N, classes].

    opset          11..20
    dynamic_batch  True leaves N open, False fixes it at 1

    Raises:
        InputError: opset outside 11..20, a label count that is not the number of outputs, or
            more weights than one file holds.
        RepzooError: the exporter dropped a BatchNormalization.
    """
    if opset not in OPSETS:
        raise InputError(
            f"opset must lie in {OPSETS.start}..{OPSETS.stop - 1}; got {opset}"
        )
    _require_one_file(module, name)
    model = _torch_export(module, preprocess.input_shape, opset, dynamic_batch)
    _require_every_batchnorm(module, model)
    artifact = Artifact(model, name, preprocess, labels)
    if labels and artifact.num_classes != len(labels):
        raise InputError(
            f"{len(labels)} labels were given for a model with {artifact.num_classes} outputs; "
            "give one for each"
        )
    settings = {"opset": opset, "dynamic_batch": dynamic_batch, **asdict(preprocess)}
    if preprocess.orientation == "ignore":
        # The only choice there was before the field existed: files stay the same byte for byte.
        del settings["orientation"]
    return Artifact(model, name, preprocess, labels, (step,)).then(
        model, Step("export", step.version, settings)
    )


def _require_one_file(module: torch.nn.Module, name: str) -> None:
    weights = 0
    for item in module.state_dict().values():
        weights += item.numel() * item.element_size()
    if weights > MAX_MODEL_BYTES:
        raise InputError(
            f"{name} has {weights:,} bytes of weights; one ONNX file holds at most "
            f"{MAX_MODEL_BYTES:,}"
        )


def _torch_export(
    module: torch.nn.Module, sides: tuple[int, ...], opset: int, dynamic_batch: bool
) -> onnx.ModelProto:
    import torch

    buffer = io.BytesIO()
    example = torch.zeros(1, *sides)
    open_axes = {INPUT: {0: "N"}, OUTPUT: {0: "N"}}
    was_training = module.training
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        # The TorchScript exporter is deprecated, yet the only one that keeps every BatchNorm.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a file object
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=open_axes if dynamic_batch else None,
            # Without it, tensors of equal value are merged, such as the new scales of two BNs.
            keep_initializers_as_inputs=True,
        )
    module.train(was_training)
    return _with_constant_weights(onnx.load_model_from_string(buffer.getvalue()))


def _with_constant_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the graph inputs that would let a caller replace its weights."""
    kept = model_inputs(model)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def _require_every_batchnorm(module: torch.nn.Module, model: onnx.ModelProto) -> None:
    """Refuse an export with fewer BatchNormalizations than the module has."""
    from torch.nn.modules.batchnorm import _BatchNorm

    expected = 0
    for item in module.modules():
        # One without statistics takes those of its input, as in training.
        expected += isinstance(item, _BatchNorm) and item.running_mean is not None
    exported = 0
    for node in model.graph.node:
        exported += node.op_type == "BatchNormalization" and _is_inference(node)
    if exported < expected:  # more is sound: a module may be called twice
        raise RepzooError(
            f"the exporter wrote {exported} BatchNormalizations where the module has {expected}"
        )


def _is_inference(node: onnx.NodeProto) -> bool:
    """Whether a BatchNormalization uses stored statistics.

    One that takes its input's own standardizes weights, or never had any.
    """
    settings = {item.name: item.i for item in node.attribute}
    return len(node.output) == 1 and not settings.get("training_mode")
