"""Rules for the card's image operator (vdsp_params), which prepares images at run time."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from repzoo.packs.lint import schema
from repzoo.packs.lint.common import (
    Spelling,
    color_finding,
    in_unit,
    normalization_findings,
)
from repzoo.packs.lint.document import Document
from repzoo.packs.lint.facts import Workspace
from repzoo.packs.lint.finding import Finding, Mistake
from repzoo.packs.lint.normalization import (
    LEVELS,
    Normalization,
    differences,
    numbers,
)
from repzoo.packs.lint.vastai import Prepared, geometry, plain_numbers, prepared

CONFIG = "OpConfig"
KINDS = (
    "FUSION_OP_RGB_RESIZE_CVTCOLOR_CROP_NORM_TENSOR",
    "FUSION_OP_RGB_RESIZE_CVTCOLOR_NORM_TENSOR",
    "FUSION_OP_RGB_LETTERBOX_CVTCOLOR_NORM_TENSOR",
    "FUSION_OP_RGB_LETTERBOX_CVTCOLOR_NORM_TENSOR_EXT",
)


def is_operator(value: Any) -> bool:
    """Whether parsed JSON is an image operator of the card."""
    return isinstance(value, dict) and (CONFIG in value or "NormaType" in value)


def lint(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """All findings in a vdsp_params file."""
    yield from schema.check(document, "vdsp")
    if not isinstance(document.get(CONFIG), dict):
        return
    for rule in RULES:
        yield from rule(document, workspace)


def prepared_at_run_time(document: Document) -> Prepared:
    """How a vdsp_params file prepares images at run time."""
    config = document.get(CONFIG)
    kind = document.text(CONFIG, "NormaType")
    mean = plain_numbers(config.get("Mean", 0.0))
    std = plain_numbers(config.get("Std", 1.0))
    normalization: Normalization | None = None
    if kind == "DIV255":
        normalization = Normalization((0.0,), (LEVELS,))
    elif kind == "EQUAL":
        normalization = Normalization((0.0,), (1.0,))
    elif kind == "DIV1275_MINUSONE":
        normalization = Normalization((LEVELS / 2,), (LEVELS / 2,))
    elif mean and std and 0 not in std and kind in _FACTORS:
        factor = _FACTORS[kind]
        normalization = Normalization(
            tuple(factor * value for value in mean),
            tuple(factor * value for value in std),
        )
    color = "BGR" if document.text(CONFIG, "ColorCvtCode") == "RGB2BGR" else "RGB"
    return Prepared(
        normalization, color, _sizes(config, "Resize"), _sizes(config, "Oimage")
    )


_FACTORS = {"DIV255_MINUSMEAN_DIVSTD": LEVELS, "MINUSMEAN_DIVSTD": 1.0}


def _sizes(config: Mapping[str, Any], prefix: str) -> tuple[int, ...]:
    height, width = config.get(f"{prefix}Height"), config.get(f"{prefix}Width")
    if isinstance(height, int) and isinstance(width, int):
        return (height, width)
    return ()


def _kind(document: Document, _: Workspace) -> Iterator[Finding]:
    kind = document.text("OpType")
    near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.9)
    if not kind:
        yield document.finding(
            "missing-key", "OpType is missing", "OpType", fix=f"OpType: {KINDS[0]}"
        )
    elif near and kind not in KINDS:
        yield document.finding(
            "unknown-value",
            f"OpType is {kind}; did you mean {near[0]}?",
            "OpType",
            fix=f"OpType: {near[0]}",
        )


def _normalization(document: Document, workspace: Workspace) -> Iterator[Finding]:
    here = prepared_at_run_time(document)
    kind = document.text(CONFIG, "NormaType")
    if here.normalization is None:
        if kind in _FACTORS:
            yield document.finding(
                "wrong-type",
                f"NormaType {kind} needs numbers as Mean and Std",
                CONFIG,
                "Mean",
            )
        return
    write = in_unit if kind == "DIV255_MINUSMEAN_DIVSTD" else numbers
    formula = f"NormaType {kind}"
    uses = kind in _FACTORS
    mean = "Mean" if uses else "NormaType"
    std = "Std" if uses else "NormaType"
    spelling = Spelling((CONFIG, mean), (CONFIG, std), write, write, formula)
    color = here.color
    if document.text(CONFIG, "ColorCvtCode") != "RGB2BGR" and workspace.preprocess:
        color = ""
    yield from normalization_findings(
        document, workspace.model, here.normalization, color, spelling
    )
    fix = "ColorCvtCode: RGB2BGR"
    if here.color == "BGR":
        fix = "ColorCvtCode: NO_CHANGE"
    yield from color_finding(
        document, workspace.model, here.color, CONFIG, "ColorCvtCode", fix=fix
    )


def _rounding(document: Document, _: Workspace) -> Iterator[Finding]:
    """Mean and Std that half precision cannot hold, which is what the card computes in."""
    for key in ("Mean", "Std"):
        values = plain_numbers(document.get(CONFIG, key))
        if values is None or document.text(CONFIG, "NormaType") not in _FACTORS:
            continue
        with np.errstate(over="ignore"):
            rounded = tuple(np.array(values, np.float16).astype(float).tolist())
        if rounded != values:
            yield document.finding(
                "half-precision",
                f"{key} is {numbers(values)}; the card computes in half precision, which rounds "
                f"it to {numbers(rounded)}",
                CONFIG,
                key,
                fix=f"{key}: {list(rounded)}",
            )


def _crop(document: Document, _: Workspace) -> Iterator[Finding]:
    config = document.get(CONFIG)
    if "CROP" not in document.text("OpType"):
        return
    for axis, side in (("X", "Width"), ("Y", "Height")):
        crop, resized, size = (
            config.get(f"Crop{axis}"),
            config.get(f"Resize{side}"),
            config.get(f"Oimage{side}"),
        )
        if not all(isinstance(value, int) for value in (crop, resized, size)):
            continue
        middle = (resized - size) / 2
        if crop < 0 or crop + size > resized:
            message = f"Crop{axis} {crop} + Oimage{side} {size} is beyond Resize{side} {resized}"
        # Tools round an odd margin to either side.
        elif abs(crop - middle) > 1:
            message = (
                f"Crop{axis} is {crop}; the middle is (Resize{side} - Oimage{side}) / 2 = "
                f"{middle:g}"
            )
        else:
            continue
        fix = f"Crop{axis}: {int(max(middle, 0))}"
        yield document.finding("crop", message, CONFIG, f"Crop{axis}", fix=fix)


def _pitch(document: Document, _: Workspace) -> Iterator[Finding]:
    config = document.get(CONFIG)
    for side in ("Width", "Height"):
        size, pitch = config.get(f"Iimage{side}"), config.get(f"Iimage{side}Pitch")
        if isinstance(size, int) and isinstance(pitch, int) and pitch < size:
            key = f"Iimage{side}Pitch"
            yield document.finding(
                "pitch",
                f"{key} is {pitch}, less than Iimage{side} {size}: rows would overlap",
                CONFIG,
                key,
                fix=f"{key}: {size}",
            )


def _geometry(document: Document, workspace: Workspace) -> Iterator[Finding]:
    here = prepared_at_run_time(document)
    yield from geometry(
        document,
        workspace,
        here,
        (CONFIG,),
        ("ResizeHeight/Width", "OimageHeight/Width"),
    )
    yield from _squash(document, workspace, here)


def _squash(
    document: Document, workspace: Workspace, here: Prepared
) -> Iterator[Finding]:
    """The card resizes both sides; most models were made for a resize of the short one."""
    preprocess, model = workspace.preprocess, workspace.model
    if preprocess is None or model is None or preprocess.resize != "short":
        return
    target = preprocess.resize_to
    wanted = (target, target) if isinstance(target, int) else target
    if here.resize != wanted:
        return  # the wrong size is reported already
    geometry_of_card = replace(preprocess, resize="squash")
    yield document.finding(
        "squash",
        f"the card's resize to {wanted[0]}x{wanted[1]} squashes images that are not square; the "
        f"model was made for a resize of the short side ({model.source})",
        CONFIG,
        fix="crop images to squares before, or accept the loss",
        mistake=Mistake(preprocess, geometry_of_card),
    )


def _filter(document: Document, workspace: Workspace) -> Iterator[Finding]:
    """The card resizes bilinearly, whatever the model was evaluated with."""
    preprocess = workspace.preprocess
    if preprocess is None or preprocess.interpolation == "bilinear":
        return
    geometry_of_card = replace(preprocess, interpolation="bilinear")
    yield document.finding(
        "interpolation",
        f"the card resizes bilinearly; the model was made for {preprocess.interpolation}",
        CONFIG,
        "ResizeType",
        mistake=Mistake(preprocess, geometry_of_card),
    )


def disagreements(
    document: Document, vdsp: Document, workspace: Workspace
) -> Iterator[Finding]:
    """Where calibration images and those at run time are prepared in two ways."""
    if workspace.preprocess is not None:
        return  # both are compared with the model
    first, second = prepared(document), prepared_at_run_time(vdsp)
    if first.normalization and second.normalization:
        for item in differences(second.normalization, first.normalization):
            yield vdsp.finding(
                "configurations-differ",
                f"the {item.part} at run time is {numbers(item.actual)}, for calibration "
                f"{numbers(item.expected)} ({document.shown}; units of pixels 0..255)",
                CONFIG,
                "Mean" if item.part == "mean" else "Std",
                fix="make both files say the same",
            )
    if _stem(document) != _stem(vdsp):
        return  # one of several sizes, which a shared configuration is edited for
    for what, here, there in (
        ("resized to", second.resize, first.resize),
        ("cropped to", second.crop, first.crop),
    ):
        if here and there and here != there:
            yield vdsp.finding(
                "configurations-differ",
                f"images are {what} {list(here)} at run time, {list(there)} for calibration "
                f"({document.shown})",
                CONFIG,
                fix="make both files say the same",
            )


def pairs(
    documents: Sequence[Document], vdsps: Sequence[Document]
) -> Iterator[tuple[Document, Document]]:
    """The files that belong together: the only ones, or those whose names begin alike.

    In the vendor's zoo, official_repvgg.yaml goes with official-repvgg_a0-vdsp_params.json.
    """
    if len(documents) == len(vdsps) == 1:
        yield documents[0], vdsps[0]
        return
    for vdsp in vdsps:
        stem = _stem(vdsp)
        own = [item for item in documents if stem.startswith(_stem(item))]
        if own:
            yield max(own, key=lambda item: len(_stem(item))), vdsp


def _stem(document: Document) -> str:
    plain = document.path.stem.lower().replace("-vdsp_params", "").replace("_", "-")
    return plain.removesuffix("-int8").removesuffix("-fp16")


RULES = (
    _kind,
    _normalization,
    _rounding,
    _crop,
    _pitch,
    _geometry,
    _filter,
)
