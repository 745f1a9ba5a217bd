"""The verb `export`: a catalog model as an ONNX artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from repzoo import __version__
from repzoo.artifact import Preprocess, Step
from repzoo.errors import InputError
from repzoo.settings import (
    at_least,
    between,
    merge_keywords,
    setting,
    split_keywords,
    validate,
)
from repzoo.verbs.embed_camera_input import embed_input
from repzoo.verbs.fold_model import fold
from repzoo.verbs.model_files import load_file
from repzoo.verbs.optional_torch import needs_torch
from repzoo.verbs.public_artifact import Artifact
from repzoo.zoo import catalog, embedded
from repzoo.zoo.download import resolve
from repzoo.zoo.naming import CheckpointOptions


@dataclass(frozen=True)
class ExportOptions(CheckpointOptions):
    """Settings of `export`. Those of CheckpointOptions apply where there is a checkpoint."""

    num_classes: int | None = setting(
        None,
        help="Number of classes.  [default: that of --labels, else the model's]",
        range=at_least(1),
    )
    checkpoint: str | Path | None = setting(
        None,
        help="Weights: a .pth, .pt, .pdparams or .safetensors file, or a published name.",
    )
    pretrained: bool = setting(False, help="Download timm's ImageNet weights.")
    opset: int = setting(17, help="ONNX opset version.", range=between(11, 20))
    dynamic_batch: bool = setting(
        True, help="Leave the batch size open, or fix it at 1."
    )
    form: str = setting(
        "train",
        help="train keeps every BatchNormalization; deploy is folded.",
        choices=("train", "deploy"),
    )

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other before anything is built."""
        validate(self)
        if self.pretrained and self.checkpoint is not None:
            raise InputError(
                "pretrained and checkpoint both name weights; give only one of the two"
            )


def export(
    model: str,
    *,
    labels: Sequence[str] = (),
    options: ExportOptions | None = None,
    **settings: Any,
) -> Artifact:
    """Export a catalog model in training form, or folded with `form="deploy"`.

    labels    class names in the order of the outputs
    settings  fields of ExportOptions and of Preprocess, such as `opset=13, size=192`

    Weights that ship (`repghostnet_050.digits`) are exported as they are. Without `checkpoint`
    or `pretrained` the weights are random, from `seed`: right for counting and timing only.

    Raises:
        InputError: an unknown model or setting, a checkpoint that does not fit, or settings that
            embedded weights cannot have.
        MissingExtra: torch or timm is not installed.
    """
    own, preprocessing = split_keywords(settings, "export", ExportOptions, Preprocess)
    options = merge_keywords(ExportOptions, options, own)
    changes = {
        name: value for name, value in preprocessing.items() if value is not None
    }
    # The graph is exported with a float input; bytes are embedded afterwards, with a certificate.
    input_kind = changes.pop("input", "float")
    yuv = changes.pop("yuv", None)
    if labels and options.num_classes not in (None, len(labels)):
        raise InputError(
            f"{len(labels)} labels were given for {options.num_classes} classes; give a label for "
            "each, or leave --num-classes out"
        )
    if model in embedded.names():
        artifact = _load_embedded(model, options, labels, changes)
        preprocess = artifact.require_preprocess()
    else:
        artifact = None
        usual = asdict(catalog.spec(model).preprocess)
        preprocess = Preprocess.from_mapping({**usual, **changes})
    # Refuses an input that cannot be embedded before the model is built.
    replace(preprocess, input=input_kind, yuv=yuv or preprocess.yuv)
    if artifact is None:
        artifact = _build(model, preprocess, options, labels)
    if options.form == "deploy":
        artifact = fold(artifact)
    if input_kind == "float":
        return artifact
    return embed_input(artifact, input_kind, yuv=yuv).artifact


def _load_embedded(
    model: str,
    options: ExportOptions,
    labels: Sequence[str],
    changes: Mapping[str, Any],
) -> Artifact:
    """The embedded weights `model` with another preprocessing; they are a finished graph."""
    usual = asdict(ExportOptions())
    refused = [
        name
        for name, value in asdict(options).items()
        # A finished graph can still be folded.
        if name != "form" and value != usual[name]
    ]
    if labels:
        refused.append("labels")
    if refused:
        raise InputError(
            f"{model} ships as a finished graph, which cannot take another {', '.join(refused)}; "
            f"leave that out, or export {model.partition('.')[0]} with a checkpoint"
        )
    return load_file(model, **changes)


def _build(
    model: str, preprocess: Preprocess, options: ExportOptions, labels: Sequence[str]
) -> Artifact:
    """The training form, built and traced by torch."""
    with needs_torch("export"):
        from repzoo.graph.tools import export as exporting
        from repzoo.zoo import families
    num_classes = options.num_classes or len(labels) or catalog.spec(model).num_classes
    module, weights = _module(model, num_classes, options)
    settings = {
        "model": model,
        **weights,
        "num_classes": num_classes,
        "seed": options.seed,
    }
    names = tuple(labels)
    if not names and num_classes == families.IMAGENET_CLASSES:
        names = families.imagenet_labels()
    exported = exporting.export(
        module,
        model,
        preprocess,
        names,
        Step("build", __version__, settings),
        opset=options.opset,
        dynamic_batch=options.dynamic_batch,
    )
    return Artifact.wrap(exported)


def _module(
    model: str, num_classes: int, options: ExportOptions
) -> tuple[Any, dict[str, Any]]:
    """(the torch module, what the artifact's history says about its weights)."""
    from repzoo.zoo import families

    if options.checkpoint is None:
        module = families.seeded(model, num_classes, options.seed, options.pretrained)
        return module, {"weights": "pretrained" if options.pretrained else "random"}
    from repzoo.zoo import checkpoints

    path = resolve(options.checkpoint)
    loading = CheckpointOptions(
        options.source, num_classes, options.reset_head, options.ema, options.seed
    )
    weights = checkpoints.load(path, model, loading)
    history = {
        "weights": path.name,
        "source": weights.source,
        "remarks": list(weights.remarks),
    }
    return checkpoints.module_of(weights), history
