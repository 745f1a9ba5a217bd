"""The pack for Vastai's VA cards: what vamc, classification.py and vamp need.

vamc compiles the ONNX file to float16 or, with a few images, to int8. On the card the images pass
through its own operator (vdsp.py), then the network. Nothing of this tool chain is public but the
files of VastModelZOO, and its keys and names are taken from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.dataset import Dataset, QuantizationSplit
from repzoo.errors import InputError
from repzoo.graph.tools.cost import count
from repzoo.graph.tools.head import HeadKind, find_head
from repzoo.graph.tools.onnx_edit import nodes_by_output, redirect_readers, tensor_names
from repzoo.measure.class_mapping import lacks_classes, require_classes
from repzoo.packs import vastai_images, vdsp
from repzoo.packs.families import catalog_row
from repzoo.packs.limits import require_channels_first
from repzoo.packs.pack import Figures, PackFile, PackJob
from repzoo.packs.parts import (
    file_name,
    render,
    shared_files,
)
from repzoo.packs.vastai_images import (
    CalibrationImages,
    EvaluationImages,
    calibration_images,
    evaluation_images,
)
from repzoo.packs.vastai_steps import PRECISIONS, TOP, CardSteps, parameters_file
from repzoo.packs.vdsp import CardLoss
from repzoo.protobuf_stream import clone
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search.half_model import Float16Prediction, predict_float16
from repzoo.storage import json_text

SCHEME = "vastai"
INPUT = "input"  # nearly all public files call it so
HALF_CALIBRATION, HALF_IMAGES = 64, 256  # images that float16 is predicted on
# Our names of range methods -> calibrate_mode.
CALIBRATE_MODES = {
    "minmax": "max",
    "percentile": "percentile",
    "mse": "mse",
    "entropy": "kl_divergence",
}


class Vastai:
    """The target `vastai`."""

    name = "vastai"
    scheme = SCHEME

    def check(self, artifact: Artifact) -> None:
        """Refuse what vamc, the card's image operator or classification.py cannot take.

        Raises:
            InputError: names it, and what to do.
        """
        preprocess = artifact.require_preprocess()
        require_channels_first(artifact, "the card's operator makes NCHW only")
        if preprocess.color == "GRAY":
            raise InputError(
                f"{artifact.name} takes gray images; the card's operator makes three channels "
                "only: train or export it for RGB"
            )
        if require_classes(artifact).kind is HeadKind.BINARY:
            raise InputError(
                f"{artifact.name} has a single output; Vastai's scripts expect one output for each "
                "class: export it with two"
            )
        if not artifact.labels:
            raise InputError(
                f"{artifact.name} has no labels, and classification.py prints one for each output; "
                "give --labels with a file that names the outputs, one a line"
            )
        vdsp.normalization(preprocess).in_half()  # refuses what float16 cannot hold

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The model, configurations, images, arrays, steps, labels and READMEs."""
        content = _content(job)
        name = content.name
        yield f"{name}.onnx", content.model.to_bytes()
        for precision in PRECISIONS:
            yield f"{name}_{precision}.yaml", yaml_text(content, precision)
        parameters = vdsp.parameters(content.preprocess, content.kernel)
        yield parameters_file(name), json_text(parameters, indent=4) + "\n"
        yield from content.calibration.files(content.preprocess)
        if content.evaluation:
            yield from content.evaluation.files(content.preprocess)
        listed = CardSteps(
            name,
            content.preprocess,
            content.evaluation,
            has_classes=content.model.num_classes >= TOP,
        ).all()
        yield from shared_files(job, "vastai", listed, **_facts(content, job.figures))


@dataclass(frozen=True)
class Content:
    """What a pack is written from.

    Attributes:
        name: of the model, as a file name.
        model: the packed one.
        preprocess: its preprocessing.
        calibration: images for vamc.
        kernel: the card's filter.
        evaluation: images for the card; None where no image judged the model.
        loss: what the card's preprocessing costs; None where it was not measured.
        half: what to expect of fp16; None where it was not measured.
        skipped: indices of convolutions that stay out of int8.
        not_skipped: other nodes that should stay out of it, which vamc cannot be told.
    """

    name: str
    model: Artifact
    preprocess: Preprocess
    calibration: CalibrationImages
    kernel: str = vdsp.DEFAULT_KERNEL
    evaluation: EvaluationImages | None = None
    loss: CardLoss | None = None
    half: Float16Prediction | None = None
    skipped: tuple[int, ...] = ()
    not_skipped: tuple[str, ...] = ()


