"""MNN's own quantizer on this machine: KL ranges of activations, weights by their magnitude.

Its Python commands report usage and install packages, so its C extension alone is called, in a
process of its own: it prints, and it crashes on some models.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from repzoo.artifact import Artifact
from repzoo.engines.mnn import MnnSession
from repzoo.errors import RepzooError
from repzoo.storage import make_folder

SECONDS = 220
CONVERT = "import sys, _tools; sys.exit(not _tools.mnnconvert(sys.argv[1:]))"
QUANTIZE = "import sys, _tools; _tools.mnnquant(*sys.argv[1:])"


def quantize(
    artifact: Artifact, images: Iterable[npt.NDArray[np.uint8]], folder: Path
) -> MnnSession:
    """A session of what MNN's quantizer makes of `artifact`, a float model.

    Args:
        artifact: with its preprocessing.
        images: that calibrate, RGB [3, H, W].
        folder: for its files.

    Raises:
        RepzooError: the quantizer crashed or wrote nothing; names how it ended.
    """
    artifact.save(folder / "model.onnx")
    photographs = make_folder(folder / "images")
    for number, pixels in enumerate(images):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(
            photographs / f"{number:04d}.png"
        )
    preprocess = artifact.require_preprocess()
    settings = {
        "format": "RGB",
        "mean": [255 * value for value in preprocess.mean],
        "normal": [1 / (255 * value) for value in preprocess.std],
        "width": preprocess.width,
        "height": preprocess.height,
        "path": f"{photographs}/",
        "used_image_num": len(list(photographs.iterdir())),
        "feature_quantize_method": "KL",
        "weight_quantize_method": "MAX_ABS",
        "model": "model.mnn",
    }
    (folder / "quantize.json").write_text(json.dumps(settings))
    arguments = ["mnnconvert", "-f", "ONNX", "--bizCode", "repzoo"]
    arguments += ["--modelFile", "model.onnx", "--MNNModel", "model.mnn"]
    _run(folder, CONVERT, *arguments)
    _run(folder, QUANTIZE, "model.mnn", "int8.mnn", "quantize.json")
    path = folder / "int8.mnn"
    if not path.exists():
        raise RepzooError(f"MNN's quantizer wrote nothing; see {folder}/log.txt")
    return MnnSession(artifact.model, path, 1)


def _run(folder: Path, program: str, *arguments: str) -> None:
    """Run a command of MNN in `folder`; it prints into log.txt."""
    with (folder / "log.txt").open("ab") as log:
        code = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            timeout=SECONDS,
            check=False,
        ).returncode
    if code:
        raise RepzooError(
            f"MNN's {arguments[0]} ended with {code}; see {folder}/log.txt"
        )
