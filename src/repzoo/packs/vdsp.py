"""How Vastai's cards prepare images: the operator's parameters, and what it costs in accuracy.

The operator resizes both sides, so that a photo that is not square is squashed. It knows one
filter, bilinear, in two forms, and computes in float16:

    BILINEAR_CV      from the four nearest pixels, as OpenCV's INTER_LINEAR
    BILINEAR_PILLOW  antialiased, as Pillow and torchvision

Source: the vdsp_params files of Vastai's VastModelZOO, which are the only public description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo import engines
from repzoo.artifact import Artifact, Preprocess
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.data.preprocess import oriented
from repzoo.engines import DEFAULT_ENGINE
from repzoo.errors import InputError
from repzoo.measure.accuracy import EvaluationRun, open_run
from repzoo.measure.class_mapping import lacks_classes, with_output_classes
from repzoo.measure.mismatch import Variant, compare_variants, predict
from repzoo.measure.predictions import ModelPredictions
from repzoo.measure.results import Accuracy, PairedAccuracy

OPERATOR = "FUSION_OP_RGB_RESIZE_CVTCOLOR_CROP_NORM_TENSOR"
# ResizeType -> whether it is antialiased. Nearly all public files take the first.
KERNELS = {"BILINEAR_CV": False, "BILINEAR_PILLOW": True}
DEFAULT_KERNEL = "BILINEAR_CV"
MEASURED = 512  # gate images: enough to see a loss of 2 points, in seconds
HALF_PRECISION = 2.0**-10  # twice the largest relative error of a normal float16
AS_THE_MODEL_SAYS = "as the model says"


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation in the operator's terms.

    Attributes:
        kind: its NormaType.
        largest: of a pixel before the mean is subtracted: 1, or 255 where it is not divided.
        mean, std: in that unit.
    """

    kind: str
    largest: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def in_half(self) -> tuple[list[float], list[float]]:
        """(mean, std) rounded to float16, as the card rounds them.

        Raises:
            InputError: float16 cannot hold them.
        """
        with np.errstate(over="ignore"):
            mean = np.array(self.mean, np.float16)
            std = np.array(self.std, np.float16)
        scale = np.array(self.std)
        mean_error = np.abs(mean - np.array(self.mean))
        limit = HALF_PRECISION * np.maximum(np.abs(self.mean), scale)
        if (mean_error > limit).any() or (
            np.abs(std - scale) > HALF_PRECISION * scale
        ).any():
            raise InputError(
                f"mean {self.mean} and std {self.std} are out of the range of float16, in which "
                "the card normalizes; give --mean and --std as in the model's training, in units "
                "of 0..1"
            )
        return mean.astype(float).tolist(), std.astype(float).tolist()


def normalization(preprocess: Preprocess) -> Normalization:
    """The form of (x / 255 - mean) / std that float16 loses least in."""
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    if np.allclose(255 * std, 1, rtol=1e-6):
        # The model takes pixels of 0 to 255: to divide them would cost bits for nothing.
        kind = "MINUSMEAN_DIVSTD" if mean.any() else "EQUAL"
        shifted = tuple(float(f"{255 * value:.9g}") for value in preprocess.mean)
        return Normalization(kind, 255.0, shifted, (1.0, 1.0, 1.0))
    is_plain = not mean.any() and (std == 1).all()
    kind = "DIV255" if is_plain else "DIV255_MINUSMEAN_DIVSTD"
    return Normalization(kind, 1.0, preprocess.mean, preprocess.std)


def resized_sides(preprocess: Preprocess) -> tuple[int, int]:
    """(height, width) before the crop."""
    size = preprocess.resize_to
    return (size, size) if isinstance(size, int) else size


def parameters(preprocess: Preprocess, kernel: str = DEFAULT_KERNEL) -> dict[str, Any]:
    """The vdsp_params document, with the keys that the public files have.

    Raises:
        InputError: mean or std out of the range of float16.
    """
    height, width = resized_sides(preprocess)
    mean, std = normalization(preprocess).in_half()
    config = {
        "IimageFormat": "RGB_PLANAR",
        "IimageWidth": width,
        "IimageHeight": height,
        "OimageWidth": preprocess.width,
        "OimageHeight": preprocess.height,
        # Where the model crops. Public files round 21.5 to 21, torchvision to 22.
        "CropX": round((width - preprocess.width) / 2),
        "CropY": round((height - preprocess.height) / 2),
        "ResizeWidth": width,
        "ResizeHeight": height,
        "IimageWidthPitch": width,
        "IimageHeightPitch": height,
        "Mean": mean,
        "Std": std,
        "NormaType": normalization(preprocess).kind,
        "ColorCvtCode": "RGB2BGR" if preprocess.color == "BGR" else "NO_CHANGE",
        "ResizeType": kernel,
    }
    return {"OpType": OPERATOR, "OpConfig": config}


