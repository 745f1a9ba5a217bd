"""The pack for Sophgo's BM1684X, BM1688 and CV18xx: what tpu-mlir needs.

The tool normalizes by (x - mean) * scale of pixels 0..255, in the order of `pixel_format`. It
resizes images that do not fit; these do. Activations are called by their tensor and the operator
that writes it, as in `output_Gemm`, and the input by its name alone. A table of thresholds must
have all of them: ours has those that repzoo chose, so merge_table.py puts them into the tool's own
table. Where an activation is never negative the tool uses 0..255, else -127..127. All of this was
seen in version 1.30.2, which compiled a model with both tables, and with a layer in F16.
Source: Sophgo, "TPU-MLIR Quick Start", chapters on model_transform, run_calibration, model_deploy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from repzoo.artifact import Artifact
from repzoo.packs.pack import PackFile, PackJob, pixel_images
from repzoo.packs.parts import (
    Step,
    fallback_nodes,
    file_name,
    numbers,
    pixel_mean,
    pixel_std,
    png,
    quoted,
    render,
    shared_files,
)
from repzoo.packs.ranges import activation_ranges
from repzoo.quant.parameters.scales import INT8_MAX

CALIBRATION = "calibration"
PROCESSOR = '--processor "${PROCESSOR:-bm1684x}"'


class Sophgo:
    """The target `sophgo`."""

    name = "sophgo"
    scheme = "sophgo"

    def check(self, artifact: Artifact) -> None:
        """Nothing that other targets take is refused."""

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The model, images, thresholds, F16 layers, steps, labels and READMEs."""
        job = without_nameless_layers(job)
        artifact = job.artifact
        name = file_name(artifact.name)
        yield f"{name}.onnx", artifact.to_bytes()
        color = artifact.require_preprocess().color
        for number, pixels in enumerate(pixel_images(job)):
            yield f"{CALIBRATION}/{number:04d}.png", png(pixels, color)
        thresholds = table_lines(artifact)
        yield f"{name}_thresholds", "".join(thresholds)
        yield "merge_table.py", render("sophgo_merge_table.py.j2")
        layers = quantize_table(job)
        if layers:
            yield f"{name}_qtable", layers
        steps = _steps(job, bool(layers))
        yield from shared_files(
            job,
            "sophgo",
            steps,
            calibration=CALIBRATION,
            thresholds=len(thresholds) - 1,
        )


def op_names(artifact: Artifact) -> dict[str, str]:
    """tpu-mlir's name of each tensor. Those with blanks cannot stand in its tables."""
    names = {artifact.input_name: artifact.input_name}
    for node in artifact.model.graph.node:
        for tensor in node.output:
            names[tensor] = f"{tensor}_{node.op_type}"
    return {
        tensor: name for tensor, name in names.items() if not re.search(r"\s", name)
    }


def table_lines(artifact: Artifact) -> list[str]:
    """Our thresholds as lines of a calibration table, behind a heading."""
    names = op_names(artifact)
    lines = ["# op_name    threshold    min    max\n"]
    for tensor, item in activation_ranges(artifact).items():
        threshold = INT8_MAX * item.scale
        if tensor in names:
            lines.append(
                f"{names[tensor]} {threshold:.7g} {-threshold:.7g} {threshold:.7g}\n"
            )
    return lines


def without_nameless_layers(job: PackJob) -> PackJob:
    """`job` without the layers in F16 that the tool's tables cannot name; a remark names them."""
    names = op_names(job.artifact)
    kept: list[str] = []
    lost: list[str] = []
    for node in fallback_nodes(job):
        layers = kept if node.output[0] in names else lost
        layers.append(node.name or node.output[0])
    if not lost:
        return job
    job.remarks.append(
        f"{job.artifact.name}: {', '.join(lost)} should compute in F16, but will compute in INT8: "
        "names in tpu-mlir's tables have no blanks; rename their outputs to change that"
    )
    return replace(job, fallback=tuple(kept))


def quantize_table(job: PackJob) -> str:
    """The layers in F16, a line each; "" where there are none."""
    names = op_names(job.artifact)
    lines: list[str] = []
    for node in fallback_nodes(job):
        lines.append(f"{names[node.output[0]]} F16\n")
    if not lines:
        return ""
    return "# op_name quantize_mode\n" + "".join(lines)


def transform_command(artifact: Artifact) -> str:
    """The call of model_transform, with normalization from the model's preprocessing."""
    preprocess = artifact.require_preprocess()
    name = file_name(artifact.name)
    mean, std = pixel_mean(preprocess), pixel_std(preprocess)
    shape = [1, *preprocess.input_shape]
    return quoted(
        "model_transform",
        *("--model_name", name),
        *("--model_def", f"{name}.onnx"),
        *("--input_shapes", str([shape]).replace(" ", "")),
        *("--mean", numbers(mean, ",")),
        *("--scale", numbers([1 / value for value in std], ",")),
        *("--pixel_format", preprocess.color.lower()),
        *("--channel_format", preprocess.layout.lower()),
        *("--test_input", f"{CALIBRATION}/0000.png"),
        *("--test_result", f"{name}_top.npz"),
        *("--mlir", f"{name}.mlir"),
    )


def _deploy(name: str, precision: str, table: str, qtable: bool, suffix: str) -> str:
    words = ["model_deploy", "--mlir", f"{name}.mlir", "--quantize", precision]
    if table:
        words += ["--calibration_table", table]
    if qtable:
        words += ["--quantize_table", f"{name}_qtable"]
    words += ["--test_input", f"{name}_in_f32.npz"]
    words += ["--test_reference", f"{name}_top.npz"]
    # The similarity of outputs below which the tool stops; INT8 is never as close as F16.
    words += ["--tolerance", "0.8,0.4" if precision == "INT8" else "0.99,0.90"]
    words += ["--model", f"{name}_{suffix}.bmodel"]
    return f"{quoted(*words)} {PROCESSOR}"


def _steps(job: PackJob, has_layers: bool) -> list[Step]:
    name = file_name(job.artifact.name)
    tool, ours = f"{name}_cali_table", f"{name}_merged_table"
    calibrate = quoted(
        "run_calibration",
        f"{name}.mlir",
        *("--dataset", CALIBRATION),
        *("--input_num", len(job.images)),
        *("-o", tool),
    )
    merge = quoted("python", "merge_table.py", tool, f"{name}_thresholds", ours)
    int8 = _deploy(name, "INT8", tool, has_layers, "int8")
    merged = _deploy(name, "INT8", ours, has_layers, "int8_thresholds")
    return [
        Step(
            "check",
            "Read the ONNX file",
            "读取 ONNX 文件",
            transform_command(job.artifact),
        ),
        Step(
            "calibrate", "Choose thresholds with the tool", "用工具选择阈值", calibrate
        ),
        Step("build_int8", "Compile with these", "用这些阈值编译", int8),
        Step(
            "build_int8_with_thresholds",
            "Compile with repzoo's thresholds instead",
            "改用 repzoo 的阈值编译",
            f"{merge}\n{merged}",
        ),
        Step(
            "build_f16",
            "Compile in F16",
            "以 F16 编译",
            _deploy(name, "F16", "", False, "f16"),
        ),
        Step(
            "perf_on_board",
            "On the board: latency",
            "在板端运行：测量延迟",
            'for model in ./*.bmodel; do bmrt_test --bmodel "$model"; done',
        ),
    ]
