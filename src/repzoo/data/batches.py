"""Decode, prepare and batch images in threads, in order, with bounded memory; count and name what could not be read."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Preprocess
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.preprocess import normalised, resized_and_cropped
from repzoo.errors import InputError
from repzoo.progress import Progress, silent, tracked

MAX_UNREADABLE = 0.01  # share of the images; above it the data set itself is in doubt


@dataclass
class ReadReport:
    """What happened while reading: the images left out, and those that were not RGB (mode -> count)."""

    unreadable: list[str] = field(default_factory=list)
    converted: collections.Counter[str] = field(default_factory=collections.Counter)

    def check(self, name: str, total: int) -> None:
        """Raise InputError when more than MAX_UNREADABLE of `total` images could not be read."""
        if len(self.unreadable) > MAX_UNREADABLE * total:
            raise InputError(
                f"{len(self.unreadable)} of {total} images of {name} cannot be read (at most {MAX_UNREADABLE:.0%} may be): "
                f"{'; '.join(self.unreadable[:3])}; repair or remove them"
            )

    def sentences(self) -> list[str]:
        """What a person should know; empty when all was ordinary."""
        said = [f"left out: {why}" for why in self.unreadable]
        if self.converted:
            kinds = ", ".join(f"{count} {mode}" for mode, count in sorted(self.converted.items()))
            said.append(f"converted to RGB: {kinds}")
        return said


@dataclass(frozen=True)
class Batch:
    """`indices` into the data set of the images in `inputs`, float32 [n, 3, size, size]."""

    indices: tuple[int, ...]
    inputs: npt.NDArray[np.float32]


def batches(dataset: Dataset, preprocess: Preprocess, size: int, report: ReadReport, workers: int = 0) -> Iterator[Batch]:
    """All readable images in order, `size` at a time; at most two batches are decoded ahead.

    report   is filled as images are read; call its `check` afterwards
    workers  threads; 0 takes one for each core
    """
    chunks = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]

    def pixels(index: int) -> npt.NDArray[np.uint8] | None:
        try:
            image = dataset.load(dataset.keys[index])
            if image.mode != "RGB":
                report.converted[image.mode] += 1
            return resized_and_cropped(image, preprocess)
        except UnreadableImage as error:
            report.unreadable.append(str(error))
            return None

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        ahead: collections.deque[list[tuple[int, Future[npt.NDArray[np.uint8] | None]]]] = collections.deque()
        for chunk in chunks:
            ahead.append([(index, pool.submit(pixels, index)) for index in chunk])
            if len(ahead) > 2:
                yield from _assemble(ahead.popleft(), preprocess)
        while ahead:
            yield from _assemble(ahead.popleft(), preprocess)


def _assemble(futures: list[tuple[int, Future[npt.NDArray[np.uint8] | None]]], preprocess: Preprocess) -> Iterator[Batch]:
    read = [(index, pixels) for index, future in futures if (pixels := future.result()) is not None]
    if read:
        yield Batch(tuple(index for index, _ in read), normalised(np.stack([pixels for _, pixels in read]), preprocess))


def readable(dataset: Dataset, report: ReadReport, progress: Progress = silent) -> list[int]:
    """Indices of the images that decode; the others are named in `report`. One pass, for work that reads images many times."""

    def decodes(index: int) -> bool:
        try:
            dataset.load(dataset.keys[index])
        except UnreadableImage as error:
            report.unreadable.append(str(error))
            return False
        return True

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        checks = tracked(pool.map(decodes, range(len(dataset))), "check images", len(dataset), progress)
        return [index for index, good in enumerate(checks) if good]
