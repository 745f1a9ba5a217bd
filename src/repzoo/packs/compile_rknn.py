"""rknn-toolkit2 on a pack for Rockchip's NPUs.

The pack's convert.py is a program, and nothing in a pack is run: the same calls are made by
vendors/rknn_child.py, with the settings of the packed model. It is the tool's own calibration, as
in the step `build`; layers that the pack wants in float16 are so by hybrid quantization.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.packs.compile import OUTPUT, Products, Run, packed_model, read_manifest
from repzoo.packs.rknn_program import DATASET, PROGRAM, arguments_of, program_text
from repzoo.storage import make_folder, read_bounded
from repzoo.vendors import rknn_child
from repzoo.vendors.recipes import find_recipe
from repzoo.vendors.rknn_build import RknnBuild, hashes_of, require_names

MAX_TEXT = 2**20
WORK = f"{OUTPUT}/work"
BUILD = f"{OUTPUT}/build.json"
ANALYSIS = f"{OUTPUT}/error_analysis.txt"
STAGES = {
    "repzoo: load": "load",
    "repzoo: quantize": "quantize and compile",
    "repzoo: export": "export",
    "repzoo: analyze": "compare the layers",
}


class RknnCompiler:
    """See `compile.Compiler`."""

    toolchain = "rknn"

    def __init__(self, method: str, chips: Sequence[str]) -> None:
        self.method = method
        self.chips = chips

    def build(self, folder: Path, run: Run) -> Products:
        """See `compile.Compiler.build`."""
        self.quantize(folder, run)
        work = folder / WORK
        work.mkdir()
        binary = f"{OUTPUT}/{packed_model(folder).stem}.rknn"
        # Absolute: the program works in the folder that receives the tool's files.
        child = Path(rknn_child.__file__).resolve()
        paths = [child, *(folder / name for name in (BUILD, binary, ANALYSIS, WORK))]
        run(["python", *map(str, paths)], STAGES)
        shutil.rmtree(work)
        for name in (binary, ANALYSIS):
            if not (folder / name).is_file():
                raise InputError(
                    f"rknn-toolkit2 ended without an error, and did not write {name}"
                )
        return Products(BUILD, binary, (ANALYSIS,))

    def quantize(self, folder: Path, run: Run) -> str:
        """See `compile.Compiler.quantize`."""
        del run  # the simulator's process quantizes by itself
        model = packed_model(folder)
        artifact = Artifact.read(model)
        chip = self._chip_of(folder)
        _require_own_program(folder, artifact, self.method, chip)
        build = self._build_of(folder, model.name, artifact, chip)
        make_folder(folder / OUTPUT)
        build.write(folder / BUILD)
        return BUILD

    def _chip_of(self, folder: Path) -> str:
        """The chip that a pack is for."""
        chip = read_manifest(folder).get("chip", self.chips[0])
        if chip not in self.chips:
            raise InputError(
                f"{folder} is for the chip {str(chip)[:40]!r}, and rknn-toolkit2 compiles for "
                f"{', '.join(self.chips)}; write the pack again with repzoo pack --chip"
            )
        return str(chip)

    def _build_of(
        self, folder: Path, model: str, artifact: Artifact, chip: str
    ) -> RknnBuild:
        text = read_bounded(folder / DATASET, MAX_TEXT).decode("utf-8", "replace")
        images = tuple(text.split("\n")[:-1])
        require_names(DATASET, model, images)
        if not images:
            raise InputError(f"{DATASET} names no calibration image")
        hashes = hashes_of(folder, (model, *images))
        for name in images:
            _require_plain_array(folder / name)
        model_ranges = (folder / model).with_suffix(".ranges.cfg")
        return RknnBuild(
            version=find_recipe(self.toolchain).version,
            model=model,
            method=self.method,
            platform=chip,
            images=images,
            float_layers=_float_layers(model_ranges),
            hashes=hashes,
            **arguments_of(artifact),
        )


def _float_layers(ranges: Path) -> tuple[str, ...]:
    """The layers that the ranges file of the pack names, all of them in float16."""
    try:
        layers = json.loads(read_bounded(ranges, MAX_TEXT))["custom_quantize_layers"]
        if set(layers.values()) <= {"float16"}:
            return tuple(layers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(
        f"{ranges.name} is not as repzoo writes it; write the pack again with repzoo pack"
    )


def _require_own_program(
    folder: Path, artifact: Artifact, method: str, chip: str
) -> None:
    """Refuse a convert.py that was changed: repzoo would not do what it says."""
    text = read_bounded(folder / PROGRAM, MAX_TEXT).decode("utf-8", "replace")
    if text != program_text(artifact, method, chip):
        raise InputError(
            f"{PROGRAM} is not as this repzoo writes it, and --compile runs no program of a pack; "
            "run its steps yourself, or write the pack again with repzoo pack"
        )


def _require_plain_array(path: Path) -> None:
    """Refuse NumPy files with Python objects, which run code when they are read."""
    if path.suffix != ".npy":
        return
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise InputError(
            f"calibration/{path.name} is no array of numbers; write the pack again with repzoo pack"
        ) from None
