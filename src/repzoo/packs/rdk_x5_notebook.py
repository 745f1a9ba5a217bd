"""The notebook of a pack for the RDK X5: load, NV12, forward, softmax, draw, performance.

Its cells call classifier.py, so the notebook prepares images as the programs do. Cells that need
the board's own command line are tagged `board`.

Format: nbformat 4.4, the newest whose cells need no ids.
"""

from __future__ import annotations

from typing import Any

from repzoo.artifact import Artifact
from repzoo.packs.parts import file_name, quoted
from repzoo.packs.rdk_x5_yaml import binary_path, runtime_type
from repzoo.printable import code_span
from repzoo.storage import json_text

BOARD = "board"  # tag of cells that run nowhere else
IMPORTS = """\
from pathlib import Path

import cv2
from IPython.display import Image, display

from classifier import Classifier, Config, best_classes, draw, read_image, result_lines

config = Config.read("model.json", "labels.txt")
"""
LOAD = """\
classifier = Classifier(config)
classifier.set_scheduling_params(priority=0, bpu_cores=[0])
"""
INPUT = """\
image = read_image("sample.png", config.orientation)
tensor = classifier.pre_process(image)
print(image.shape, "->", tensor.shape, tensor.dtype)
"""
FORWARD = """\
outputs = classifier.forward(tensor)
print(outputs.shape, outputs[:10])
"""
SOFTMAX = """\
best = best_classes(outputs, config, 5)
for index, probability in best:
    print(f"{config.name(index)} ({index}): {probability:.4f}")
"""
DRAW = """\
cv2.imwrite("result.png", draw(image, best, config))
display(Image(filename="result.png"))
"""
LINES = """\
Path("result.txt").write_text(result_lines("sample.png", best, config), encoding="utf-8")
"""


def notebook(artifact: Artifact, evaluation: str) -> str:
    """The notebook as JSON text; `evaluation` is the script that classifies a whole folder."""
    name = code_span(file_name(artifact.name))
    preprocess = artifact.require_preprocess()
    size = f"{preprocess.height}x{preprocess.width}"
    runtime = runtime_type(artifact)
    cells = [
        _text(
            f"# {name} on the RDK X5",
            f"It classifies an image of {size} pixels ({runtime}) on the BPU. Copy the "
            "whole folder to the board, with the compiled model, and open this notebook there.",
        ),
        _code("!grep Mem /proc/meminfo", tags=[BOARD]),
        _text("## Settings"),
        _code(IMPORTS),
        _text("## Load", f"The compiled model is {code_span(binary_path(artifact))}."),
        _code(LOAD),
        _text(
            "## Input",
            "The image is resized, cropped and converted exactly as for training and "
            "quantizing. Normalization is a part of the compiled model.",
        ),
        _code(INPUT),
        _text("## Forward"),
        _code(FORWARD),
        _text("## Probabilities"),
        _code(SOFTMAX),
        _text("## Draw"),
        _code(DRAW),
        _text(
            "## Result",
            f"In the format that `repzoo evaluate --result` reads. `{evaluation}` writes that "
            "of a whole folder of images.",
        ),
        _code(LINES),
        _text(
            "## Performance",
            "One thread shows the latency of a single image, four threads the frame rate of "
            "most programs, and eight the limit of the BPU.",
        ),
    ]
    for threads in (1, 4, 8):
        cells.append(_code(_perf(artifact, threads), tags=[BOARD]))
    document = {
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    return json_text(document, indent=1, ensure_ascii=False) + "\n"


def _perf(artifact: Artifact, threads: int) -> str:
    model = quoted("--model_file", binary_path(artifact))
    return (
        f'!hrt_model_exec perf {model} --model_name "" --core_id 0 --frame_count 200 '
        f"--perf_time 0 --thread_num {threads} --profile_path ."
    )


def _text(*paragraphs: str) -> dict[str, Any]:
    source = "\n\n".join(paragraphs)
    return {
        "cell_type": "markdown",
        "metadata": {},
        "source": source.splitlines(keepends=True),
    }


def _code(source: str, tags: list[str] | None = None) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": tags} if tags else {},
        "outputs": [],
        "source": source.rstrip().splitlines(keepends=True),
    }
