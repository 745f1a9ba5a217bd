"""Images for the verbs: a folder, a name such as `digits`, or a data set that is open already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Preprocess
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, DataSource
from repzoo.data.source import open_source
from repzoo.errors import InputError

DataLike = str | Path | DataSource | Dataset
CERTIFICATE_IMAGES = (
    16  # real images that a certificate is checked on, besides random ones
)


def open_data_source(
    data: str | Path | DataSource, unlabeled: bool = False
) -> DataSource:
    """The data set in a folder, or of a name such as `digits`; a DataSource is returned as it is.

    unlabeled  also accept a folder of images without class folders

    Raises:
        InputError: neither a folder nor a known name, or of another type.
    """
    if isinstance(data, DataSource):
        return data
    if isinstance(data, str | Path):
        return open_source(data, unlabeled)
    raise InputError(
        f"data must be a folder, a name such as 'digits' or a DataSource; got {type(data).__name__}"
    )


def open_dataset(
    data: DataLike, part: str | Sequence[str] = (), unlabeled: bool = False
) -> Dataset:
    """The images of the named parts ("train", "validation", "test"); default: all held-out ones.

    unlabeled  also accept a folder of images without class folders

    Raises:
        InputError: no such part, or as `open_data_source`.
    """
    parts = (part,) if isinstance(part, str) else tuple(part)
    if isinstance(data, Dataset):
        if parts:
            raise InputError(f"{data.name} is one part already; leave out part={parts}")
        return data
    source = open_data_source(data, unlabeled)
    # Images that a model was trained on would flatter it.
    return source.join(*parts) if parts else source.held_out()


def first_images(data: Dataset, preprocess: Preprocess) -> npt.NDArray[Any]:
    """The first CERTIFICATE_IMAGES images of `data`, prepared as the model's input [n, ...]."""
    first = data.subset(range(min(CERTIFICATE_IMAGES, len(data))))
    arrays = [
        batch.inputs
        for batch in batches(first, preprocess, CERTIFICATE_IMAGES, ReadReport())
    ]
    if not arrays:
        return np.empty((0, *preprocess.input_shape), np.float32)
    return np.concatenate(arrays)
