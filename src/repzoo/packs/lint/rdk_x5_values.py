"""Values of hb_mapper's configuration that several rules read."""

from __future__ import annotations

import re

from repzoo.packs.lint.document import Document
from repzoo.packs.lint.facts import ModelFacts

MODEL, INPUT = "model_parameters", "input_parameters"
CALIBRATION, COMPILER = "calibration_parameters", "compiler_parameters"


def color_of(document: Document) -> str:
    """RGB, BGR or GRAY; "" for another input."""
    color = document.text(INPUT, "input_type_train").upper()
    return color if color in ("RGB", "BGR", "GRAY") else ""


def parts(text: str) -> list[str]:
    """The parts of a value with ; between them, for several inputs, nodes or types."""
    return [part.strip() for part in text.split(";") if part.strip()]


def input_sides(document: Document, model: ModelFacts | None) -> tuple[int, ...]:
    """(channels, height, width) of the one input; () where they are not known."""
    shape: tuple[int, ...] = ()
    text = document.text(INPUT, "input_shape")
    if model and len(model.inputs) == 1:
        shape = next(iter(model.inputs.values()))
    elif text and ";" not in text:
        shape = tuple(int(side) for side in re.findall(r"\d{1,6}", text))
    if len(shape) != 4 or 0 in shape[1:]:
        return ()
    is_last = document.text(INPUT, "input_layout_train") == "NHWC"
    if model:
        is_last = shape[1] not in (1, 3)
    return (shape[3], shape[1], shape[2]) if is_last else shape[1:]


def number_of_inputs(document: Document) -> int:
    """Number of inputs that the configuration describes."""
    return max(1, len(document.text(INPUT, "input_type_train").split(";")))


def takes_images(document: Document) -> bool:
    """Whether the input is an image, and no feature map."""
    return document.text(INPUT, "input_type_train") != "featuremap"
