"""Read images in threads: decode, prepare, batch, in order and with bounded memory.

Images that cannot be read are left out, counted and named.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Preprocess
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.image_file import file_mode, has_orientation
from repzoo.data.preprocess import Tensor, model_input, resized_and_cropped
from repzoo.errors import InputError
from repzoo.processor import available_cores
from repzoo.progress import Progress, silent, tracked
from repzoo.remark import Remark

Item = TypeVar("Item")
Result = TypeVar("Result")

# Share of unreadable images above which the whole data set is in doubt.
MAX_UNREADABLE = 0.01
BATCHES_AHEAD = 2
# Stands after the mode of an image that has an EXIF orientation tag. Journals keep the mode.
ORIENTED = ", oriented"


@dataclass
class ReadReport:
    """What was unusual while reading images.

    unreadable  one sentence for each image that was left out
    converted   image mode -> number of images that were converted from it to RGB
    oriented    number of images with an EXIF orientation tag
    """

    unreadable: list[str] = field(default_factory=list)
    converted: collections.Counter[str] = field(default_factory=collections.Counter)
    oriented: int = 0

    def note(self, image: ReadImage) -> None:
        """Record one image if it was unreadable, not RGB, or has an orientation tag."""
        if image.why:
            self.unreadable.append(image.why)
            return
        mode = image.mode.removesuffix(ORIENTED)
        if mode != "RGB":
            self.converted[mode] += 1
        if mode != image.mode:
            self.oriented += 1

    def check(self, name: str, total: int) -> None:
        """Raise InputError if more than MAX_UNREADABLE of `total` images could not be read."""
        if len(self.unreadable) > MAX_UNREADABLE * total:
            examples = "; ".join(self.unreadable[:3])
            raise InputError(
                f"{len(self.unreadable)} of {total} images of {name} cannot be read (at most "
                f"{MAX_UNREADABLE:.0%} may be): {examples}; repair or remove them"
            )

    def sentences(self) -> list[str]:
        """Remarks for a person; empty if nothing was unusual."""
        remarks: list[str] = []
        for why in self.unreadable:
            remarks.append(Remark("left out: {why}", why=why))
        if self.converted:
            modes = []
            for mode, count in sorted(self.converted.items()):
                modes.append(f"{count} {mode}{_scaling(mode)}")
            listed = ", ".join(modes)
            remarks.append(Remark("converted to RGB: {modes}", modes=listed))
        if self.oriented:
            remarks.append(
                Remark(
                    "images with an EXIF orientation tag: {n} (it is ignored, as by torchvision "
                    "and timm, unless --orientation apply is given)",
                    n=self.oriented,
                )
            )
        return remarks


@dataclass(frozen=True)
class Batch:
    """Images as a model's input.

    indices  positions of the images in the data set
    inputs   tensor [n, ...], as Preprocess.input says
    """

    indices: tuple[int, ...]
    inputs: Tensor


@dataclass(frozen=True)
class ReadImage:
    """One image that was read.

    pixels  uint8 [H, W, 3] in RGB; None if the image could not be read
    mode    Pillow's mode of the file, followed by ORIENTED where it has an orientation tag
    why     why the image could not be read; "" if it could
    """

    pixels: npt.NDArray[np.uint8] | None = None
    mode: str = "RGB"
    why: str = ""


# (index in the data set, image being read) for each image of a batch.
_PendingBatch = list[tuple[int, Future[ReadImage]]]


def batches(
    dataset: Dataset,
    preprocess: Preprocess,
    size: int,
    report: ReadReport,
    workers: int = 0,
) -> Iterator[Batch]:
    """All readable images in order, `size` at a time. At most two batches are decoded ahead.

    report   filled while images are read; call its `check` at the end
    workers  threads; 0 means one per core
    """
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        ahead: collections.deque[_PendingBatch] = collections.deque()
        for start in range(0, len(dataset), size):
            pending: _PendingBatch = []
            for index in range(start, min(start + size, len(dataset))):
                key = dataset.keys[index]
                pending.append(
                    (index, pool.submit(read_image, dataset, key, preprocess))
                )
            ahead.append(pending)
            if len(ahead) > BATCHES_AHEAD:
                yield from _finish(ahead.popleft(), preprocess, report)
        while ahead:
            yield from _finish(ahead.popleft(), preprocess, report)


def map_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int = 0
) -> Iterator[Result]:
    """`work(item)` of every item, in order, computed by threads. The first error ends it.

    workers  threads; 0 means one per core. At most two items per thread are in progress

    `work` should release Python's lock most of the time, as Pillow, NumPy and the engines do.
    """
    count = workers or available_cores()
    ahead: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= 2 * count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def read_image(dataset: Dataset, key: str, preprocess: Preprocess) -> ReadImage:
    """Decode, resize and crop the image `key`. A broken image is a result with a reason."""
    try:
        image = dataset.load(key)
    except UnreadableImage as error:
        return ReadImage(why=str(error))
    try:
        return ReadImage(resized_and_cropped(image, preprocess), mode_of(image))
    except UnreadableImage as error:
        return ReadImage(why=f"{key}: {error}")


def mode_of(image: Image.Image) -> str:
    """`ReadImage.mode` of an image that `load_image` or another source has decoded."""
    suffix = ORIENTED if has_orientation(image) else ""
    return f"{file_mode(image)}{suffix}"


def batch_of(
    images: Iterable[tuple[int, ReadImage]], preprocess: Preprocess
) -> Batch | None:
    """The readable ones among `images` (index, image) as a batch; None if there are none."""
    indices: list[int] = []
    pixels: list[npt.NDArray[np.uint8]] = []
    for index, image in images:
        if image.pixels is not None:
            indices.append(index)
            pixels.append(image.pixels)
    if not indices:
        return None
    return Batch(tuple(indices), model_input(np.stack(pixels), preprocess))


def readable_indices(
    dataset: Dataset, report: ReadReport, progress: Progress = silent
) -> list[int]:
    """Indices of the images that decode; the others are named in `report`.

    One pass in advance, for training, which reads images many times.
    """

    def reason(key: str) -> str:
        try:
            dataset.load(key)
        except UnreadableImage as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(available_cores()) as pool:
        checks = pool.map(reason, dataset.keys)
        reasons = list(tracked(checks, "check images", len(dataset), progress))
    report.unreadable.extend(why for why in reasons if why)
    return [index for index, why in enumerate(reasons) if not why]


def _scaling(mode: str) -> str:
    """What became of more than 8 bits, in parentheses."""
    if mode.startswith("I"):
        return " (16 bits, scaled to 8)"
    return " (floating point, scaled to 8 bits)" if mode == "F" else ""


def _finish(
    pending: _PendingBatch, preprocess: Preprocess, report: ReadReport
) -> Iterator[Batch]:
    """Wait for a batch; yield what could be read of it."""
    images = [(index, future.result()) for index, future in pending]
    # The report is filled here and not by the threads, whose order varies.
    for _, image in images:
        report.note(image)
    batch = batch_of(images, preprocess)
    if batch is not None:
        yield batch
