"""The calls of rknn-toolkit2: their arguments, and convert.py, which has them."""

from __future__ import annotations

from typing import Any

from repzoo.artifact import Artifact
from repzoo.packs.parts import file_name, pixel_mean, pixel_std, render

PROGRAM = "convert.py"
DATASET = "dataset.txt"


def arguments_of(artifact: Artifact) -> dict[str, Any]:
    """What the tool must know of a model.

    `input` is its name, `shape` of one image, `mean` and `std` of pixels 0..255 in the model's
    channel order, `swapped` whether that is BGR.
    """
    preprocess = artifact.require_preprocess()
    return {
        "input": artifact.input_name,
        "shape": (1, *preprocess.input_shape),
        "mean": tuple(pixel_mean(preprocess)),
        "std": tuple(pixel_std(preprocess)),
        "swapped": preprocess.color == "BGR",
    }


def program_text(artifact: Artifact, method: str, chip: str) -> str:
    """convert.py, with all numbers in it; it compiles for `chip` unless it is told another."""
    name = file_name(artifact.name)
    arguments = arguments_of(artifact)
    for key in ("shape", "mean", "std"):
        arguments[key] = list(arguments[key])
    return render(
        "rknn_convert.py.j2",
        model=f"{name}.onnx",
        ranges=f"{name}.ranges.cfg",
        output=f"{name}.rknn",
        method=method,
        chip=chip,
        **arguments,
    )
