"""From an image to a model's input, bit for bit as torchvision's and timm's evaluation transforms make it.

Resize -> CenterCrop -> /255 -> (x - mean) / std, with torchvision's rounding: long side int(to * long / short), crop offset
int(round((side - size) / 2)). EXIF orientation is not applied, as in those libraries.
Source: torchvision.transforms.functional (resize, center_crop, to_tensor, normalize) and timm.data.transforms_factory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Preprocess
from repzoo.data.dataset import UnreadableImage

MAX_RESIZED = 64_000_000  # pixels; a strip of 1 x 60,000 would otherwise become gigabytes before its centre is cropped
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB; transparency is dropped, as torchvision's and timm's loaders do."""
    if image.mode == "RGB":
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def resized_and_cropped(image: Image.Image, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """The geometric half: uint8 [size, size, 3], always in RGB order.

    Raises:
        UnreadableImage: so long and narrow that it would be resized to more than MAX_RESIZED pixels.
    """
    image = to_rgb(image)
    target = _target_size(image.size, preprocess)
    if target[0] * target[1] > MAX_RESIZED:
        raise UnreadableImage(
            f"an image of {image.width}x{image.height} pixels would be resized to {target[0]}x{target[1]}; at most "
            f"{MAX_RESIZED:,} pixels are made; crop it"
        )
    if image.size != target:
        image = image.resize(target, _FILTERS[preprocess.interpolation])
    left, top = (round((side - preprocess.size) / 2.0) for side in image.size)
    return np.asarray(image.crop((left, top, left + preprocess.size, top + preprocess.size)))


def normalised(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """The arithmetic half: uint8 [..., H, W, 3] in RGB to float32 [..., 3, H, W] in the preprocess's colour order."""
    if preprocess.colour == "BGR":
        pixels = pixels[..., ::-1]
    scaled = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    scaled /= np.float32(255)
    scaled -= np.array(preprocess.mean, np.float32)[:, None, None]
    scaled /= np.array(preprocess.std, np.float32)[:, None, None]
    return scaled


def prepare(image: Image.Image, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """The whole: any Pillow image to float32 [3, size, size]."""
    return normalised(resized_and_cropped(image, preprocess), preprocess)


def _target_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    to = preprocess.resize_to
    if preprocess.resize == "squash":
        return to, to
    width, height = size
    return (to, int(to * height / width)) if width <= height else (int(to * width / height), to)
