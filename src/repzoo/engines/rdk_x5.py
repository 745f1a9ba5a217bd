"""hb_mapper's own quantized model on this machine: `rdk-x5`, for packs that are compiled.

It computes the integers that the board computes, in D-Robotics' own runtime, in the tool chain's
Python. Its latencies say nothing about the board. The model takes int8 pixels minus 128, in the
board's run-time format: of `nv12`, luma and chroma of every pixel, with a chroma sample repeated
over its 2x2 block. So what NV12 loses is measured too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from repzoo.artifact import Preprocess
from repzoo.data import nv12
from repzoo.data.preprocess import model_input
from repzoo.engines import Array
from repzoo.engines.compiled_pack import CompiledPackEngine
from repzoo.engines.pixels import pixels_of
from repzoo.errors import InputError
from repzoo.vendors.worker import Workers

PREPROCESS = "HzSQuantizedPreprocess"
YUV = "YUV_BT601_FULL_RANGE_128"
PIXELS = {"RGB": "RGB_128", "BGR": "BGR_128"}


class RdkX5(CompiledPackEngine):
    """The `rdk-x5` engine."""

    name = "rdk-x5"
    tool = "hb_mapper"

    def open_pack(
        self, path: Path, preprocess: Preprocess, streams: int = 1
    ) -> RdkX5Session:
        """See `engines.Engine`."""
        recipe = self.installed()
        model = onnx.load(path, load_external_data=False)
        return RdkX5Session(
            Workers(recipe, path, streams), preprocess, *_format_of(model)
        )


class RdkX5Session:
    """See `engines.Session`."""

    def __init__(
        self, workers: Workers, preprocess: Preprocess, kind: str, channels_last: bool
    ) -> None:
        self._workers = workers
        self._preprocess = preprocess
        self._kind = kind
        self._channels_last = channels_last

    def run(self, inputs: Any) -> Array:
        """See `engines.Session.run`."""
        pixels = self._in_runtime_format(pixels_of(inputs, self._preprocess))
        if not self._channels_last:
            pixels = pixels.transpose(0, 3, 1, 2)
        centered = (pixels.astype(np.int16) - 128).astype(np.int8)
        return self._workers.run(np.ascontiguousarray(centered))

    def run_all(self, inputs: Any) -> list[Array]:
        """See `engines.Session.run_all`; a classifier has one output."""
        return [self.run(inputs)]

    def carried(self, inputs: Array) -> Array:
        """`inputs` as the run-time format hands them to the network: NV12 has fewer colors.

        What quantizing costs is the difference from float on these.
        """
        if self._kind != YUV:
            return inputs
        pixels = pixels_of(inputs, self._preprocess)
        rgb = pixels if self._preprocess.color == "RGB" else pixels[..., ::-1]
        decoded = nv12.to_rgb8(nv12.from_rgb(rgb, "bt601-full"), "bt601-full")
        return np.asarray(model_input(decoded, self._preprocess))

    def _in_runtime_format(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        color = self._preprocess.color
        if self._kind == PIXELS.get(color):
            return pixels
        if self._kind == YUV and color in PIXELS:
            rgb = pixels if color == "RGB" else pixels[..., ::-1]
            return repeated(nv12.from_rgb(rgb, "bt601-full"))
        raise InputError(
            f"the compiled model takes {self._kind or 'an unknown format'}, which repzoo cannot "
            f"make of {color} images; it makes RGB, BGR and NV12"
        )


def repeated(buffer: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """NV12 [N, H * 3 / 2, W, 1] as Y, U and V of every pixel, [N, H, W, 3]."""
    count, rows, width, _ = buffer.shape
    height = rows * 2 // 3
    chroma = buffer[:, height:].reshape(count, height // 2, width // 2, 2)
    chroma = chroma.repeat(2, axis=1).repeat(2, axis=2)
    return np.concatenate([buffer[:, :height], chroma], axis=-1)


def _format_of(model: onnx.ModelProto) -> tuple[str, bool]:
    """(format of the pixels, whether channels are last) of a quantized model."""
    kind = ""
    for node in model.graph.node:
        if node.op_type == PREPROCESS:
            for item in node.attribute:
                if item.name == "input_type":
                    kind = item.s.decode("utf-8", "replace")
    dims = model.graph.input[0].type.tensor_type.shape.dim if model.graph.input else []
    return kind, len(dims) == 4 and dims[3].dim_value == 3
