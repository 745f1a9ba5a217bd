"""Pixels from normalized images, for engines whose models normalize by themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Preprocess
from repzoo.engines import Array


def pixels_of(inputs: Array, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """The pixels [N, H, W, channels] that were normalized to `inputs`."""
    if preprocess.layout != "NHWC":
        inputs = inputs.transpose(0, 2, 3, 1)
    std, mean = np.array(preprocess.std), np.array(preprocess.mean)
    if preprocess.color == "GRAY":  # one channel has the average, see Preprocess
        std, mean = std.mean(keepdims=True), mean.mean(keepdims=True)
    values = (inputs * std + mean) * 255
    pixels: npt.NDArray[np.uint8] = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return pixels
