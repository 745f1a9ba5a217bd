"""Decode, prepare and batch images in threads, in order, with bounded memory; count and name what could not be read."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Preprocess
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.preprocess import Tensor, model_input, resized_and_cropped
from repzoo.errors import InputError
from repzoo.progress import Progress, silent, tracked

Item = TypeVar("Item")
Made = TypeVar("Made")
MAX_UNREADABLE = 0.01  # share of the images; above it the data set itself is in doubt


@dataclass
class ReadReport:
    """What happened while reading: the images left out, and those that were not RGB (mode -> count)."""

    unreadable: list[str] = field(default_factory=list)
    converted: collections.Counter[str] = field(default_factory=collections.Counter)

    def note(self, read: ReadImage) -> None:
        """Note what is out of the ordinary about one image."""
        if read.why:
            self.unreadable.append(read.why)
        elif read.mode != "RGB":
            self.converted[read.mode] += 1

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
    """`indices` into the data set of the images in `inputs`, a tensor [n, ...] as Preprocess.input says."""

    indices: tuple[int, ...]
    inputs: Tensor


def batches(
    dataset: Dataset, preprocess: Preprocess, size: int, report: ReadReport, workers: int = 0
) -> Iterator[Batch]:
    """All readable images in order, `size` at a time; at most two batches are decoded ahead.

    report   is filled as images are read; call its `check` afterward
    workers  threads; 0 takes one for each core
    """
    chunks = [
        range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)
    ]

    with ThreadPoolExecutor(workers or available_cores()) as pool:
        ahead: collections.deque[_Futures] = collections.deque()
        for chunk in chunks:
            ahead.append(
                [
                    (index, pool.submit(read_image, dataset, dataset.keys[index], preprocess))
                    for index in chunk
                ]
            )
            if len(ahead) > 2:
                yield from _assemble(ahead.popleft(), preprocess, report)
        while ahead:
            yield from _assemble(ahead.popleft(), preprocess, report)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    work: Callable[[Item], Made], items: Iterable[Item], workers: int = 0
) -> Iterator[Made]:
    """`work(item)` of every item, made by `workers` threads (0: one a core), in order; at most two a thread are underway.

    `work` should leave Python's lock for most of its time, as Pillow, NumPy and the engines do. Its first error ends all.
    """
    count = workers or available_cores()
    ahead: collections.deque[Future[Made]] = collections.deque()
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


@dataclass(frozen=True)
class ReadImage:
    """One image's pixels, uint8 [size, size, 3], or why there are none, and the mode that it had."""

    pixels: npt.NDArray[np.uint8] | None = None
    mode: str = "RGB"
    why: str = ""


_Futures = list[tuple[int, Future[ReadImage]]]


def read_image(dataset: Dataset, key: str, preprocess: Preprocess) -> ReadImage:
    """Decode, resize and crop the image `key`; one that cannot be is no error but says why."""
    try:
        image = dataset.load(key)
    except UnreadableImage as error:
        return ReadImage(why=str(error))
    try:
        return ReadImage(resized_and_cropped(image, preprocess), image.mode)
    except UnreadableImage as error:
        return ReadImage(why=f"{key}: {error}")


def _assemble(futures: _Futures, preprocess: Preprocess, report: ReadReport) -> Iterator[Batch]:
    """The batch of what could be read. The report is filled here, in order, and not by the threads, whose counts would race."""
    done = [(index, future.result()) for index, future in futures]
    for _, one in done:
        report.note(one)
    if made := batch_of(done, preprocess):
        yield made


def batch_of(read: Iterable[tuple[int, ReadImage]], preprocess: Preprocess) -> Batch | None:
    """The images of `read` (index, image) that could be read, as a model's input; None when there are none."""
    kept = [(index, one.pixels) for index, one in read if one.pixels is not None]
    if not kept:
        return None
    return Batch(
        tuple(index for index, _ in kept),
        model_input(np.stack([pixels for _, pixels in kept]), preprocess),
    )


def readable_indices(
    dataset: Dataset, report: ReadReport, progress: Progress = silent
) -> list[int]:
    """Indices of the images that decode; the others are named in `report`. One pass, for work that reads images many times."""

    def why_not(key: str) -> str:
        try:
            dataset.load(key)
        except UnreadableImage as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(available_cores()) as pool:
        reasons = list(
            tracked(pool.map(why_not, dataset.keys), "check images", len(dataset), progress)
        )
    report.unreadable.extend(why for why in reasons if why)
    return [index for index, why in enumerate(reasons) if not why]
