"""The UCI handwritten digits in scikit-learn's wheel: 1,797 gray images of 8x8 pixels, 10 classes.

The parts are split by position. Neighboring images come from the same writer, so a random split
would test on writers seen in training. Source: E. Alpaydin, C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.data.dataset import Dataset, DataSource
from repzoo.data.names import TRAIN
from repzoo.errors import MissingExtra

PARTS = {"train": (0, 1077), "validation": (1077, 1437), "test": (1437, 1797)}


def read() -> DataSource:
    """The data set with its three parts. Pixel values 0..16 become 0..255.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingExtra("the data set 'digits'", "demo") from error

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    targets = [int(value) for value in bunch.target]
    parts: dict[str, Dataset] = {}
    for part, (start, stop) in PARTS.items():
        parts[part] = Dataset(
            name=f"digits/{part}",
            classes=tuple(str(digit) for digit in range(10)),
            keys=tuple(map(str, range(start, stop))),
            targets=tuple(targets[start:stop]),
            # A partial and not a closure: a Dataset is pickled for worker processes.
            load=partial(_image, pixels),
            training=part == TRAIN,
        )
    return DataSource("digits", parts, order="in numeric order")


def _image(pixels: npt.NDArray[np.uint8], key: str) -> Image.Image:
    return Image.fromarray(pixels[int(key)]).convert("RGB")
