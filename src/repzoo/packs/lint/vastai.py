"""Rules for Vastai's files: vamc's configuration, and the card's image operator (vdsp_params).

Both say how images become the input, in different words: the first prepares calibration images,
the second those at run time. They must agree with the model and with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repzoo.artifact import Preprocess
from repzoo.packs.lint import graph, schema
from repzoo.packs.lint.calibration import MIN_FILES
from repzoo.packs.lint.common import (
    Spelling,
    beside,
    color_finding,
    in_unit,
    named_files,
    normalization_findings,
    resize_finding,
)
from repzoo.packs.lint.document import Document
from repzoo.packs.lint.facts import ModelFacts, Workspace, fits
from repzoo.packs.lint.finding import Finding
from repzoo.packs.lint.normalization import (
    LEVELS,
    Normalization,
    Values,
    numbers,
)

LIMITS = graph.Limits("vamc")
TOP_KEYS = ("name",)
CONFIG = "OpConfig"
OPERATIONS = (
    "DecodeImage",
    "Resize",
    "CenterCrop",
    "CvtColor",
    "Normalize",
    "ToTensor",
    "LetterBox",
    "Pad",
)


@dataclass(frozen=True)
class Prepared:
    """How one of the two files prepares images.

    Attributes:
        normalization: of pixels 0..255; None where the file has none to judge.
        color: RGB or BGR; "" where it cannot be told.
        resize: (height, width) after resizing; () where there is no resize.
        crop: (height, width) after cropping.
    """

    normalization: Normalization | None
    color: str
    resize: tuple[int, ...]
    crop: tuple[int, ...]


def is_configuration(value: Any) -> bool:
    """Whether parsed YAML is meant for vamc."""
    return (
        isinstance(value, dict)
        and len({"frontend", "backend", "workspace"} & set(value)) >= 2
    )


def lint(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """All findings in vamc's configuration."""
    yield from schema.check(document, "vastai")
    yield from schema.unknown_groups(document, "vastai", TOP_KEYS)
    for rule in RULES:
        yield from rule(document, workspace)
    if workspace.model:
        yield from graph.check(workspace.model, LIMITS)


def _name(document: Document, _: Workspace) -> Iterator[Finding]:
    if not document.text("name"):
        yield document.finding(
            "missing-key",
            "name is missing; it names the folder of the compiled model",
            "name",
            fix="name: MODEL_int8",
        )
    name, dtype = document.text("name").lower(), document.text("backend", "dtype")
    for other in {"int8", "fp16"} - {dtype}:
        if name.endswith(other) and dtype in ("int8", "fp16"):
            yield document.finding(
                "name-and-type",
                f"name ends in {other}, but backend.dtype is {dtype}",
                "backend",
                "dtype",
                fix=f"dtype: {other}, or another name",
            )


def _precision(document: Document, _: Workspace) -> Iterator[Finding]:
    dtype = document.text("backend", "dtype")
    quantize = document.get("backend", "quantize")
    if dtype == "int8" and not document.text("backend", "quantize", "calibrate_mode"):
        yield document.finding(
            "missing-key",
            "backend.dtype is int8, but backend.quantize.calibrate_mode is missing, so the tool "
            "takes its default",
            "backend",
            "quantize",
            "calibrate_mode",
            fix="calibrate_mode: percentile",
        )
    if dtype == "int8" and document.get("dataset") is None:
        yield document.finding(
            "missing-group",
            "backend.dtype is int8, which needs calibration images: dataset is missing",
            "dataset",
            fix="dataset:",
        )
    per_channel = document.get("backend", "quantize", "quantize_per_channel")
    if dtype == "int8" and isinstance(quantize, dict) and per_channel is False:
        yield document.finding(
            "per-tensor",
            "quantize_per_channel is False: one scale for all channels of a layer. Networks with "
            "merged branches or depthwise layers lose most of their accuracy",
            "backend",
            "quantize",
            "quantize_per_channel",
            fix="quantize_per_channel: True",
        )


