"""The pack for tools that take quantized ONNX as it is: TensorRT, QNN, STM32N6 and Axera.

All read QuantizeLinear and DequantizeLinear; they differ in the number formats that their hardware
has. So each has a scheme of its own, and the model is quantized here, by `repzoo quantize`.

TensorRT takes no integer biases: it would not recognize the convolution behind them. They are
stored in float, with the values that the integers had.
Source: NVIDIA, TensorRT developer guide, "Working with Quantized Types"; ONNX Runtime, "QNN
Execution Provider"; ST, "ST Edge AI Core, Quantized models"; AXERA-TECH/pulsar2-docs, "Quantized
ONNX model import".
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.artifact import Artifact
from repzoo.data.batches import ReadReport, batches
from repzoo.graph.tools.int8_share import int8_share
from repzoo.graph.tools.onnx_edit import remove_unused_initializers
from repzoo.packs.pack import BATCH, PackFile, PackJob, pixel_images
from repzoo.packs.parts import (
    Step,
    file_name,
    npy,
    pixel_mean,
    pixel_std,
    png,
    shared_files,
)
from repzoo.protobuf_stream import clone
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.search.harden import as_target_takes_it
from repzoo.storage import json_text

INPUTS = "inputs.npy"
CALIBRATION = "calibration.tar"
RUN_QNN = """\
import sys

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
# An operator that the NPU lacks is an error, not a silent detour over the CPU.
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
session = onnxruntime.InferenceSession(
    sys.argv[1],
    options,
    providers=["QNNExecutionProvider"],
    provider_options=[{"backend_type": "htp", "htp_performance_mode": "burst"}],
)
name = session.get_inputs()[0].name
classes = []
for image in np.load("inputs.npy"):
    logits = session.run(None, {name: image[None]})[0]
    classes.append(int(logits.argmax()))
print(*classes, sep="\\n")
"""


BUILD = ("Compile", "编译")
PERF = ("On the device: latency", "在设备上测量延迟")
# MODEL stands for the name of the model's file: braces mean something to bash.
STEPS = {
    "tensorrt": (
        Step(
            "build",
            *BUILD,
            "trtexec --onnx=MODEL.onnx --int8 --saveEngine=MODEL.engine",
        ),
        Step(
            "perf_on_device", *PERF, "trtexec --loadEngine=MODEL.engine --useSpinWait"
        ),
    ),
    "qnn": (
        Step(
            "run_on_device",
            "On the device: the class of each of the images, by ONNX Runtime's QNN provider",
            "在设备上：用 ONNX Runtime 的 QNN 后端输出每张图片的类别",
            "python run_qnn.py MODEL.onnx",
        ),
    ),
    "stm32n6": (
        Step(
            "check",
            "Show memory and operators",
            "查看内存和算子",
            "stedgeai analyze --model MODEL.onnx --target stm32n6 --st-neural-art",
        ),
        Step(
            "build",
            *BUILD,
            "stedgeai generate --model MODEL.onnx --target stm32n6 --st-neural-art",
        ),
        Step(
            "evaluate_on_board",
            "On the board: outputs and time against ONNX Runtime",
            "在板端运行：与 ONNX Runtime 比较输出和时间",
            "stedgeai validate --model MODEL.onnx --target stm32n6 --mode target "
            f"--valinput {INPUTS}",
        ),
    ),
    "axera": (
        Step(
            "build",
            *BUILD,
            "pulsar2 build --input MODEL.onnx --config config.json --output_dir output "
            '--target_hardware "${HARDWARE:-AX650}"',
        ),
        Step(
            "perf_on_board",
            *PERF,
            "ax_run_model -m output/compiled.axmodel -w 10 -r 100",
        ),
    ),
}


@dataclass(frozen=True)
class Tool:
    """One of the tools.

    Attributes:
        title: for READMEs.
        scheme: number formats of its hardware.
        float_bias: store biases in float.
    """

    title: str
    scheme: str
    float_bias: bool = False


TOOLS = {
    "tensorrt": Tool("TensorRT", "tensorrt", float_bias=True),
    "qnn": Tool("Qualcomm QNN", "qnn"),
    "stm32n6": Tool("STM32N6", "stm32n6"),
    "axera": Tool("Axera", "qnn"),
}


class Qdq:
    """The target `qdq:TOOL`; without a tool it is TensorRT's."""

    form = "int8"

    def __init__(self, option: str = "tensorrt") -> None:
        self.option = option
        self.tool = TOOLS[option]
        self.name = f"qdq:{option}"
        self.scheme = self.tool.scheme

    @staticmethod
    def options() -> list[str]:
        """What may stand behind the colon."""
        return list(TOOLS)

    def check(self, artifact: Artifact) -> None:
        """Nothing that other targets take is refused."""

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The INT8 model, what its tool needs beside it, inputs to try it with, steps, READMEs."""
        artifact = job.artifact
        name = file_name(artifact.name)
        model = as_target_takes_it(artifact.model, load_scheme(self.scheme))
        if self.tool.float_bias:
            model = with_float_biases(model)
        yield f"{name}.onnx", replace(artifact, model=model).to_bytes()
        yield INPUTS, _inputs(job)
        if self.option == "axera":
            yield "config.json", json_text(axera_configuration(job), indent=1) + "\n"
            yield CALIBRATION, _archive(job)
        if self.option == "qnn":
            yield "run_qnn.py", RUN_QNN
        steps = _steps(self.option, name)
        yield from shared_files(
            job,
            "qdq",
            steps,
            tool=self.tool,
            option=self.option,
            share=int8_share(artifact),
        )


def with_float_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with every int32 bias as the float values that it stands for."""
    result = clone(model)
    graph = result.graph
    constants = {item.name: item for item in graph.initializer}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        bias = constants.get(node.input[0]) if node.input else None
        is_bias = bias is not None and bias.data_type == onnx.TensorProto.INT32
        if node.op_type != "DequantizeLinear" or not is_bias:
            kept.append(node)
            continue
        codes = numpy_helper.to_array(constants[node.input[0]])
        scale = numpy_helper.to_array(constants[node.input[1]])
        values = codes.astype(np.float32) * scale
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    remove_unused_initializers(graph)
    return result


