"""Files of a pack that run on a board, or that its programs need: sources, settings, an image."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.resources import files as package_files
from typing import Any

import numpy as np
import PIL
from PIL import Image

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.dataset import Dataset
from repzoo.data.preprocess import oriented, to_rgb
from repzoo.graph.tools.head import HeadKind, find_head
from repzoo.packs.pack import PackFile
from repzoo.packs.rdk_x5_yaml import binary_path
from repzoo.storage import json_text

SAMPLE_SIDE = 640  # pixels of the longer side of the sample image
PROGRAMS = ("classifier.py", "main.py", "infer.py")


def sample_image(images: Dataset, preprocess: Preprocess) -> bytes:
    """The first of `images`, as PNG with at most SAMPLE_SIDE pixels a side."""
    image = to_rgb(oriented(images.load(images.keys[0]), preprocess))
    image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    # Only the pixels: what a camera notes of place and time does not belong in a pack.
    Image.fromarray(np.asarray(image)).save(data, "PNG")
    return data.getvalue()


def program_files(artifact: Artifact) -> Iterator[PackFile]:
    """What runs on the board, and its settings."""
    for name in PROGRAMS:
        yield name, program(name)
    yield "model.json", settings_text(artifact, binary_path(artifact))


def program(name: str) -> str:
    """The source of a program for the board."""
    return (package_files("repzoo.packs") / "board" / name).read_text("utf-8")


def settings_text(artifact: Artifact, model_path: str) -> str:
    """model.json: how images are prepared, and where the compiled model is."""
    preprocess = artifact.require_preprocess()
    size = preprocess.resize_to
    document: dict[str, Any] = {
        "model_path": model_path,
        "height": preprocess.height,
        "width": preprocess.width,
        "resize": preprocess.resize,
        "resize_to": [size, size] if isinstance(size, int) else list(size),
        "interpolation": preprocess.interpolation,
        "orientation": preprocess.orientation,
        "gray": preprocess.color == "GRAY",
        "pillow": int(PIL.__version__.partition(".")[0]),
        "probabilities": gives_probabilities(artifact),
    }
    return json_text(document, indent=1) + "\n"


def gives_probabilities(artifact: Artifact) -> bool:
    """Whether the outputs are probabilities, and not logits."""
    kinds = (HeadKind.SOFTMAX, HeadKind.SIGMOID, HeadKind.BINARY)
    return find_head(artifact.model).kind in kinds
