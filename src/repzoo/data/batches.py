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

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        ahead: collections.deque[_Futures] = collections.deque()
        for chunk in chunks:
            ahead.append([(index, pool.submit(_read, dataset, dataset.keys[index], preprocess)) for index in chunk])
            if len(ahead) > 2:
                yield from _assemble(ahead.popleft(), preprocess, report)
        while ahead:
            yield from _assemble(ahead.popleft(), preprocess, report)


@dataclass(frozen=True)
class _Read:
    """One image's pixels, or why there are none, and the mode that it had."""

    pixels: npt.NDArray[np.uint8] | None = None
    mode: str = "RGB"
    why: str = ""


_Futures = list[tuple[int, Future[_Read]]]


def _read(dataset: Dataset, key: str, preprocess: Preprocess) -> _Read:
    try:
        image = dataset.load(key)
    except UnreadableImage as error:
        return _Read(why=str(error))
    try:
        return _Read(resized_and_cropped(image, preprocess), image.mode)
    except UnreadableImage as error:
        return _Read(why=f"{key}: {error}")


def _assemble(futures: _Futures, preprocess: Preprocess, report: ReadReport) -> Iterator[Batch]:
    """The batch of what could be read. The report is filled here, in order, and not by the threads, whose counts would race."""
    done = [(index, future.result()) for index, future in futures]
    report.unreadable.extend(one.why for _, one in done if one.why)
    report.converted.update(one.mode for _, one in done if one.mode != "RGB")
    read = [(index, one.pixels) for index, one in done if one.pixels is not None]
    if read:
        yield Batch(tuple(index for index, _ in read), normalised(np.stack([pixels for _, pixels in read]), preprocess))


def readable(dataset: Dataset, report: ReadReport, progress: Progress = silent) -> list[int]:
    """Indices of the images that decode; the others are named in `report`. One pass, for work that reads images many times."""

    def why_not(key: str) -> str:
        try:
            dataset.load(key)
        except UnreadableImage as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        reasons = list(tracked(pool.map(why_not, dataset.keys), "check images", len(dataset), progress))
    report.unreadable.extend(why for why in reasons if why)
    return [index for index, why in enumerate(reasons) if not why]
