"""hb_mapper on a pack for the RDK X5.

`makertbin` alone: what `checker` says of the operators, makertbin says too, and its own compilation
without optimization takes time.
"""

from __future__ import annotations

import re
from pathlib import Path

from repzoo.errors import InputError
from repzoo.packs.compile import OUTPUT, TOOL_LOG, Products, Run, packed_model
from repzoo.storage import read_bounded

MAX_YAML = 2**20
COMMAND = ("hb_mapper", "makertbin", "--model-type", "onnx", "--config")
QUANTIZED = "*_quantized_model.onnx"
COMPILES = "Start to compile the model"  # printed when QUANTIZED is written
STAGES = {
    "Start to prepare the onnx model": "prepare",
    "Start to optimize the onnx model": "optimize",
    "Start to calibrate the model": "calibrate",
    "Start to quantize the model": "quantize",
    COMPILES: "compile",
}
PATHS = ("onnx_model", "working_dir", "cal_data_dir")
INSIDE = r"\s*:\s*'\./([A-Za-z0-9_][A-Za-z0-9._-]*)'\s*$"


class RdkX5Compiler:
    """See `compile.Compiler`."""

    toolchain = "rdk-x5"

    def build(self, folder: Path, run: Run) -> Products:
        """See `compile.Compiler.build`."""
        configuration = packed_model(folder).with_suffix(".yaml")
        require_harmless(configuration)
        run([*COMMAND, configuration.name], STAGES)
        # The same as its standard output, with the messages for its makers.
        (folder / "hb_mapper_makertbin.log").unlink(missing_ok=True)
        quantized = _only(folder, QUANTIZED)
        return Products(quantized, _only(folder, "*.bin"), (TOOL_LOG,))

    def quantize(self, folder: Path, run: Run) -> str:
        """See `compile.Compiler.quantize`: makertbin until it begins to compile."""
        configuration = packed_model(folder).with_suffix(".yaml")
        require_harmless(configuration)
        run([*COMMAND, configuration.name], STAGES, COMPILES)
        return _only(folder, QUANTIZED)


def require_harmless(path: Path) -> None:
    """Refuse a configuration by which hb_mapper would read or write elsewhere, or run code.

    Raises:
        InputError: says which key.
    """
    text = read_bounded(path, MAX_YAML).decode("utf-8", "replace")
    # hb_mapper imports the Python modules that this section names.
    if "custom_op" in text:
        raise InputError(
            f"{path.name} has the section custom_op, which runs code; run hb_mapper yourself if "
            "you trust it"
        )
    for key in PATHS:
        # Once: of a key that is there twice, readers take different ones.
        inside = re.findall(rf"^\s+{key}{INSIDE}", text, re.MULTILINE)
        if len(inside) != 1 or text.count(key) != 1:
            raise InputError(
                f"{path.name}: expected {key} once, as './NAME' in the pack's folder; write the "
                "pack again with repzoo pack, or run hb_mapper yourself"
            )


def _only(folder: Path, pattern: str) -> str:
    files = sorted((folder / OUTPUT).glob(pattern))
    if len(files) != 1:
        raise InputError(
            f"hb_mapper ended without an error, and wrote {len(files)} files {pattern} to "
            f"{OUTPUT} instead of 1"
        )
    return files[0].relative_to(folder).as_posix()