@dataclass(frozen=True)
class CardVariant(Variant):
    """Images as the card prepares them.

    cropped  each image is first cropped to the shape that it will be resized to, so that nothing
             is squashed
    """

    cropped: bool = False

    @property
    def geometry(self) -> tuple[object, ...]:
        """What the pixels depend on."""
        return (*super().geometry, self.cropped)

    def resize(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The pixels of one image, uint8 [H, W, 3]."""
        if self.cropped:
            upright = oriented(image, self.picture)
            image = centrally_cropped(upright, *resized_sides(self.picture))
        return super().resize(image)

    def to_input(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The model's input from pixels, uint8 [n, H, W, 3]; the card hands over float16."""
        values = super().to_input(pixels)
        return np.asarray(values, np.float16).astype(np.float32)


def centrally_cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of `image` whose sides are as `height` to `width`."""
    scale = min(image.width / width, image.height / height)
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - columns) // 2, (image.height - rows) // 2
    return image.crop((left, top, left + columns, top + rows))


def _three(values: Sequence[float], largest: float) -> tuple[float, float, float]:
    first, second, third = (value / largest for value in values)
    return first, second, third


def card_variant(
    preprocess: Preprocess, kernel: str, cropped: bool = False
) -> CardVariant:
    """The card's way to prepare images, with one of KERNELS."""
    # OpenCV, which reads the images before the card gets them, turns them as EXIF says.
    picture = replace(
        preprocess, resize="squash", interpolation="bilinear", orientation="apply"
    )
    form = normalization(preprocess)
    mean, std = form.in_half()
    numbers = replace(
        preprocess,
        mean=_three(mean, form.largest),
        std=_three(std, form.largest),
    )
    name = f"{kernel}, cropped" if cropped else kernel
    return CardVariant(name, picture, numbers, KERNELS[kernel], cropped=cropped)


@dataclass(frozen=True)
class CardLoss:
    """What the card's way to prepare images costs, on the same images and in float.

    Attributes:
        kernel: the ResizeType.
        labeled: False: the correct classes are those that the model predicts when images are
            prepared as it says.
        model: images prepared as the model says.
        card: the paired loss on the card.
        cropped: the same for images that were cropped to the right shape before; None where
            nothing is squashed.
    """

    kernel: str
    labeled: bool
    model: Accuracy
    card: PairedAccuracy
    cropped: PairedAccuracy | None


def choose_kernel(artifact: Artifact, images: Dataset) -> str:
    """The ResizeType with which most predictions are those of the model's own preprocessing."""
    run = open_run(artifact, engines.engine(DEFAULT_ENGINE))
    preprocess = artifact.require_preprocess()
    cards = [card_variant(preprocess, kernel) for kernel in KERNELS]
    predictions = _predict(run, images.without_labels(), cards)
    agreement = [int(item.correct.sum()) for item in predictions[1:]]
    # Of equals the first, which the public files have.
    return list(KERNELS)[int(np.argmax(agreement))]


def measure_loss(
    artifact: Artifact,
    images: Dataset,
    kernel: str,
    known: ModelPredictions | None = None,
) -> CardLoss:
    """The loss on `images`.

    Args:
        artifact: the float model.
        images: that show it.
        kernel: the ResizeType.
        known: predictions with the model's own preprocessing, which are used where `images` are
            among theirs.

    Raises:
        InputError: too many unreadable images, or classes that do not match.
    """
    run = open_run(artifact, engines.engine(DEFAULT_ENGINE))
    preprocess = artifact.require_preprocess()
    cards = [card_variant(preprocess, kernel)]
    if preprocess.resize == "short":
        cards.append(card_variant(preprocess, kernel, cropped=True))
    correct, *others = _predict(run, images, cards, known)
    losses = [compare_variants(correct, item).values for item in others]
    return CardLoss(
        kernel=kernel,
        labeled=images.labeled and not lacks_classes(images, artifact),
        model=correct.record().values,
        card=losses[0],
        cropped=losses[1] if len(losses) > 1 else None,
    )


def _predict(
    run: EvaluationRun,
    images: Dataset,
    cards: Sequence[CardVariant],
    known: ModelPredictions | None = None,
) -> list[ModelPredictions]:
    """Predictions with the model's own preprocessing first, then with each of `cards`.

    Where nothing says which class is right, it is the one that the first predicts.
    """
    preprocess = run.artifact.require_preprocess()
    base = Variant(AS_THE_MODEL_SAYS, preprocess, preprocess)
    is_labeled = images.labeled and not lacks_classes(images, run.artifact)
    if not is_labeled:
        images = with_output_classes(images, run.artifact)
    if known is not None and set(images.keys) <= set(known.keys):
        results = predict(run, images, cards, ReadReport())
        # Without what could not be read.
        readable = images.subset([images.keys.index(key) for key in results[0].keys])
        as_known = known.of_images(readable, results[0].targets)
        results.insert(0, replace(as_known, data=results[0].data))
    else:
        results = predict(run, images, [base, *cards], ReadReport())
    if is_labeled:
        return results
    targets = results[0].top[:, 0]
    return [replace(item, targets=targets) for item in results]
