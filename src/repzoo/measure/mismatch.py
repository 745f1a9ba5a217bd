"""What each mistake in preparing images costs: the same images, decoded once, prepared rightly and in every wrong way.

A deployment rarely prepares an image as training did: another kernel, a squash for a short-side resize, a camera's NV12 decoded with
another matrix. Each way is one row, paired with the right one image by image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Interpolation, Preprocess, Resize, Yuv
from repzoo.data import nv12
from repzoo.data.batches import ReadImage, ReadReport, map_in_order
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.preprocess import model_input, resized_and_cropped, resized_without_antialiasing
from repzoo.measure import accuracy
from repzoo.measure.accuracy import EvaluationRun, ModelPredictions
from repzoo.measure.journal import TOP
from repzoo.measure.record import Record, identity_of
from repzoo.progress import Progress, silent
from repzoo.storage import sha256_of

CHUNK = 16
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Variant:
    """One way to prepare images: the pixels, what happens to them on the way, and the arithmetic.

    picture      geometry: size, resize, crop fraction, interpolation
    numbers      arithmetic: mean, std, color, input
    antialiased  False: bilinear from the four nearest pixels only, as OpenCV's INTER_LINEAR
    camera       (matrix and range that encode, that decode) when the pixels go through NV12
    swapped      U and V, or without `camera` R and B, are taken for each other
    """

    name: str
    picture: Preprocess
    numbers: Preprocess
    antialiased: bool = True
    camera: tuple[Yuv, Yuv] | None = None
    swapped: bool = False

    def make(self, image: Image.Image) -> Bytes:
        """The pixels of one image, uint8 [size, size, 3]."""
        return (
            resized_and_cropped(image, self.picture)
            if self.antialiased
            else resized_without_antialiasing(image, self.picture)
        )

    def send(self, pixels: Bytes) -> npt.NDArray[Any]:
        """The model's input of pixels uint8 [n, size, size, 3]."""
        if self.camera:
            buffer = nv12.from_rgb(pixels, self.camera[0])
            pixels = nv12.to_rgb8(
                _swapped_chroma(buffer) if self.swapped else buffer, self.camera[1]
            )
        elif self.swapped and self.numbers.input == "nv12":
            return _swapped_chroma(model_input(pixels, self.numbers))
        elif self.swapped:
            pixels = pixels[..., ::-1]
        return model_input(pixels, self.numbers)


def variants(right: Preprocess) -> list[Variant]:
    """The right way first, then one fault at a time; what the graph does itself cannot be done wrong and has no row."""
    as_said = Variant("as the model says", right, right)
    faults = [*_geometry(as_said, right), replace(as_said, name="R and B swapped", swapped=True)]
    if right.input == "nv12":
        faults[-1] = replace(as_said, name="U and V swapped (NV21)", swapped=True)
        wrong = [yuv for yuv in get_args(Yuv) if yuv != right.yuv]
        return [
            as_said,
            *faults,
            *(
                replace(as_said, name=f"NV12 of {one}", numbers=replace(right, yuv=one))
                for one in wrong
            ),
        ]
    return [
        as_said,
        *faults,
        *(_arithmetic(as_said, right) if right.input == "float" else ()),
        *(_cameras(as_said) if right.size % 2 == 0 else ()),
    ]


def _geometry(as_said: Variant, right: Preprocess) -> Iterator[Variant]:
    other: Resize = "squash" if right.resize == "short" else "short"
    yield replace(as_said, name=f"resize {other}", picture=replace(right, resize=other))
    for kernel in get_args(Interpolation):
        if kernel != right.interpolation:
            yield replace(
                as_said, name=f"kernel {kernel}", picture=replace(right, interpolation=kernel)
            )
    yield replace(as_said, name="kernel bilinear, not antialiased (OpenCV)", antialiased=False)
    for share in (0.875, 0.95, 1.0):
        if share != right.crop_fraction:
            yield replace(
                as_said,
                name=f"crop fraction {share:g}",
                picture=replace(right, crop_fraction=share),
            )


def _arithmetic(as_said: Variant, right: Preprocess) -> Iterator[Variant]:
    mean, std = (
        tuple(float(np.float16(value)) for value in values) for values in (right.mean, right.std)
    )
    yield replace(
        as_said,
        name="mean and std in float16",
        numbers=Preprocess.from_mapping({**right.document(), "mean": mean, "std": std}),
    )
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    yield replace(
        as_said,
        name="mean and std forgotten",
        numbers=Preprocess.from_mapping({**right.document(), **plain}),
    )