def _images(document: Document, _: Workspace) -> Iterator[Finding]:
    number = document.get("dataset", "sampler", "get_data_num")
    keys = ("dataset", "sampler", "get_data_num")
    if isinstance(number, int) and 0 < number < MIN_FILES:
        yield document.finding(
            "calibration-few",
            f"get_data_num is {number}; expected at least {MIN_FILES}. Ranges from so few "
            "images clip what others need",
            *keys,
            fix="get_data_num: 100",
        )
    folder = beside(document, document.text("dataset", "path"))
    suffix = document.text("dataset", "sampler", "suffix")
    if (
        folder is None
        or not folder.is_dir()
        or not suffix
        or not isinstance(number, int)
    ):
        return
    files = 0
    for path in folder.rglob("*"):
        files += path.name.endswith(f".{suffix.lstrip('.')}")
        if files >= number:
            return
    yield document.finding(
        "calibration-few",
        f"get_data_num is {number}, but {document.text('dataset', 'path')} has {files} files "
        f"*.{suffix}",
        *keys,
        fix=f"get_data_num: {files}" if files else "suffix: that of the files",
    )


def _files(document: Document, workspace: Workspace) -> Iterator[Finding]:
    named = [
        (("frontend", "checkpoint"), document.text("frontend", "checkpoint")),
        (("dataset", "path"), document.text("dataset", "path")),
    ]
    if document.text("frontend", "type") != "onnx":
        named = named[1:]
    yield from named_files(document, workspace, named)


def _shape(document: Document, workspace: Workspace) -> Iterator[Finding]:
    shapes = document.get("frontend", "shape")
    model = workspace.model
    if model is None or not isinstance(shapes, dict):
        return
    for name, shape in shapes.items():
        keys = ("frontend", "shape", name)
        if name not in model.inputs:
            yield document.finding(
                "input-name",
                f"frontend.shape names the input {name}; the model's is called "
                f"{', '.join(model.inputs)}",
                *keys,
                fix=f"{', '.join(model.inputs)}:",
            )
            continue
        stated = model.inputs[name]
        sides = tuple(shape) if isinstance(shape, list) else ()
        if not fits(sides, stated):
            yield document.finding(
                "input-shape",
                f"frontend.shape.{name} is {list(sides)}, but the model's input is "
                f"{list(stated)}",
                *keys,
                fix=f"{name}: {list(stated)}",
            )


def operations(document: Document) -> dict[str, Mapping[str, Any]]:
    """The steps of process_ops by type, in order."""
    steps = document.get("dataset", "process_ops")
    by_type: dict[str, Mapping[str, Any]] = {}
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict):
            by_type[str(step.get("type"))] = step
    return by_type


def _pair(value: Any) -> tuple[int, ...]:
    """(height, width) of a size that may be one number; () where it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int) for v in value)
    ):
        return (value[0], value[1])
    return ()


def plain_numbers(value: Any) -> Values | None:
    """Numbers of a list, or of one number."""
    return schema.number_row(value if isinstance(value, list) else [value])


def prepared(document: Document) -> Prepared:
    """How vamc's configuration prepares calibration images."""
    steps = operations(document)
    names = list(steps)
    color = "RGB"  # DecodeImage gives RGB
    code = str(steps.get("CvtColor", {}).get("code", ""))
    if code.endswith("RGB2BGR") or code.endswith("BGR2RGB"):
        color = "BGR"  # each swaps what DecodeImage gave
    resize = _pair(steps.get("Resize", {}).get("size"))
    crop = _pair(steps.get("CenterCrop", {}).get("crop_size"))
    if resize and crop and names.index("CenterCrop") < names.index("Resize"):
        crop = ()  # the resize comes last and decides
    return Prepared(_normalize(steps.get("Normalize")), color, resize, crop)


