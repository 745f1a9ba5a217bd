"""Class probabilities of single images, given as files, Pillow images or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo import engines
from repzoo.artifact import Artifact as StoredArtifact
from repzoo.data.image_file import load_image
from repzoo.data.preprocess import prepare
from repzoo.errors import InputError
from repzoo.measure.accuracy import best_classes
from repzoo.measure.host import host

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClassProbability:
    """One class: its label (its index where the model has no labels) and softmax probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first.

    image  the path of its file; "" for an image in memory
    """

    image: str
    top: tuple[ClassProbability, ...]

    @property
    def label(self) -> str:
        """The label of the most probable class."""
        return self.top[0].label

    @property
    def probability(self) -> float:
        """The softmax probability of the most probable class."""
        return self.top[0].probability


def classify(
    model: StoredArtifact, images: Sequence[ImageLike], top: int, engine_name: str
) -> list[Prediction]:
    """The `top` classes of each image.

    Raises:
        InputError: a missing or broken image, an array that is not uint8 [height, width, 3],
            a model without preprocessing, or `top` below 1.
    """
    if top < 1:
        raise InputError(f"top must be at least 1; got {top}")
    preprocess = model.require_preprocess()
    session = engines.engine(engine_name).open(model.model, host()["affinity"])
    predictions = []
    for image in images:
        tensor = prepare(_open_image(image), preprocess)
        logits = session.run(tensor[None])[0]
        probabilities = _softmax(logits)
        classes = [
            ClassProbability(_label(model, int(index)), float(probabilities[index]))
            for index in best_classes(logits[None], top)[0]
        ]
        name = str(image) if isinstance(image, str | Path) else ""
        predictions.append(Prediction(name, tuple(classes)))
    return predictions


def _open_image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise InputError(f"the image {path} does not exist; check the path")
        return load_image(path)
    if not isinstance(image, np.ndarray):
        raise InputError(
            "an image must be a path, a PIL.Image or a uint8 array [height, width, 3]; "
            f"got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        shape = ", ".join(map(str, image.shape))
        raise InputError(
            "an image array must be uint8 [height, width, 3], the pixels in RGB order before any "
            f"preprocessing; got {image.dtype} [{shape}]"
        )
    return Image.fromarray(image)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    exponentials = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(exponentials / exponentials.sum())


def _label(model: StoredArtifact, index: int) -> str:
    return model.labels[index] if index < len(model.labels) else str(index)
