"""rknn-toolkit2 on a pack: in that tool chain's own Python, 3.8 or later, without repzoo.

    python rknn_child.py FOLDER/model_output/build.json FILE.rknn ANALYSIS.txt WORK

Quantizes and compiles the model of a pack, then compares every layer with the float model. The
simulator runs no .rknn file, only what the same process has built; so worker_child.py builds
the model again with `open_tool`.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

ANALYSIS = "snapshot"  # folder in which the tool dumps every layer
MODEL, DATASET = "model.onnx", "dataset.txt"
IMAGES = "images"


def open_tool(build_file: Path) -> Any:
    """The tool with the quantized model of a pack; the current folder receives its files.

    Raises:
        RuntimeError: a call of the tool failed.
    """
    build = json.loads(build_file.read_text("utf-8"))
    folder = build_file.parent.parent
    # The tool splits lines at blanks, and takes other names from the current folder.
    Path(MODEL).symlink_to(folder / build["model"])
    Path(IMAGES).mkdir()
    names = []
    for number, image in enumerate(build["images"]):
        names.append(f"{IMAGES}/{number:05d}{Path(image).suffix}")
        Path(names[-1]).symlink_to(folder / image)
    Path(DATASET).write_text("".join(f"{name}\n" for name in names), "utf-8")
    tool = importlib.import_module("rknn.api").RKNN(verbose=False)
    tool.config(
        mean_values=[build["mean"]],
        std_values=[build["std"]],
        quant_img_RGB2BGR=build["swapped"],
        quantized_algorithm="normal",
        quantized_method=build["method"],
        target_platform=build["platform"],
    )
    say("load")
    code = tool.load_onnx(
        model=MODEL, inputs=[build["input"]], input_size_list=[build["shape"]]
    )
    require(code, "load_onnx")
    say("quantize")
    require(tool.build(do_quantization=True, dataset=DATASET), "build")
    return tool


def require(code: Any, action: str) -> None:
    """Raise a RuntimeError when a call of the tool did not return 0."""
    if code != 0:
        raise RuntimeError(f"{action} returned {code}")


def say(stage: str) -> None:
    """Tell repzoo what comes next."""
    sys.stdout.write(f"repzoo: {stage}\n")
    sys.stdout.flush()


def main(build_file: Path, output: Path, analysis: Path, work: Path) -> None:
    """Write the compiled model and the table of accuracy_analysis; `work` is left as it is then."""
    os.chdir(work)
    tool = open_tool(build_file)
    say("export")
    require(tool.export_rknn(str(output)), "export_rknn")
    say("analyze")
    first = Path(DATASET).read_text("utf-8").split()[:1]
    require(
        tool.accuracy_analysis(inputs=first, output_dir=ANALYSIS), "accuracy_analysis"
    )
    shutil.copyfile(Path(ANALYSIS) / "error_analysis.txt", analysis)
    tool.release()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