def axera_configuration(job: PackJob) -> dict[str, object]:
    """Pulsar2's configuration of a model that is quantized already.

    It normalizes by (x - mean) / std of pixels 0..255, in the order of the model's channels.
    """
    preprocess = job.artifact.require_preprocess()
    return {
        "model_type": "QuantONNX",
        "npu_mode": "NPU1",
        "quant": {
            "input_configs": [
                {
                    "tensor_name": job.artifact.input_name,
                    "calibration_dataset": f"./{CALIBRATION}",
                    "calibration_format": "Image",
                    "calibration_size": len(job.images),
                    "calibration_mean": pixel_mean(preprocess),
                    "calibration_std": pixel_std(preprocess),
                }
            ],
            "calibration_method": "MinMax",
        },
        "input_processors": [
            {
                "tensor_name": job.artifact.input_name,
                "tensor_format": preprocess.color,
                "tensor_layout": preprocess.layout,
                "src_format": preprocess.color,
                "src_dtype": "U8",
                "src_layout": "NHWC",
            }
        ],
        "compiler": {"check": 0},
    }


def _inputs(job: PackJob) -> bytes:
    """The images as the model takes them: float32 [images, ...]."""
    report = ReadReport()
    preprocess = job.artifact.require_preprocess()
    tensors: list[npt.NDArray[np.float32]] = []
    for batch in batches(job.images, preprocess, BATCH, report):
        tensors.append(np.asarray(batch.inputs, np.float32))
    report.check(job.images.name, len(job.images))
    return npy(np.concatenate(tensors))


def _archive(job: PackJob) -> bytes:
    """The images as an archive of PNG files, with no time or user in it."""
    buffer = io.BytesIO()
    color = job.artifact.require_preprocess().color
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, pixels in enumerate(pixel_images(job)):
            data = png(pixels, color)
            member = tarfile.TarInfo(f"{number:04d}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _steps(option: str, name: str) -> list[Step]:
    """The steps of a tool, for the model `name`."""
    steps: list[Step] = []
    for step in STEPS[option]:
        steps.append(replace(step, commands=step.commands.replace("MODEL", name)))
    return steps
