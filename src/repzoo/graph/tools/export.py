"""A PyTorch classifier to ONNX in its training form: every BatchNormalization stays, for the
fold to prove away.

torch's own exporter fuses Conv+BN unless it is told to preserve the training graph; that none
of the BatchNormalizations is missing is therefore checked.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

import onnx

from repzoo.artifact import MAX_MODEL_BYTES, Artifact, Preprocess, Step
from repzoo.errors import InputError, RepzooError

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
    """The Artifact of `module` (float32 [N, 3, size, size] `data` -> [N, classes] `output`),
    with `step` as its history.

    opset          11..20
    dynamic_batch  True leaves N open, False fixes it at 1

    Raises:
        InputError: opset outside 11..20, a label count that is not the number of outputs, or
        more weights than one file holds. RepzooError: the exporter dropped a
        BatchNormalization.
    """
    if opset not in OPSETS:
        raise InputError(
            f"opset must lie in {OPSETS.start}..{OPSETS.stop - 1}; got {opset}"
        )
    _require_one_file(module, name)
    sides = preprocess.input_shape
    model = _torch_export(module, sides, opset, dynamic_batch)
    _assert_every_batchnorm(module, model)
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
    weights = sum(
        item.numel() * item.element_size() for item in module.state_dict().values()
    )
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
    was_training = module.training
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        # The TorchScript exporter is deprecated, yet the only one that keeps every BatchNorm.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, *sides),),
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a file object
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}} if dynamic_batch else None,
            # Without it, tensors of equal value are merged, such as the new scales of two BNs.
            keep_initializers_as_inputs=True,
        )
    module.train(was_training)
    return _with_constant_weights(onnx.load_model_from_string(buffer.getvalue()))


def _with_constant_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without the graph inputs that would let a caller replace its weights."""
    weights = {item.name for item in model.graph.initializer}
    kept = [item for item in model.graph.input if item.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def _assert_every_batchnorm(module: torch.nn.Module, model: onnx.ModelProto) -> None:
    from torch.nn.modules.batchnorm import _BatchNorm

    kept = [
        item
        for item in module.modules()
        if isinstance(item, _BatchNorm) and item.running_mean is not None
    ]
    exported = sum(
        node.op_type == "BatchNormalization" and _is_inference(node)
        for node in model.graph.node
    )
    if exported < len(kept):  # more is sound: a module may be called twice
        raise RepzooError(
            f"the exporter wrote {exported} BatchNormalizations where the module has {len(kept)}"
        )


def _is_inference(node: onnx.NodeProto) -> bool:
    """Whether it uses statistics that it is given; one that takes its input's own standardizes
    weights, or never had any.
    """
    return len(node.output) == 1 and not any(
        item.name == "training_mode" and item.i for item in node.attribute
    )
