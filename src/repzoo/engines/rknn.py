"""rknn-toolkit2's simulator on this machine: `rknn`, for packs that are compiled.

It runs no .rknn file, only what the same process has built. So each process quantizes the model
again, from the same file, settings and calibration images as `repzoo pack --compile`, all of them
checked by their hashes; the tool calibrates without chance (two builds of RepGhostNet 0.5x gave the
same logits to the last bit, 2.5.0). It gives no time of the board.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from repzoo.artifact import Preprocess
from repzoo.engines import Array
from repzoo.engines.compiled_pack import CompiledPackEngine
from repzoo.engines.pixels import pixels_of
from repzoo.errors import InputError
from repzoo.vendors.rknn_build import AGAIN, read_build
from repzoo.vendors.worker import Workers


class Rknn(CompiledPackEngine):
    """The `rknn` engine."""

    name = "rknn"
    tool = "rknn-toolkit2"

    def open_pack(
        self, path: Path, preprocess: Preprocess, streams: int = 1
    ) -> RknnSession:
        """See `engines.Engine`."""
        recipe = self.installed()
        build = read_build(path)
        if build.version != recipe.version:
            raise InputError(
                f"{path} is of rknn-toolkit2 {build.version}, and {recipe.version} is installed, "
                f"which may quantize otherwise; {AGAIN}"
            )
        return RknnSession(Workers(recipe, path, streams), preprocess)


class RknnSession:
    """See `engines.Session`."""

    def __init__(self, workers: Workers, preprocess: Preprocess) -> None:
        self._workers = workers
        self._preprocess = preprocess

    def run(self, inputs: Any) -> Array:
        """See `engines.Session.run`."""
        pixels = pixels_of(inputs, self._preprocess)
        return self._workers.run(np.ascontiguousarray(pixels))

    def run_all(self, inputs: Any) -> list[Array]:
        """See `engines.Session.run_all`; a classifier has one output."""
        return [self.run(inputs)]