def _content(job: PackJob) -> Content:
    """Choose images and filter, and measure."""
    artifact = job.artifact
    preprocess = artifact.require_preprocess()
    skipped, not_skipped = split_fallback(artifact.model.graph, job.fallback)
    content = Content(
        name=file_name(artifact.name),
        model=with_input_name(artifact, INPUT),
        preprocess=preprocess,
        calibration=calibration_images(job.images, preprocess),
        kernel=vdsp.choose_kernel(artifact, job.images),
        skipped=skipped,
        not_skipped=not_skipped,
    )
    if job.gate is None:
        return content
    judged = job.gate.subset(job.gate.balanced_sample(vdsp.MEASURED, job.seed))
    loss = vdsp.measure_loss(artifact, judged, content.kernel, job.predictions)
    job.remarks.append(loss_sentence(artifact.name, loss))
    return replace(
        content,
        loss=loss,
        half=_predict_half(job, judged),
        evaluation=evaluation_images(job.gate, artifact, job.seed),
    )


def _predict_half(job: PackJob, judged: Dataset) -> Float16Prediction:
    """What vamc's fp16 does to the packed model; it converts all without a look at ranges."""
    artifact, calibration = job.artifact, job.images
    # float16 changes few predictions, so that few images are enough to see that it does not.
    seen = calibration.subset(calibration.balanced_sample(HALF_CALIBRATION, job.seed))
    compared = judged.subset(judged.balanced_sample(HALF_IMAGES, job.seed))
    # Nothing is chosen here, so that no images are needed to choose by.
    split = QuantizationSplit(seen, seen, compared)
    if lacks_classes(judged, artifact):
        split = split.without_labels()
    return predict_float16(artifact, split, known=job.predictions)


def loss_sentence(name: str, loss: CardLoss) -> str:
    """What the user must know of the card's preprocessing."""
    card = loss.card
    if not loss.labeled:
        return (
            f"{name}: the card prepares images in its own way; {card.same_prediction:.2f} % of "
            f"the predictions on {card.n} images stay (float, {loss.kernel})"
        )
    text = (
        f"{name}: the card prepares images in its own way, which changes Top-1 on {card.n} images "
        f"from {loss.model.top1:.2f} to {card.top1:.2f} % (float, {loss.kernel})"
    )
    if loss.cropped is None:
        return text
    return f"{text}; with images that are cropped to a square first it is {loss.cropped.top1:.2f} %"


def with_input_name(artifact: Artifact, name: str) -> Artifact:
    """`artifact` with its input called `name`; as it is where another tensor has that name."""
    old = artifact.input_name
    if old == name or name in tensor_names(artifact.model.graph):
        return artifact
    model = clone(artifact.model)
    for value in model.graph.input:
        if value.name == old:
            value.name = name
    redirect_readers(model.graph.node, old, name)
    return replace(artifact, model=model)


def convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The Conv nodes in the order in which TVM's quantizer, and so skip_conv_layers, counts them.

    That is depth first from the output: the inputs of a node before itself, the first input first.
    It is the order of the file for a plain chain, but not where branches meet.

    Source: relay.quantize of Apache TVM (QuantizeContext.check_to_skip), which vamc is made from.
    """
    producers = nodes_by_output(graph)
    order: list[onnx.NodeProto] = []
    seen: set[str] = set()
    pending = [(item.name, False) for item in reversed(graph.output)]
    while pending:
        tensor, are_inputs_done = pending.pop()
        node = producers.get(tensor)
        if node is None:
            continue
        if are_inputs_done:
            order.append(node)
        elif node.output[0] not in seen:
            seen.add(node.output[0])
            pending.append((tensor, True))
            pending.extend((name, False) for name in reversed(node.input))
    return [node for node in order if node.op_type == "Conv"]


def split_fallback(
    graph: onnx.GraphProto, names: Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(indices of the convolutions among `names`, the other names)."""
    indices: dict[str, int] = {}
    for index, node in enumerate(convolutions(graph)):
        indices[node.name] = indices[node.output[0]] = index
    skipped = sorted({indices[name] for name in names if name in indices})
    others = [name for name in names if name not in indices]
    return tuple(skipped), tuple(others)