def _normalize(step: Mapping[str, Any] | None) -> Normalization | None:
    if step is None:
        return None
    mean, std = plain_numbers(step.get("mean", 0)), plain_numbers(step.get("std", 1))
    if mean is None or std is None or 0 in std:
        return None
    # Without the key, pixels are divided by 255 first.
    factor = 1.0 if step.get("div255") is False else LEVELS
    return Normalization(
        tuple(factor * value for value in mean), tuple(factor * value for value in std)
    )


def _process(document: Document, workspace: Workspace) -> Iterator[Finding]:
    keys = ("dataset", "process_ops")
    steps = operations(document)
    if not steps:
        return
    for name in steps:
        near = [item for item in OPERATIONS if item.lower() == name.lower()]
        if near and name not in OPERATIONS:
            yield document.finding(
                "unknown-value",
                f"process_ops has the type {name!r}; did you mean {near[0]}?",
                *keys,
                fix=f"type: {near[0]}",
            )
    step = steps.get("Normalize")
    if step is not None and _normalize(step) is None:
        yield document.finding(
            "wrong-type",
            "Normalize has no numbers as mean and std, or a std of 0",
            *keys,
        )
        return
    here = prepared(document)
    if here.normalization:
        raw = step.get("div255") is False if step else False
        spelling = Spelling(
            (*keys, "mean"),
            (*keys, "std"),
            numbers if raw else in_unit,
            numbers if raw else in_unit,
            "of pixels 0..255" if raw else "after a division by 255",
        )
        # A model in an own order may rely on code behind it; only an explicit step is judged.
        color = here.color if "CvtColor" in steps else ""
        yield from normalization_findings(
            document,
            workspace.model,
            here.normalization,
            color or _own_color(workspace),
            spelling,
        )
        fix = "{type: CvtColor, code: COLOR_RGB2BGR}"
        if here.color == "BGR":
            fix = "delete the step CvtColor"
        yield from color_finding(document, workspace.model, here.color, *keys, fix=fix)
    yield from geometry(document, workspace, here, keys, ("size", "crop_size"))


def _own_color(workspace: Workspace) -> str:
    return "" if workspace.preprocess else "RGB"


def geometry(
    document: Document,
    workspace: Workspace,
    here: Prepared,
    keys: tuple[str, ...],
    names: tuple[str, str],
) -> Iterator[Finding]:
    """Sizes against the model's, and the card's squash against a resize of the short side."""
    preprocess = workspace.preprocess
    final = here.crop or here.resize
    if here.crop and here.resize and any(np.greater(here.crop, here.resize)):
        yield document.finding(
            "crop",
            f"{names[1]} is {list(here.crop)}, larger than the resized image "
            f"{list(here.resize)}",
            *keys,
        )
        return
    if preprocess is None or workspace.model is None or not final:
        return
    if final != (preprocess.height, preprocess.width):
        yield document.finding(
            "input-shape",
            f"images end at {final[0]}x{final[1]}, but the model takes "
            f"{preprocess.height}x{preprocess.width} ({workspace.model.source})",
            *keys,
            fix=f"{names[1]}: [{preprocess.height}, {preprocess.width}]",
        )
        return
    if here.resize:
        yield from _resize(
            document, workspace.model, preprocess, here.resize, keys, names[0]
        )


def _resize(
    document: Document,
    model: ModelFacts,
    preprocess: Preprocess,
    resize: tuple[int, ...],
    keys: tuple[str, ...],
    name: str,
) -> Iterator[Finding]:
    target = preprocess.resize_to
    wanted = (target, target) if isinstance(target, int) else target
    if resize != wanted:
        fraction = min(1.0, preprocess.height / resize[0])
        geometry = replace(preprocess, resize="squash", crop_fraction=fraction)
        yield resize_finding(
            document,
            model,
            geometry,
            f"images are resized to {resize[0]}x{resize[1]}; the model was made for "
            f"{wanted[0]}x{wanted[1]} = size / crop fraction ({model.source})",
            *keys,
            fix=f"{name}: [{wanted[0]}, {wanted[1]}]",
        )


RULES = (_name, _precision, _images, _files, _shape, _process)
