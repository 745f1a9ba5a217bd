"""What each mistake in preparing images costs, measured on the same images, decoded once.

A deployment rarely prepares images as training did: it resizes with another kernel, squashes
instead of resizing the short side, or decodes a camera's NV12 with another matrix. Each such
variant is one row, compared with the correct one image by image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Interpolation, Preprocess, Resize, Yuv
from repzoo.data import nv12
from repzoo.data.batches import ReadImage, ReadReport, map_in_order, mode_of
from repzoo.data.dataset import Dataset, UnreadableImage
from repzoo.data.preprocess import (
    model_input,
    resized_and_cropped,
    resized_without_antialiasing,
)
from repzoo.engines import arithmetic
from repzoo.measure.accuracy import EvaluationRun, logits_of
from repzoo.measure.class_mapping import class_indices
from repzoo.measure.journal import TOP
from repzoo.measure.predictions import (
    ModelPredictions,
    best_classes,
    compare,
    describe_images,
)
from repzoo.measure.record import Record, identity_of
from repzoo.measure.results import Accuracy, PairedAccuracy
from repzoo.progress import Progress, silent

CHUNK = 16  # images that a worker thread takes at once
CROP_FRACTIONS = (0.875, 0.95, 1.0)  # that models are commonly evaluated with
Bytes = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Variant:
    """One way to prepare images: geometry, what happens to the pixels on the way, arithmetic.

    picture      geometry: size, resize, crop fraction, interpolation
    numbers      arithmetic: mean, std, color, input
    antialiased  False: bilinear from the four nearest pixels only, as OpenCV's INTER_LINEAR
    camera       (encoding, decoding) matrix and range where the pixels pass through NV12
    swapped      U and V are swapped where there is NV12, else R and B
    """

    name: str
    picture: Preprocess
    numbers: Preprocess
    antialiased: bool = True
    camera: tuple[Yuv, Yuv] | None = None
    swapped: bool = False

    @property
    def geometry(self) -> tuple[object, ...]:
        """What the pixels depend on: variants of one geometry share them."""
        return self.picture, self.antialiased

    def resize(self, image: Image.Image) -> Bytes:
        """The pixels of one image, uint8 [H, W, 3]."""
        if self.antialiased:
            return resized_and_cropped(image, self.picture)
        return resized_without_antialiasing(image, self.picture)

    def to_input(self, pixels: Bytes) -> npt.NDArray[Any]:
        """The model's input from pixels, uint8 [n, H, W, 3]."""
        if self.camera:
            encoding, decoding = self.camera
            buffer = nv12.from_rgb(pixels, encoding)
            if self.swapped:
                buffer = _swap_chroma(buffer)
            return model_input(nv12.to_rgb8(buffer, decoding), self.numbers)
        if self.swapped and self.numbers.input == "nv12":
            return _swap_chroma(model_input(pixels, self.numbers))
        if self.swapped:
            pixels = pixels[..., ::-1]
        return model_input(pixels, self.numbers)


def variants(correct: Preprocess) -> list[Variant]:
    """The correct variant first, then one mistake at a time.

    What the graph does itself cannot be done wrong outside of it and has no variant.
    """
    base = Variant("as the model says", correct, correct)
    listed = [base, *_wrong_geometry(base)]
    if correct.input == "nv12":
        listed.append(replace(base, name="U and V swapped (NV21)", swapped=True))
        for yuv in get_args(Yuv):
            if yuv != correct.yuv:
                numbers = replace(correct, yuv=yuv)
                listed.append(replace(base, name=f"NV12 of {yuv}", numbers=numbers))
        return listed
    listed.append(replace(base, name="R and B swapped", swapped=True))
    if correct.input == "float":
        listed += _wrong_arithmetic(base)
    is_even = correct.height % 2 == 0 and correct.width % 2 == 0
    if is_even:  # NV12 has one pair of chroma values for 2 x 2 pixels
        listed += _cameras(base)
    return listed


