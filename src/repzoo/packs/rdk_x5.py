"""The pack for D-Robotics' RDK X5 (bayes-e): what hb_mapper and hrt_model_exec need.

hb_mapper normalizes by (x - mean_value) * scale_value of pixels 0..255, so mean_value = 255 mean
and scale_value = 1 / (255 std). Its calibration files hold float32 pixels [channels, height, width]
before normalization, in the channel order of training. On the board the camera gives NV12, which
needs even sides. Source: D-Robotics' guide of the tool chain, ptq_process.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from repzoo.artifact import Artifact
from repzoo.errors import InputError
from repzoo.packs.pack import PackFile, PackJob, pixel_images
from repzoo.packs.parts import (
    Step,
    file_name,
    label_files,
    readme_files,
    sides,
    step_files,
)

CALIBRATION = "calibration_data_rgb_f32"
MAX_OPSET = 11
YAML = """\
model_parameters:
  onnx_model: './{name}.onnx'
  march: 'bayes-e'
  layer_out_dump: False
  working_dir: './model_output'
  output_model_file_prefix: '{name}_{height}x{width}_{runtime}'

input_parameters:
  input_name: ''
  input_type_rt: '{runtime}'
  input_type_train: '{color}'
  input_layout_train: '{layout}'
  input_shape: ''
  norm_type: 'data_mean_and_scale'
  mean_value: '{mean}'
  scale_value: '{scale}'

calibration_parameters:
  cal_data_dir: './{calibration}'
  cal_data_type: 'float32'
  calibration_type: 'default'

compiler_parameters:
  compile_mode: 'latency'
  debug: False
  optimize_level: 'O3'
"""


class RdkX5:
    """The target `rdk-x5`."""

    name = "rdk-x5"
    scheme = "rdk-x5"

    def check(self, artifact: Artifact) -> None:
        """Refuse what hb_mapper or NV12 cannot take.

        Raises:
            InputError: names it, and what to do.
        """
        preprocess = artifact.require_preprocess()
        height, width = sides(preprocess)
        if preprocess.input != "float":
            raise InputError(
                f"{artifact.name} takes {preprocess.input} images; hb_mapper puts the camera "
                "format in front by itself: give the model from before repzoo embed-input"
            )
        if preprocess.color != "GRAY" and (height % 2 or width % 2):
            raise InputError(
                f"{artifact.name} takes {height}x{width} pixels; NV12 needs even sides: export it "
                "with another --size"
            )

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The model, its configuration, calibration files, steps, labels and READMEs."""
        artifact = job.artifact
        if artifact.opset > MAX_OPSET:
            raise InputError(
                f"{artifact.name} has opset {artifact.opset}; hb_mapper takes opset 10 or 11: use "
                "repzoo harden --target rdk-x5 first"
            )
        name = file_name(artifact.name)
        yield f"{name}.onnx", artifact.to_bytes()
        yield f"{name}.yaml", yaml_text(artifact)
        for number, pixels in enumerate(pixel_images(job)):
            data = pixels.astype(np.float32).tobytes()
            yield f"{CALIBRATION}/{number:04d}.rgb", data
        steps = _steps(artifact)
        yield from step_files(steps)
        yield from label_files(job)
        yield from readme_files(job, "rdk_x5", steps, calibration=CALIBRATION)


def yaml_text(artifact: Artifact) -> str:
    """hb_mapper's configuration, computed from the model's preprocessing."""
    preprocess = artifact.require_preprocess()
    height, width = sides(preprocess)
    gray = preprocess.color == "GRAY"
    return YAML.format(
        name=file_name(artifact.name),
        height=height,
        width=width,
        runtime="gray" if gray else "nv12",
        color=preprocess.color.lower(),
        layout=preprocess.layout,
        mean=_numbers([255 * value for value in preprocess.mean]),
        scale=_numbers([1 / (255 * value) for value in preprocess.std]),
        calibration=CALIBRATION,
    )


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.8g}" for value in values)


def _steps(artifact: Artifact) -> list[Step]:
    name = file_name(artifact.name)
    return [
        Step(
            "check",
            "Show which operators run on the BPU",
            "查看哪些算子在 BPU 上运行",
            f"hb_mapper checker --model-type onnx --march bayes-e --model {name}.onnx",
        ),
        Step(
            "build",
            "Quantize and compile; model_output/ then holds the .bin",
            "量化并编译；.bin 在 model_output/ 中",
            f"hb_mapper makertbin --model-type onnx --config {name}.yaml",
        ),
        Step(
            "perf_on_board",
            "On the board: latency with one thread, frame rate with four",
            "在板端运行：单线程延迟，四线程帧率",
            "hrt_model_exec perf --model_file model_output/*.bin --thread_num 1 --frame_count 200\n"
            "hrt_model_exec perf --model_file model_output/*.bin --thread_num 4 --frame_count 800",
        ),
    ]
