"""Images as Vastai's tools read them: image files for vamc and classification.py, .npz for vamp.

All three read with OpenCV, which goes by a file's content and not by its name. An image file is
copied where OpenCV reads the same pixels from it, and saved as PNG where not.

Source: classification.py, image2npz.py and the YAML files of Vastai's VastModelZOO.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from repzoo.artifact import Artifact, Preprocess
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.data.folder import ORDER_FILE
from repzoo.data.image_file import has_orientation
from repzoo.data.names import part_role
from repzoo.data.preprocess import oriented, to_rgb
from repzoo.measure.class_mapping import class_indices, lacks_classes
from repzoo.packs.pack import PackFile, readable_images
from repzoo.storage import read_bounded

CALIBRATION = "calibration"
EVALUATION = "evaluation"
ARRAYS = "evaluation_npz"
DATALIST = "npz.txt"
JPEG = "JPEG"  # classification.py lists *.JPEG only
PNG = "png"
MAX_EVALUATION = 256  # images
MAX_ARRAY_BYTES = 2**28  # of all .npz files; they are not compressed
SAMPLED = 8  # images that tell how large the others are
MAX_FILE_BYTES = 2**28  # of one image file
# Folder names that mean nothing to a shell, and that a class can have as they are.
PLAIN = re.compile(r"\w[\w .-]{0,99}")


@dataclass(frozen=True)
class CalibrationImages:
    """The calibration images of a pack.

    Attributes:
        images: of the pack.
        suffix: of all their files, without a dot.
    """

    images: Dataset
    suffix: str

    def files(self, preprocess: Preprocess) -> Iterator[PackFile]:
        """The files, in one folder without classes."""
        for number, key in enumerate(self.images.keys):
            name = f"{CALIBRATION}/{number:05d}.{self.suffix}"
            if self.suffix == PNG:
                yield name, _png(_decoded(self.images, key, preprocess))
            else:
                yield name, _image_file(self.images, key, preprocess)


def calibration_images(images: Dataset, preprocess: Preprocess) -> CalibrationImages:
    """All of `images` with one suffix, since vamc takes one."""
    for key in images.keys:
        if _plain_jpeg(images, key, preprocess) is None:
            return CalibrationImages(images, PNG)
    return CalibrationImages(images, JPEG)


@dataclass(frozen=True)
class EvaluationImages:
    """The images of a pack that show the accuracy on the card.

    Attributes:
        images: those that can be read.
        folders: name of the folder of each class; a single one where classes are not known.
        order: folder of each of the model's outputs; empty where classes are not known.
    """

    images: Dataset
    folders: tuple[str, ...]
    order: tuple[str, ...] = ()

    @property
    def labeled(self) -> bool:
        """Whether a folder is a class."""
        return bool(self.order)

    def files(self, preprocess: Preprocess) -> Iterator[PackFile]:
        """Image files, arrays, the list of the arrays, and the order of classes."""
        listed = []
        for number, key in enumerate(self.images.keys):
            place = f"{self.folders[self.images.targets[number]]}/{number:05d}"
            yield (
                f"{EVALUATION}/{place}.{JPEG}",
                _image_file(self.images, key, preprocess),
            )
            array = _array(_decoded(self.images, key, preprocess))
            yield f"{ARRAYS}/{place}.npz", array
            listed.append(f"{ARRAYS}/{place}.npz\n")
        yield DATALIST, "".join(listed)
        if self.order:
            # Whatever the folders are called, this says which output each of them is.
            lines = [f"{name}\n" for name in self.order]
            yield f"{EVALUATION}/{ORDER_FILE}", "".join(lines)


def evaluation_images(gate: Dataset, artifact: Artifact, seed: int) -> EvaluationImages:
    """Up to MAX_EVALUATION of the gate's images, evenly over the classes.

    Raises:
        InputError: classes that are not the model's.
    """
    count = min(MAX_EVALUATION, len(gate), _affordable(gate, seed))
    images = readable_images(
        gate.subset(gate.balanced_sample(count, seed)), ReadReport()
    )
    if not gate.labeled or lacks_classes(gate, artifact):
        return EvaluationImages(images.without_labels(), ("images",))
    indices = class_indices(gate, artifact)
    order = _folder_names(gate, artifact, indices)
    return EvaluationImages(images, tuple(order[index] for index in indices), order)


def _folder_names(
    gate: Dataset, artifact: Artifact, indices: Sequence[int]
) -> tuple[str, ...]:
    """A folder name for each output: the class's where it can be one, else a number."""
    pairs = zip(gate.classes, indices, strict=True)
    names = {index: label for label, index in pairs if _is_folder_name(label)}
    outputs = range(artifact.num_classes or len(artifact.labels))
    order = [names.get(index, f"{index:05d}") for index in outputs]
    if len({name.casefold() for name in order}) < len(order):
        # Some file systems take "Dog" and "dog" for the same folder.
        return tuple(f"{index:05d}" for index in outputs)
    return tuple(order)


def _is_folder_name(label: str) -> bool:
    # A folder called "test" would be taken for a part of the data.
    return bool(PLAIN.fullmatch(label)) and not part_role(label)


def _affordable(images: Dataset, seed: int) -> int:
    """How many arrays of such images fit into MAX_ARRAY_BYTES; at least 2."""
    keys = images.subset(images.balanced_sample(SAMPLED, seed))
    sizes = []
    for key in readable_images(keys, ReadReport()).keys:
        image = images.load(key)
        sizes.append(3 * image.width * image.height)
    return max(2, int(MAX_ARRAY_BYTES / np.mean(sizes)))


def _decoded(images: Dataset, key: str, preprocess: Preprocess) -> Image.Image:
    return to_rgb(oriented(images.load(key), preprocess))


def _image_file(images: Dataset, key: str, preprocess: Preprocess) -> bytes:
    """The image's own file where OpenCV reads the same pixels from it, else a PNG."""
    path = _plain_jpeg(images, key, preprocess)
    if path is None:
        return _png(_decoded(images, key, preprocess))
    return read_bounded(path, MAX_FILE_BYTES)


def _plain_jpeg(images: Dataset, key: str, preprocess: Preprocess) -> Path | None:
    """The image's own file, if it is a JPEG that OpenCV reads as it is read here."""
    if images.path is None:
        return None
    path = images.path(key)
    try:
        with Image.open(path, formats=(JPEG,)) as image:
            # OpenCV turns an image as its EXIF tag says.
            is_turned = has_orientation(image) and preprocess.orientation == "ignore"
            is_plain = image.mode in ("RGB", "L") and not is_turned
    # Pillow's parsers raise any error on files of other formats.
    except Exception:
        return None
    return path if is_plain else None


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _array(image: Image.Image) -> bytes:
    """An .npz file with `input_0`: uint8 [3, height, width] in RGB, with even sides.

    classification.py, too, makes sides even before the card gets them.
    """
    pixels = np.asarray(image)
    height, width = max(2, pixels.shape[0] // 2 * 2), max(2, pixels.shape[1] // 2 * 2)
    # A side of one pixel is doubled, since none can be left out.
    pixels = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), "edge")[:height, :width]
    data = io.BytesIO()
    np.savez(data, input_0=np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return data.getvalue()