def _wrong_geometry(base: Variant) -> Iterator[Variant]:
    correct = base.picture
    resize: Resize = "squash" if correct.resize == "short" else "short"
    yield replace(
        base, name=f"resize {resize}", picture=replace(correct, resize=resize)
    )
    for kernel in get_args(Interpolation):
        if kernel != correct.interpolation:
            picture = replace(correct, interpolation=kernel)
            yield replace(base, name=f"kernel {kernel}", picture=picture)
    yield replace(
        base, name="kernel bilinear, not antialiased (OpenCV)", antialiased=False
    )
    for fraction in CROP_FRACTIONS:
        if fraction != correct.crop_fraction:
            picture = replace(correct, crop_fraction=fraction)
            yield replace(base, name=f"crop fraction {fraction:g}", picture=picture)


def _other_ranges(base: Variant) -> Iterator[Variant]:
    """Inputs of 0..1 and of 0..255 without mean and std, which many graphs take."""
    document = base.numbers.document()
    for name, largest in (
        ("mean and std forgotten (0..1)", 1.0),
        ("0..255 without mean and std", 255.0),
    ):
        scale = {"mean": (0.0,) * 3, "std": (1 / largest,) * 3}
        numbers = Preprocess.from_mapping({**document, **scale})
        if numbers != base.numbers:
            yield replace(base, name=name, numbers=numbers)


def _wrong_arithmetic(base: Variant) -> Iterator[Variant]:
    document = base.numbers.document()
    # Runtimes that compute in half precision round these constants.
    for key in ("mean", "std"):
        document[key] = np.array(document[key], np.float16).astype(float).tolist()
    in_float16 = Preprocess.from_mapping(document)
    yield replace(base, name="mean and std in float16", numbers=in_float16)
    yield from _other_ranges(base)


def _cameras(base: Variant) -> Iterator[Variant]:
    """Pixels that pass through NV12: decoded correctly, then with the matrix or the range wrong."""
    kinds: tuple[Yuv, ...] = get_args(Yuv)
    for yuv in kinds:
        yield replace(base, name=f"NV12 {yuv} and back", camera=(yuv, yuv))
    for encoding, decoding in product(kinds, kinds):
        # Two mistakes at once would not say what each costs.
        if _differences(encoding, decoding) == 1:
            name = f"NV12 {encoding} read as {decoding}"
            yield replace(base, name=name, camera=(encoding, decoding))
    yield replace(
        base,
        name="NV21 read as NV12 (U and V swapped)",
        camera=(kinds[0], kinds[0]),
        swapped=True,
    )


def _differences(first: Yuv, second: Yuv) -> int:
    """In how many of matrix and range two kinds of NV12 differ."""
    pairs = zip(first.split("-"), second.split("-"), strict=True)
    return sum(left != right for left, right in pairs)


def _swap_chroma(buffer: Bytes) -> Bytes:
    """NV12 [..., H * 3 / 2, W, 1] with U and V swapped, which makes it NV21."""
    height = buffer.shape[-3] * 2 // 3
    luma, chroma = np.split(buffer, [height], axis=-3)
    swapped = np.empty_like(chroma)
    swapped[..., 0::2, :] = chroma[..., 1::2, :]
    swapped[..., 1::2, :] = chroma[..., 0::2, :]
    return np.concatenate([luma, swapped], axis=-3)


