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
NO_LAYERS = "custom_quantize_layers: {}"


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
    tool = configured(build)
    say("load")
    code = tool.load_onnx(
        model=MODEL, inputs=[build["input"]], input_size_list=[build["shape"]]
    )
    require(code, "load_onnx")
    say("quantize")
    if build["float_layers"]:
        return with_float_layers(tool, build)
    require(tool.build(do_quantization=True, dataset=DATASET), "build")
    return tool


def configured(build: Any) -> Any:
    """The tool with the settings of a build."""
    tool = importlib.import_module("rknn.api").RKNN(verbose=False)
    tool.config(
        mean_values=[build["mean"]],
        std_values=[build["std"]],
        quant_img_RGB2BGR=build["swapped"],
        quantized_algorithm="normal",
        quantized_method=build["method"],
        target_platform=build["platform"],
    )
    return tool


def with_float_layers(tool: Any, build: Any) -> Any:
    """The tool after hybrid quantization: its own ranges, some layers in float16."""
    code = tool.hybrid_quantization_step1(dataset=DATASET)
    require(code, "hybrid_quantization_step1")
    stem = Path(MODEL).stem
    table = Path(f"{stem}.quantization.cfg")
    text = table.read_text("utf-8")
    if text.count(NO_LAYERS) != 1:
        raise RuntimeError(f"{table} has no line {NO_LAYERS}")
    # YAML, of which JSON is a part.
    layers = json.dumps(dict.fromkeys(build["float_layers"], "float16"))
    text = text.replace(NO_LAYERS, f"custom_quantize_layers: {layers}")
    table.write_text(text, "utf-8")
    second = configured(build)
    code = second.hybrid_quantization_step2(
        model_input=f"{stem}.model",
        data_input=f"{stem}.data",
        model_quantization_cfg=str(table),
    )
    require(code, "hybrid_quantization_step2")
    tool.release()
    return second


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
