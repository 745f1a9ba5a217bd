"""The pack for Rockchip's RK35xx: what rknn-toolkit2 needs.

The tool normalizes by (x - mean_values) / std_values of pixels 0..255. It reads calibration images
as RGB, which `quant_img_RGB2BGR` turns for models of the other order; files of numpy must be
[1, channels, height, width]. All of this was seen in version 2.5.0, by the ranges that it found.

Our activation ranges go in by hybrid quantization: its step 1 writes the ranges that the tool chose
into `*.quantization.cfg`, and its step 2 compiles with those that the file has by then. It obeys
`min` and `max`, and refuses a file in which `scale` was changed (2.5.0).
Source: Rockchip's API of rknn-toolkit2; its examples/mobilenet/python.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.packs.compile_rknn import RknnCompiler
from repzoo.packs.limits import require_channels_first
from repzoo.packs.pack import PackFile, PackJob, pixel_images
from repzoo.packs.parts import (
    Step,
    fallback_nodes,
    file_name,
    npy,
    png,
    shared_files,
)
from repzoo.packs.ranges import activation_ranges
from repzoo.packs.rknn_program import DATASET, PROGRAM, program_text
from repzoo.storage import json_text

CALIBRATION = "calibration"
METHODS = {"": "channel", "layer": "layer"}
# What rknn-toolkit2 2.5.0 takes as target_platform, the usual one first.
CHIPS = (
    *("rk3588", "rk3588s", "rk3576", "rk3568", "rk3566", "rk3562", "rk2118"),
    *("rv1103", "rv1103b", "rv1106", "rv1106b", "rv1126b"),
)


class Rknn:
    """The target `rknn`; "rknn:layer" has one scale for each weight tensor."""

    def __init__(self, option: str = "") -> None:
        self.name = f"rknn:{option}" if option else "rknn"
        self.method = METHODS[option]
        self.scheme = "rknn-layer" if option else "rknn"
        self.chips = CHIPS
        self.compiler = RknnCompiler(self.method, CHIPS)

    @staticmethod
    def options() -> list[str]:
        """What may stand behind the colon."""
        return [option for option in METHODS if option]

    def check(self, artifact: Artifact) -> None:
        """Refuse channels last: the tool wants one mean for each row of such images (2.5.0)."""
        require_channels_first(
            artifact, "rknn-toolkit2 normalizes along the second axis"
        )

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The model, its configuration, ranges, calibration images, steps, labels and READMEs."""
        artifact = job.artifact
        name = file_name(artifact.name)
        yield f"{name}.onnx", artifact.to_bytes()
        names: list[str] = []
        for number, pixels in enumerate(pixel_images(job)):
            image, data = image_file(pixels, artifact.require_preprocess().color)
            names.append(f"{CALIBRATION}/{number:04d}.{image}")
            yield names[-1], data
        yield DATASET, "".join(f"{line}\n" for line in names)
        yield f"{name}.ranges.cfg", ranges_text(job)
        chip = job.chip or CHIPS[0]
        yield PROGRAM, program_text(artifact, self.method, chip)
        steps = _steps(chip)
        yield from shared_files(
            job,
            "rknn",
            steps,
            calibration=CALIBRATION,
            ranges=len(activation_ranges(artifact)),
            chip=chip,
        )


def image_file(pixels: npt.NDArray[np.uint8], color: str) -> tuple[str, bytes]:
    """(suffix, content) of one calibration image [channels, height, width], without loss."""
    if color != "GRAY":
        return "png", png(pixels, color)
    # The tool reads every image file as three channels.
    return "npy", npy(pixels[None])


def ranges_text(job: PackJob) -> str:
    """Ranges and float16 layers in the form of hybrid quantization's file.

    YAML, of which JSON is a part: names need no quoting of their own.
    """
    parameters: dict[str, object] = {}
    for tensor, item in activation_ranges(job.artifact).items():
        parameters[tensor] = {
            "qtype": "asym",
            "qmethod": "layer",
            "dtype": "int8",
            "min": [item.bounds[0]],
            "max": [item.bounds[1]],
        }
    layers = {node.output[0]: "float16" for node in fallback_nodes(job)}
    document = {"custom_quantize_layers": layers, "quantize_parameters": parameters}
    return json_text(document, indent=1) + "\n"


def _steps(chip: str) -> list[Step]:
    platform = f'--platform "${{PLATFORM:-{chip}}}"'
    return [
        Step(
            "build",
            "Quantize with the tool's own calibration, and compile",
            "用工具自带的校准进行量化并编译",
            f"python convert.py build {platform}",
        ),
        Step(
            "build_with_ranges",
            "The same with the activation ranges of repzoo, and with its float16 layers",
            "同上，但使用 repzoo 的激活范围和 float16 层",
            f"python convert.py ranges {platform}",
        ),
        Step(
            "accuracy",
            "Error of each layer, on the simulator",
            "在模拟器上分析每一层的误差",
            f"python convert.py accuracy {platform}",
        ),
        Step(
            "perf_on_board",
            "Latency and memory on a board that is connected by adb",
            "在通过 adb 连接的开发板上测量延迟和内存",
            f"python convert.py perf {platform}",
        ),
    ]