@dataclass
class _Chunk:
    """What the images of one chunk gave.

    images   in order, as the report takes them
    indices  of those that could be read
    top      by name of the variant, int64 [indices, up to TOP]; empty where no image could be read
    """

    images: list[ReadImage] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    top: dict[str, Classes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Worker:
    """Takes a chunk of images from their files to the best classes in every variant."""

    run: EvaluationRun
    dataset: Dataset
    variants: Sequence[Variant]

    def __call__(self, indices: range) -> _Chunk:
        chunk = _Chunk()
        by_geometry: dict[tuple[object, ...], list[Bytes]] = {}
        for index in indices:
            image, resized_images = self._read(self.dataset.keys[index])
            chunk.images.append(image)
            if resized_images:
                chunk.indices.append(index)
            for geometry, resized in resized_images.items():
                by_geometry.setdefault(geometry, []).append(resized)
        if chunk.indices:
            for variant in self.variants:
                pixels = np.stack(by_geometry[variant.geometry])
                logits = logits_of(self.run, variant.to_input(pixels))
                chunk.top[variant.name] = best_classes(logits, TOP)
        return chunk

    def _read(self, key: str) -> tuple[ReadImage, dict[tuple[object, ...], Bytes]]:
        """The image as the report takes it, and its pixels by geometry; none if unreadable."""
        try:
            image = self.dataset.load(key)
            pixels = {}
            for variant in self.variants:
                if variant.geometry not in pixels:
                    pixels[variant.geometry] = variant.resize(image)
        except UnreadableImage as error:
            why = str(error)
            # Some of these messages begin with the image, some do not.
            return ReadImage(why=why if why.startswith(key) else f"{key}: {why}"), {}
        return ReadImage(mode=mode_of(image)), pixels


def measure(
    run: EvaluationRun,
    dataset: Dataset,
    report: ReadReport,
    progress: Progress = silent,
) -> tuple[Record[Accuracy], list[Record[PairedAccuracy]]]:
    """The accuracy of the correct variant, and a paired Record for each wrong one.

    The name of a wrong variant is in `values.mismatch`.

    Raises:
        InputError: as `predict`.
    """
    measured = variants(run.artifact.require_preprocess())
    correct, *wrong = predict(run, dataset, measured, report, progress)
    return correct.record(), [compare_variants(correct, item) for item in wrong]


def predict(
    run: EvaluationRun,
    dataset: Dataset,
    measured: Sequence[Variant],
    report: ReadReport,
    progress: Progress = silent,
) -> list[ModelPredictions]:
    """What the model predicts for images that are prepared in each way, on the same images.

    Raises:
        InputError: classes that do not match, too many unreadable images, or logits that are not
            finite.
    """
    mapping = np.array(class_indices(dataset, run.artifact))
    worker = _Worker(run, dataset, measured)
    indices: list[int] = []
    top: dict[str, list[Classes]] = {variant.name: [] for variant in measured}
    for chunk in _chunks(worker, progress):
        for image in chunk.images:
            report.note(image)
        indices.extend(chunk.indices)
        for name, classes in chunk.top.items():
            top[name].append(classes)
    report.check(dataset.name, len(dataset))
    readable = dataset.subset(indices)
    targets = mapping[list(readable.targets)]
    unreadable = len(dataset) - len(readable)
    predictions = []
    for name, parts in top.items():
        predictions.append(
            ModelPredictions(
                identity={**identity_of(run.artifact), "prepared": name},
                labels=run.artifact.labels,
                engine=arithmetic.facts(run.engine),
                data=describe_images(dataset.name, readable.keys, unreadable),
                keys=readable.keys,
                targets=targets,
                top=np.concatenate(parts),
                artifact=run.artifact,
            )
        )
    return predictions


def _chunks(worker: _Worker, progress: Progress) -> Iterator[_Chunk]:
    """What `worker` makes of each chunk of its images, in order."""
    images = len(worker.dataset)
    progress("mismatch", 0, images)
    ranges = []
    for start in range(0, images, CHUNK):
        ranges.append(range(start, min(start + CHUNK, images)))
    chunks = map_in_order(worker, ranges)
    for indices, chunk in zip(ranges, chunks, strict=True):
        yield chunk
        progress("mismatch", indices.stop, images)


def compare_variants(
    correct: ModelPredictions, wrong: ModelPredictions
) -> Record[PairedAccuracy]:
    """The paired comparison; its values name the wrong variant, and its own Top-1."""
    paired = compare(correct, wrong)
    top1 = 100 * float(wrong.correct.mean())
    name = wrong.identity["prepared"]
    return replace(paired, values=replace(paired.values, mismatch=name, top1=top1))
