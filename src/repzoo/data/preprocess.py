"""From an image to a model's input, bit for bit as torchvision's and timm's evaluation transforms make it.

Resize -> CenterCrop -> /255 -> (x - mean) / std, with torchvision's rounding: long side int(to * long / short), crop offset
int(round((side - size) / 2)). EXIF orientation is not applied, as in those libraries.
A model whose input is uint8 or NV12 does the arithmetic itself: it is given the pixels, and `pixel_map` says what it must compute.
Source: torchvision.transforms.functional (resize, center_crop, to_tensor, normalize) and timm.data.transforms_factory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Color, Preprocess
from repzoo.data import nv12
from repzoo.data.dataset import UnreadableImage

Tensor = npt.NDArray[Any]  # float32 or uint8, as Preprocess.input says
Float = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.intp]

MAX_RESIZED = 64_000_000  # pixels; a strip of 1 x 60,000 would otherwise become gigabytes before its center is cropped
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


def resized_without_antialiasing(image: Image.Image, preprocess: Preprocess) -> Bytes:
    """As `resized_and_cropped`, each pixel interpolated from its four nearest only, however much is shrunk (OpenCV's INTER_LINEAR)."""
    source = np.asarray(to_rgb(image), np.float32)
    (width, height), size = _target_size(image.size, preprocess), preprocess.size
    (above, below, down), (left, right, along) = (
        _neighbors(side, to, size)
        for side, to in zip(source.shape[:2], (height, width), strict=True)
    )
    rows = source[above] + down[:, None, None] * (source[below] - source[above])
    made = rows[:, left] + along[:, None] * (rows[:, right] - rows[:, left])
    return np.asarray(np.clip(np.rint(made), 0, 255), np.uint8)


def _neighbors(side: int, to: int, size: int) -> tuple[Index, Index, npt.NDArray[np.float32]]:
    """(lower neighbor, upper neighbor, share of the upper) of the central `size` of `to` pixels made from `side`."""
    places = (round((to - size) / 2.0) + np.arange(size) + 0.5) * side / to - 0.5
    low = np.floor(places)
    share = (places - low).astype(np.float32)
    lower, upper = (np.clip(low + step, 0, side - 1).astype(np.intp) for step in (0, 1))
    return lower, upper, share


def normalized(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """The arithmetic half: uint8 [..., H, W, 3] in RGB to float32 [..., 3, H, W] in the preprocess's color order."""
    if preprocess.color == "BGR":
        pixels = pixels[..., ::-1]
    scaled = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    scaled /= np.float32(255)
    scaled -= np.array(preprocess.mean, np.float32)[:, None, None]
    scaled /= np.array(preprocess.std, np.float32)[:, None, None]
    return scaled


def model_input(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """Pixels uint8 [..., H, W, 3] in RGB to the tensor that `preprocess.input` names, its shape as in Preprocess."""
    if preprocess.input == "float":
        return normalized(pixels, preprocess)
    if preprocess.input == "nv12":
        return nv12.from_rgb(pixels, preprocess.yuv)
    return np.ascontiguousarray(pixels[..., ::-1] if preprocess.color == "BGR" else pixels)


def prepare(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """The whole: any Pillow image to one image's tensor."""
    return model_input(resized_and_cropped(image, preprocess), preprocess)


def as_float(raw: npt.NDArray[np.uint8], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """What the tensor `raw` (uint8 or NV12, as `preprocess` says) stands for, float32 [N, 3, H, W] for the float model.

    NV12 is decoded without rounding or clipping, as the graph decodes it.
    """
    if preprocess.input == "uint8":
        return normalized(raw[..., ::-1] if preprocess.color == "BGR" else raw, preprocess)
    rgb = nv12.to_rgb(raw, preprocess.yuv)
    if preprocess.color == "BGR":
        rgb = rgb[..., ::-1]
    scaled = (rgb / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3), np.float32)


def pixel_map(preprocess: Preprocess, color: Color) -> tuple[Float, Float]:
    """(matrix [3, 3], origin [3]) with which the graph makes the float input: matrix @ (values - origin), for each pixel.

    values   of one pixel in the order of the tensor's planes: `preprocess.color` for uint8, (Y, U, V) for NV12
    color   channel order of the float model's input; mean and std are in the order of `preprocess.color`

    The origin is what the float model sees as zero, so that a convolution's zero padding stays right when the matrix, but not
    the origin, is merged into it.
    """
    matrix, origin = np.eye(3), np.zeros(3)
    if preprocess.input == "nv12":
        matrix, origin = nv12.decoding(preprocess.yuv)
        if preprocess.color == "BGR":
            matrix = matrix[::-1]
    scaled = matrix / (255 * np.array(preprocess.std))[:, None]
    origin = origin + np.linalg.solve(matrix, 255 * np.array(preprocess.mean))
    return (scaled if color == preprocess.color else scaled[::-1]), origin


def _target_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    to = preprocess.resize_to
    if preprocess.resize == "squash":
        return to, to
    width, height = size
    return (to, int(to * height / width)) if width <= height else (int(to * width / height), to)