def yaml_text(content: Content, precision: str) -> str:
    """vamc's configuration for "fp16" or "int8", computed from the model's preprocessing."""
    preprocess = content.preprocess
    form = vdsp.normalization(preprocess)
    return render(
        "vastai.yaml.j2",
        name=content.name,
        dtype=precision,
        input_name=content.model.input_name,
        height=preprocess.height,
        width=preprocess.width,
        resized=vdsp.resized_sides(preprocess),
        calibrate_mode=calibrate_mode(content.model),
        skipped=content.skipped,
        softmax=find_head(content.model.model).kind is HeadKind.LOGITS,
        calibration=vastai_images.CALIBRATION,
        suffix=content.calibration.suffix,
        images=len(content.calibration.images),
        bgr=preprocess.color == "BGR",
        mean=form.mean,
        std=form.std,
        div255=form.largest == 1,
    )


def calibrate_mode(artifact: Artifact) -> str:
    """How vamc should choose activation ranges: as hardening found best, else by its usual way."""
    method = load_scheme(SCHEME).ranges
    for step in artifact.steps:
        # The history is in the file, which may come from anywhere, or from another target.
        chosen = step.settings.get("ranges")
        if step.settings.get("target") == SCHEME and str(chosen) in CALIBRATE_MODES:
            method = str(chosen)
    return CALIBRATE_MODES[method]


def _rows(content: Content, figures: Figures) -> dict[str, dict[str, Any]]:
    """The figures of the performance table: by row top1, top5, drop and images, as far as known."""
    loss, half = content.loss, content.half.paired if content.half else None
    rows: dict[str, dict[str, Any]] = {
        "float": {"top1": figures.float_top1, "images": figures.images},
        "fp16": {},
        "int8": {"top1": figures.predicted_top1, "images": figures.images},
    }
    if loss and loss.labeled:
        model = loss.model
        rows["float"] = {"top1": model.top1, "top5": model.top5, "images": model.n}
    if half:
        drop = half.drop if half.labeled else None
        rows["fp16"] = {"top1": half.top1, "drop": drop, "images": half.n}
    if figures.float_top1 is not None and figures.predicted_top1 is not None:
        rows["int8"]["drop"] = figures.float_top1 - figures.predicted_top1
    return rows


def _facts(content: Content, figures: Figures) -> dict[str, Any]:
    """What the READMEs say beside what all packs say."""
    cost = count(content.model)
    labels = Counter(content.model.labels)
    return {
        "rows": _rows(content, figures),
        "billions": cost.macs / 1e9,
        "operators": cost.operators,
        "preprocess": content.preprocess,
        "resized": vdsp.resized_sides(content.preprocess),
        "head": find_head(content.model.model).kind.value,
        "kernel": content.kernel,
        "calibrate_mode": calibrate_mode(content.model),
        "half": content.half.paired if content.half else None,
        "overflowing": _overflowing(content.half),
        "loss": content.loss,
        "skipped": content.skipped,
        "not_skipped": content.not_skipped,
        "repeated": [label for label, times in labels.items() if times > 1],
        "history": content.model.steps,
        "origin": catalog_row(content.model),
        "suffix": content.calibration.suffix,
        "evaluation": content.evaluation,
        "top": TOP,
        "vdsp": parameters_file(content.name),
    }


def _overflowing(half: Float16Prediction | None) -> list[str]:
    """The operators that float16 breaks, by their first outputs."""
    if half is None:
        return []
    return [item.node for item in half.analysis.because("overflow", "noise")]
