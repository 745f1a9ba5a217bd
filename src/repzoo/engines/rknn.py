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
import onnx

from repzoo.artifact import Preprocess
from repzoo.engines import Array
from repzoo.engines.pixels import pixels_of
from repzoo.errors import InputError
from repzoo.vendors.environment import require_installed
from repzoo.vendors.recipes import find_recipe
from repzoo.vendors.rknn_build import AGAIN, read_build
from repzoo.vendors.worker import Workers

PREDICTION = "without the tool chain, repzoo harden --target rknn predicts the accuracy"


class Rknn:
    """The `rknn` engine."""

    name = "rknn"
    simulates_int8 = True

    def version(self) -> str:
        """Of rknn-toolkit2."""
        recipe = find_recipe(self.name)
        require_installed(recipe)
        return recipe.version

    def open(
        self,
        model: onnx.ModelProto,
        threads: int = 1,
        exact: bool = False,
        streams: int = 1,
    ) -> RknnSession:
        """Refuse: the calibration images are in the pack, not in `model`."""
        raise InputError(
            "the engine rknn runs packs that rknn-toolkit2 compiled; make one with: repzoo pack "
            "MODEL.onnx -o PACK --target rknn --data DIR --compile, then give the folder PACK; "
            f"{PREDICTION}"
        )

    def open_pack(
        self, path: Path, preprocess: Preprocess, streams: int = 1
    ) -> RknnSession:
        """See `engines.Engine`."""
        recipe = find_recipe(self.name)
        try:
            require_installed(recipe)
        except InputError as error:
            raise InputError(f"{error}; {PREDICTION}") from None
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