def _cameras(as_said: Variant) -> Iterator[Variant]:
    kinds: tuple[Yuv, ...] = get_args(Yuv)
    for yuv in kinds:
        yield replace(as_said, name=f"NV12 {yuv} and back", camera=(yuv, yuv))
    for sent in kinds:
        for taken in kinds:
            if (
                sum(one != two for one, two in zip(sent.split("-"), taken.split("-"), strict=True))
                == 1
            ):
                yield replace(as_said, name=f"NV12 {sent} read as {taken}", camera=(sent, taken))
    yield replace(
        as_said,
        name="NV21 read as NV12 (U and V swapped)",
        camera=(kinds[0], kinds[0]),
        swapped=True,
    )


@dataclass(frozen=True)
class _Worker:
    """A chunk of images from their files to the best classes in every way."""

    run: EvaluationRun
    dataset: Dataset
    ways: Sequence[Variant]

    def __call__(
        self, chunk: range
    ) -> tuple[list[ReadImage], list[int], list[npt.NDArray[np.int64]]]:
        read, kept, pictures = [], [], []
        for index in chunk:
            one, made = self._pictures(self.dataset.keys[index])
            read.append(one)
            if made:
                kept.append(index)
                pictures.append(made)
        tops = (
            [self._best(way, np.stack([made[_key(way)] for made in pictures])) for way in self.ways]
            if kept
            else []
        )
        return read, kept, tops

    def _best(self, way: Variant, pixels: Bytes) -> npt.NDArray[np.int64]:
        return accuracy.best_classes(accuracy.logits_of(self.run, way.send(pixels)), TOP)

    def _pictures(self, key: str) -> tuple[ReadImage, dict[tuple[Preprocess, bool], Bytes]]:
        try:
            image = self.dataset.load(key)
            makers = {_key(way): way for way in self.ways}
            return ReadImage(mode=image.mode), {
                name: way.make(image) for name, way in makers.items()
            }
        except UnreadableImage as error:
            return ReadImage(
                why=str(error) if str(error).startswith(key) else f"{key}: {error}"
            ), {}


def _key(way: Variant) -> tuple[Preprocess, bool]:
    return way.picture, way.antialiased


def _swapped_chroma(buffer: Bytes) -> Bytes:
    size = buffer.shape[-2]
    made = buffer.copy()
    made[..., size:, 0::2, :], made[..., size:, 1::2, :] = (
        buffer[..., size:, 1::2, :],
        buffer[..., size:, 0::2, :],
    )
    return made


def measure(
    run: EvaluationRun, dataset: Dataset, report: ReadReport, progress: Progress = silent
) -> tuple[Record, list[Record]]:
    """(accuracy Record of the right way, one paired Record for each wrong way, its name in `values["mismatch"]`).

    Raises:
        InputError: classes that do not match, too many unreadable images, or logits that are not finite.
    """
    listed = variants(run.artifact.require_preprocess())
    mapping = np.array(accuracy.class_indices(dataset, run.artifact))
    chunks = [
        range(start, min(start + CHUNK, len(dataset))) for start in range(0, len(dataset), CHUNK)
    ]
    seen: list[int] = []
    tops: list[list[npt.NDArray[np.int64]]] = [[] for _ in listed]
    for number, (read, kept, found) in enumerate(
        map_in_order(_Worker(run, dataset, listed), chunks), 1
    ):
        for one in read:
            report.note(one)
        seen.extend(kept)
        for top, rows in zip(tops, found, strict=False):
            top.append(rows)
        progress("mismatch", min(number * CHUNK, len(dataset)), len(dataset))
    report.check(dataset.name, len(dataset))
    keys = tuple(dataset.keys[index] for index in seen)
    data = {
        "name": dataset.name,
        "n": len(keys),
        "sha256": sha256_of("\n".join(keys).encode()),
        "unreadable": len(dataset) - len(keys),
    }
    targets = mapping[[dataset.targets[index] for index in seen]]
    every = [
        _predictions(run, way, data, keys, targets, np.concatenate(top))
        for way, top in zip(listed, tops, strict=True)
    ]
    pairs = zip(listed[1:], every[1:], strict=True)
    return every[0].record(), [
        _named(way.name, accuracy.compare(every[0], one), one) for way, one in pairs
    ]


def _predictions(
    run: EvaluationRun,
    way: Variant,
    data: Mapping[str, Any],
    keys: tuple[str, ...],
    targets: npt.NDArray[np.int64],
    top: npt.NDArray[np.int64],
) -> ModelPredictions:
    engine = {"name": run.engine.name, "version": run.engine.version()}
    identity = {**identity_of(run.artifact), "prepared": way.name}
    return ModelPredictions(
        identity, run.artifact.labels, engine, data, keys, targets, top, run.artifact
    )


def _named(name: str, pair: Record, wrong: ModelPredictions) -> Record:
    return dataclasses.replace(
        pair, values={"mismatch": name, "top1": 100 * float(wrong.right.mean()), **pair.values}
    )
