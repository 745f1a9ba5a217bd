"""Class probabilities of single images, given as files, Pillow images or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo import engines
from repzoo.artifact import Artifact as StoredArtifact
from repzoo.artifact import Preprocess
from repzoo.data.batches import ReadImage, ReadReport, mode_of
from repzoo.data.dataset import UnreadableImage
from repzoo.data.description import PassedOver
from repzoo.data.image_file import load_image, to_8_bits
from repzoo.data.preprocess import Tensor, prepare
from repzoo.data.tree import read_tree
from repzoo.errors import InputError
from repzoo.graph.tools.head import THRESHOLD, Head, HeadKind
from repzoo.measure.accuracy import BATCH, EvaluationRun, best_classes, logits_of
from repzoo.measure.class_mapping import class_labels, require_classes
from repzoo.measure.host import host
from repzoo.progress import Progress, silent
from repzoo.summary import Summarized, Summary, Table
from repzoo.verbs.assumed_preprocess import for_images

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ClassProbability:
    """One class: its label (its index where the model has no labels) and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction(Summarized):
    """The most probable classes of one image, best first.

    image   the path of its file; "" for an image in memory
    top     with the softmax of the logits, or with the graph's own probabilities where it ends in
            Softmax or Sigmoid
    labels  where the graph ends in Sigmoid, so that several labels may hold for an image: those
            above THRESHOLD, best first; None for a model whose classes exclude each other
    """

    image: str
    top: tuple[ClassProbability, ...]
    labels: tuple[ClassProbability, ...] | None = None

    @property
    def label(self) -> str:
        """The label of the most probable class."""
        return self.top[0].label

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.top[0].probability

    def _summary(self) -> Summary:
        """A row for each class."""
        rows = [[item.label, f"{100 * item.probability:.1f}"] for item in self.top]
        return Summary([Table(["class", ">%"], rows)])


def classify(
    model: StoredArtifact,
    images: Sequence[ImageLike],
    top: int,
    engine_name: str,
    report: ReadReport | None = None,
    skip_unreadable: bool = False,
    progress: Progress = silent,
) -> list[Prediction]:
    """The `top` classes of each image.

    report           is filled with what is out of the ordinary about the images
    skip_unreadable  leave out images that cannot be read; else they are an error

    Raises:
        InputError: a missing or broken image, an array that is not uint8 [height, width, 3],
            a model without preprocessing or whose outputs are no classes, outputs that are not
            finite, or `top` below 1.
    """
    if top < 1:
        raise InputError(f"top must be at least 1; got {top}")
    model = for_images(model)
    preprocess = model.require_preprocess()
    head = require_classes(model)
    if head.kind is HeadKind.BINARY and not model.labels:
        raise InputError(
            f"{model.name} has a single output, the probability of one class, and nothing says "
            "which class that is; give --labels FILE with its name in a line, or with two lines, "
            "the name of the other class first"
        )
    engine = engines.engine(engine_name)
    session = engine.open(model.model, host()["affinity"])
    # Not `open_run`, whose sessions have one thread: here one batch after another takes all cores.
    run = EvaluationRun(model, engine, session)
    predictions: list[Prediction] = []
    reader = _Reader(preprocess, report or ReadReport(), skip_unreadable)
    for names, inputs in reader.batches(images, progress):
        probabilities = _probabilities(run, head, inputs)
        for name, row in zip(names, probabilities, strict=True):
            predictions.append(_prediction(model, head, name, row, top))
    return predictions


def images_below(folder: Path) -> tuple[list[Path], PassedOver | None]:
    """(the images in `folder` at any depth, the files that Pillow cannot read).

    Raises:
        InputError: a folder that cannot be read, or that holds no image.
    """
    tree = read_tree(folder)
    images = [folder / name for name in tree.all_images()]
    if not images:
        raise InputError(
            f"{folder} holds no image that can be read; give another folder"
        )
    others = tuple(tree.all_others())
    passed_over = PassedOver("file", "that Pillow cannot read", others)
    return images, passed_over if others else None


@dataclass(frozen=True)
class _Reader:
    """Prepares images of all kinds, a batch at a time."""

    preprocess: Preprocess
    report: ReadReport
    skip_unreadable: bool

    def batches(
        self, images: Sequence[ImageLike], progress: Progress
    ) -> Iterator[tuple[list[str], Tensor]]:
        """(names, input tensor) of up to BATCH images at a time."""
        progress("predict", 0, len(images))
        for start in range(0, len(images), BATCH):
            names = []
            tensors = []
            for image in images[start : start + BATCH]:
                tensor = self._read(image)
                if tensor is not None:
                    names.append(str(image) if isinstance(image, str | Path) else "")
                    tensors.append(tensor)
            if tensors:
                yield names, np.stack(tensors)
            progress("predict", min(start + BATCH, len(images)), len(images))

    def _read(self, image: ImageLike) -> Tensor | None:
        """The input of one image; None where it cannot be read and is left out."""
        try:
            opened = open_image(image)
            tensor = prepare(opened, self.preprocess)
        except UnreadableImage as error:
            if not self.skip_unreadable:
                raise
            self.report.note(ReadImage(why=str(error)))
            return None
        self.report.note(ReadImage(mode=mode_of(opened)))
        return tensor


def _probabilities(
    run: EvaluationRun, head: Head, inputs: Tensor
) -> npt.NDArray[np.float64]:
    """Probabilities [n, classes] of `inputs`."""
    # Not padded to a full batch: most calls are for one image.
    outputs = logits_of(run, inputs, batch=len(inputs))
    if outputs.ndim != 2 or len(outputs) != len(inputs) or not outputs.size:
        raise InputError(
            f"{run.artifact.name} gives outputs of shape {list(outputs.shape)} for "
            f"{len(inputs)} images; a classifier gives [{len(inputs)}, classes]"
        )
    if not np.isfinite(outputs).all():
        raise InputError(
            f"{run.artifact.name} gives outputs that are not finite (NaN or overflow) on "
            f"{run.engine.name}; check its weights and its preprocessing"
        )
    return head.probabilities(outputs)


def _prediction(
    model: StoredArtifact,
    head: Head,
    name: str,
    probabilities: npt.NDArray[np.float64],
    top: int,
) -> Prediction:
    # All classes: of a multi-label model, more than `top` may be above the threshold.
    order = best_classes(probabilities[None], len(probabilities))[0].tolist()
    ranked = []
    for index in order:
        probability = float(probabilities[index])
        ranked.append(ClassProbability(_label(model, index), probability))
    labels = None
    if head.is_multi_label:
        labels = tuple(item for item in ranked if item.probability > THRESHOLD)
    return Prediction(name, tuple(ranked[:top]), labels)


def open_image(image: Any) -> Image.Image:
    """An image that is given in any of the forms of ImageLike.

    Raises:
        InputError: no such file, a folder, or an array that is not uint8 [height, width, 3].
    """
    if isinstance(image, Image.Image):
        # Pillow itself would clip pixels of 16 bits.
        return to_8_bits(image)
    if isinstance(image, str | Path):
        path = Path(image)
        if path.is_dir():
            raise InputError(
                f"{path} is a folder; give a list of its images, or run repzoo predict with it"
            )
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


def _label(model: StoredArtifact, index: int) -> str:
    labels = class_labels(model)
    return labels[index] if index < len(labels) else str(index)
