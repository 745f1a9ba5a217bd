"""From an image to a model's input, bit for bit like torchvision's and timm's evaluation.

    Resize -> CenterCrop -> / 255 -> (x - mean) / std

Rounding is torchvision's: the long side becomes int(short side * long / short), the crop starts at
int(round((side - size) / 2)). EXIF orientation is ignored by default, as in those libraries.

A model with uint8 or NV12 input does the arithmetic itself. It gets the pixels, and `pixel_map`
says what its graph must compute.

Source: torchvision.transforms.functional (resize, center_crop, to_tensor, normalize) and
timm.data.transforms_factory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Color, Preprocess
from repzoo.data import nv12
from repzoo.data.dataset import UnreadableImage
from repzoo.data.image_file import upright

Tensor = npt.NDArray[Any]  # float32 or uint8, as Preprocess.input says
Float = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.intp]

# Pixels after resizing. A strip of 1 x 60,000 pixels would become gigabytes before it is cropped.
MAX_RESIZED = 64_000_000
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def prepare(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """The input tensor of one image of any Pillow mode."""
    return model_input(resized_and_cropped(image, preprocess), preprocess)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB. Transparency is dropped, as by torchvision's and timm's loaders."""
    if image.mode == "RGB":
        return image
    # Without this step Pillow would warn and treat transparent palette entries differently.
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def resized_and_cropped(image: Image.Image, preprocess: Preprocess) -> Bytes:
    """The geometric half of preprocessing: uint8 [H, W, 3] in RGB.

    Raises:
        UnreadableImage: so long and narrow that resizing would make more than MAX_RESIZED pixels.
    """
    image = to_rgb(oriented(image, preprocess))
    target = _target_size(image.size, preprocess)
    if target[0] * target[1] > MAX_RESIZED:
        raise UnreadableImage(
            f"an image of {image.width}x{image.height} pixels would be resized to "
            f"{target[0]}x{target[1]}; at most {MAX_RESIZED:,} pixels are made; crop it"
        )
    if image.size != target:
        image = image.resize(target, _FILTERS[preprocess.interpolation])
    width, height = preprocess.width, preprocess.height
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def resized_without_antialiasing(image: Image.Image, preprocess: Preprocess) -> Bytes:
    """Like `resized_and_cropped`, with OpenCV's INTER_LINEAR.

    Each pixel is interpolated from its four nearest neighbors, however much the image shrinks.
    """
    image = oriented(image, preprocess)
    source = np.asarray(to_rgb(image), np.float32)
    width, height = _target_size(image.size, preprocess)
    above, below, row_share = _neighbors(source.shape[0], height, preprocess.height)
    left, right, column_share = _neighbors(source.shape[1], width, preprocess.width)
    rows = source[above] + row_share[:, None, None] * (source[below] - source[above])
    pixels = rows[:, left] + column_share[:, None] * (rows[:, right] - rows[:, left])
    return np.asarray(np.clip(np.rint(pixels), 0, 255), np.uint8)


def normalized(pixels: Bytes, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """The arithmetic half: uint8 [..., H, W, 3] in RGB to float32 [..., C, H, W].

    The channels are those of `preprocess.color`, in its order; NHWC gives [..., H, W, C].
    """
    pixels = _in_color(pixels, preprocess.color)
    mean, std = statistics(preprocess)
    if preprocess.layout == "NHWC":
        scaled = pixels.astype(np.float32, order="C")
    else:
        scaled = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
        mean, std = mean[:, None, None], std[:, None, None]
    scaled /= np.float32(255)
    scaled -= mean
    scaled /= std
    return scaled


def model_input(pixels: Bytes, preprocess: Preprocess) -> Tensor:
    """Pixels uint8 [..., H, W, 3] in RGB as the tensor that `preprocess.input` names."""
    if preprocess.input == "float":
        return normalized(pixels, preprocess)
    if preprocess.input == "nv12":
        return nv12.from_rgb(pixels, preprocess.yuv)
    return np.ascontiguousarray(_in_color(pixels, preprocess.color))


def _in_color(pixels: Bytes, color: Color) -> Bytes:
    """RGB pixels [..., 3] in another channel order, or as gray [..., 1].

    Gray is Pillow's: the luma of ITU-R BT.601 in 16-bit fixed point, so that the gray of a gray
    image is itself.
    """
    if color == "BGR":
        return pixels[..., ::-1]
    if color == "RGB":
        return pixels
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), -1, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return np.asarray(luma[..., None], np.uint8)


def statistics(
    preprocess: Preprocess,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(mean, std) of each channel; of one channel their averages, as timm's in_chans=1."""
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    if preprocess.color == "GRAY":
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    return mean.astype(np.float32), std.astype(np.float32)


def as_float(raw: Bytes, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """What the tensor `raw` (uint8 or NV12) means to the float model: float32 [N, 3, H, W].

    NV12 is decoded without rounding or clipping, as the graph decodes it.
    """
    if preprocess.input == "uint8":
        return normalized(
            raw[..., ::-1] if preprocess.color == "BGR" else raw, preprocess
        )
    rgb = nv12.to_rgb(raw, preprocess.yuv)
    if preprocess.color == "BGR":
        rgb = rgb[..., ::-1]
    scaled = (rgb / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3), np.float32)


def pixel_map(preprocess: Preprocess, color: Color) -> tuple[Float, Float]:
    """(matrix [3, 3], origin [3]): the float input of a pixel is matrix @ (values - origin).

    values  of one pixel in the tensor's plane order: `preprocess.color` for uint8, (Y, U, V) for
            NV12
    color   channel order of the float model's input; mean and std follow `preprocess.color`

    The origin is what the float model sees as zero. A convolution's zero padding therefore stays
    right when the matrix, but not the origin, is merged into it.
    """
    matrix = np.eye(3)
    origin = np.zeros(3)
    if preprocess.input == "nv12":
        matrix, origin = nv12.decoding(preprocess.yuv)
        if preprocess.color == "BGR":
            matrix = matrix[::-1]
    scaled = matrix / (255 * np.array(preprocess.std))[:, None]
    origin = origin + np.linalg.solve(matrix, 255 * np.array(preprocess.mean))
    return (scaled if color == preprocess.color else scaled[::-1]), origin


def oriented(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """`image`, upright where `preprocess` applies the EXIF orientation tag."""
    return upright(image) if preprocess.orientation == "apply" else image


def _target_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) after resizing an image of `size`, before the crop.

    A rectangle is covered, as by timm's ResizeKeepRatio.
    """
    width, height = size
    if isinstance(preprocess.resize_to, tuple):
        rows, columns = preprocess.resize_to
        if preprocess.resize == "squash":
            return columns, rows
        ratio = min(height / rows, width / columns)
        return max(round(width / ratio), columns), max(round(height / ratio), rows)
    short = preprocess.resize_to
    if preprocess.resize == "squash":
        return short, short
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _neighbors(
    side: int, target: int, size: int
) -> tuple[Index, Index, npt.NDArray[np.float32]]:
    """(lower neighbor, upper neighbor, share of the upper) along one axis.

    For the central `size` of `target` pixels that are interpolated from `side` source pixels.
    """
    centers = round((target - size) / 2.0) + np.arange(size) + 0.5
    positions = centers * side / target - 0.5
    low = np.floor(positions)
    share = (positions - low).astype(np.float32)
    lower = np.clip(low, 0, side - 1).astype(np.intp)
    upper = np.clip(low + 1, 0, side - 1).astype(np.intp)
    return lower, upper, share
