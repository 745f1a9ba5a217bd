"""Images that a program draws: ten classes of striped textures, for networks that nobody trained.

A class is the direction, the width and the color of its stripes. They lie on noise that has a
natural image's spectrum (amplitudes fall with the frequency), and each image has a shift, a
contrast and noise of its own. A network learns them in a minute (models.py), also from crops,
since a texture is the same everywhere.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.data.dataset import Dataset, DataSource

CLASSES = 10
SIDE = 256  # pixels
IMAGES = {"train": 640, "test": 256}
STRIPES = (4.0, 24.0)  # the least and the largest width, in pixels
CONTRASTS = (0.5, 1.0)
NOISES = 16  # different ones, which images share at different shifts


def source() -> DataSource:
    """The data set with its two parts; equal in every process."""
    parts = {}
    first = 0
    for part, count in IMAGES.items():
        numbers = range(first, first + count)
        first += count
        parts[part] = Dataset(
            name=f"textures/{part}",
            classes=tuple(f"stripes{index}" for index in range(CLASSES)),
            keys=tuple(map(str, numbers)),
            targets=tuple(number % CLASSES for number in numbers),
            load=draw,
            training=part == "train",
        )
    return DataSource("textures", parts)


def draw(key: str) -> Image.Image:
    """The image of number `key`."""
    number = int(key)
    random = np.random.default_rng(number)
    target = number % CLASSES
    share = target / CLASSES
    low, high = STRIPES
    width = low * (high / low) ** ((target * 3 % CLASSES) / (CLASSES - 1))
    stripes = _stripes(math.pi * share, width, random.uniform(0, 2 * math.pi))
    # Three phases make a circle of colors.
    phases = 2 * math.pi * (share + np.arange(3) / 3)
    colors = 0.5 + 0.5 * np.cos(phases)
    contrast = random.uniform(*CONTRASTS)
    shift = tuple(random.integers(0, SIDE, 2))
    noise = np.roll(_natural_noise(int(random.integers(NOISES))), shift, (0, 1))
    pixels = (
        0.5 + 0.25 * contrast * stripes[..., None] * colors + 0.12 * noise[..., None]
    )
    values = np.clip(pixels * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(values)


def _stripes(angle: float, width: float, phase: float) -> npt.NDArray[np.float64]:
    """[SIDE, SIDE] in -1..1; `angle` and `phase` in radians, `width` in pixels."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    across = columns * math.cos(angle) + rows * math.sin(angle)
    wave: npt.NDArray[np.float64] = np.sin(math.pi * across / width + phase)
    return wave


@functools.cache
def _natural_noise(seed: int) -> npt.NDArray[np.float64]:
    """[SIDE, SIDE] of variance 1, amplitudes in inverse proportion to the frequency."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(random.standard_normal((SIDE, SIDE)))
    rows = np.fft.fftfreq(SIDE)[:, None]
    columns = np.fft.rfftfreq(SIDE)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1  # the mean is left alone
    noise = np.fft.irfft2(spectrum / frequency, (SIDE, SIDE))
    scaled: npt.NDArray[np.float64] = (noise - noise.mean()) / noise.std()
    return scaled
