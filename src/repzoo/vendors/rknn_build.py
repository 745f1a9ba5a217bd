"""What rknn-toolkit2 builds a pack's model from: model_output/build.json.

The tool's simulator runs only what the same process has built. So this file stands for the
quantized model: it has all settings, and the hashes of the model and of the calibration images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.storage import json_text, read_bounded, sha256_of_file

MAX_BYTES = 2**24
FILE = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
MODEL = re.compile(rf"{FILE}\.onnx")
IMAGE = re.compile(rf"calibration/{FILE}\.(?:png|npy)")
METHODS = ("channel", "layer")
AGAIN = "type: repzoo pack PACK --compile"


@dataclass(frozen=True)
class RknnBuild:
    """The arguments of the tool's calls; files are named below the pack's folder.

    Attributes:
        version: of rknn-toolkit2.
        model: the float ONNX.
        input: name of its input.
        shape: of its input.
        mean, std: of pixels 0..255, in the model's channel order.
        swapped: whether the tool turns the images, which it reads as RGB, into BGR.
        method: one weight scale per "channel" or per "layer".
        platform: the chip, such as rk3588.
        images: calibration images.
        float_layers: output tensors of the layers in float16.
        hashes: SHA-256 of the model and of every image.
    """

    version: str
    model: str
    input: str
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    swapped: bool
    method: str
    platform: str
    images: tuple[str, ...]
    float_layers: tuple[str, ...]
    hashes: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json_text(asdict(self), indent=1) + "\n", "utf-8")


def read_build(path: Path) -> RknnBuild:
    """The build in `path`, a file in model_output of a pack.

    Raises:
        InputError: damaged, names files outside of the pack, or files that were changed since.
    """
    try:
        build = _parse(json.loads(read_bounded(path, MAX_BYTES)))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path} is damaged; {AGAIN}") from None
    require_names(path.name, build.model, build.images)
    folder = path.parent.parent
    for name, digest in hashes_of(folder, (build.model, *build.images)).items():
        if build.hashes.get(name) != digest:
            raise InputError(
                f"{folder / name} was changed since it was compiled; {AGAIN}"
            )
    return build


def require_names(source: str, model: str, images: Sequence[str]) -> None:
    """Refuse names by which the tool would read files outside of the pack.

    Raises:
        InputError: says which; `source` is the file that has them.
    """
    if not MODEL.fullmatch(model):
        raise InputError(f"{source} names the model {model[:80]!r}, no file of a pack")
    for name in images:
        if not IMAGE.fullmatch(name):
            raise InputError(
                f"{source} names the calibration image {name[:80]!r}; expected .png and .npy files "
                "in the pack's folder calibration"
            )


def hashes_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each file, by name.

    Raises:
        InputError: one is not there, or a link to the outside.
    """
    root = folder.resolve()
    hashes: dict[str, str] = {}
    for name in names:
        path = (folder / name).resolve()
        if not path.is_file() or not path.is_relative_to(root):
            raise InputError(
                f"{folder / name} is no file of the pack; write the pack again with repzoo pack"
            )
        hashes[name] = sha256_of_file(path)
    return hashes


def _parse(document: Any) -> RknnBuild:
    """Raise ValueError, KeyError or TypeError where it is not as `write` makes it."""
    build = RknnBuild(
        version=str(document["version"]),
        model=str(document["model"]),
        input=str(document["input"]),
        shape=tuple(map(int, document["shape"])),
        mean=tuple(map(float, document["mean"])),
        std=tuple(map(float, document["std"])),
        swapped=bool(document["swapped"]),
        method=str(document["method"]),
        platform=str(document["platform"]),
        images=tuple(map(str, document["images"])),
        float_layers=tuple(map(str, document["float_layers"])),
        hashes=dict(document["hashes"]),
    )
    if build.method not in METHODS or not build.images:
        raise ValueError("no build")
    return build
