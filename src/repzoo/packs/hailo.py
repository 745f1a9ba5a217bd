"""The pack for Hailo's chips: what the dataflow compiler and the model zoo's `hailomz` need.

Normalization is a layer of the compiled model: (x - mean) / std of pixels 0..255, in the order of
the model's channels. The model script switches off what would move the weights off their values:
equalization, weights clipping, fine-tuning and 4-bit weights. Layers are called by the compiler's
own names, which count each kind in the order of the graph: conv1, conv2, dw1, fc1.
Source: hailo_model_zoo, cfg/{base,networks,alls/generic} and docs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from repzoo.artifact import Artifact
from repzoo.packs.limits import require_channels_first
from repzoo.packs.pack import PackFile, PackJob, pixel_images
from repzoo.packs.parts import (
    Step,
    fallback_nodes,
    file_name,
    npy,
    numbers,
    pixel_mean,
    pixel_std,
    quoted,
    shared_files,
    yaml_blocks,
)
from repzoo.quant.network.layers import find_layers

CALIBRATION = "calibration.npy"
BATCH = 8  # images at once while calibrating, as in the model zoo


class Hailo:
    """The target `hailo`."""

    name = "hailo"
    scheme = "hailo"

    def check(self, artifact: Artifact) -> None:
        """Refuse channels last, of which the public files of the model zoo have no example."""
        require_channels_first(
            artifact,
            "this pack tells Hailo's parser nothing of the layout of an ONNX input",
        )

    def files(self, job: PackJob) -> Iterator[PackFile]:
        """The model, configuration, model script, calibration set, steps, labels and READMEs."""
        artifact = job.artifact
        name = file_name(artifact.name)
        yield f"{name}.onnx", artifact.to_bytes()
        yield f"{name}.yaml", yaml_blocks(configuration(artifact))
        yield f"{name}.alls", script_text(job)
        images = [pixels.transpose(1, 2, 0) for pixels in pixel_images(job)]
        yield CALIBRATION, npy(np.stack(images))
        steps = _steps(artifact)
        yield from shared_files(job, "hailo", steps, calibration=CALIBRATION)


def configuration(artifact: Artifact) -> dict[str, object]:
    """The network's YAML of the model zoo."""
    preprocess = artifact.require_preprocess()
    height, width = preprocess.height, preprocess.width
    name = file_name(artifact.name)
    mean, std = pixel_mean(preprocess), pixel_std(preprocess)
    return {
        "base": ["base/imagenet.yaml"],
        "network": {"network_name": name},
        "paths": {"network_path": [f"{name}.onnx"], "alls_script": f"{name}.alls"},
        "parser": {
            "nodes": [None, None],
            "normalization_params": {
                "normalize_in_net": True,
                "mean_list": mean,
                "std_list": std,
            },
        },
        "preprocessing": {
            "network_type": "classification",
            "meta_arch": None,
            "input_shape": [height, width, len(mean)],
        },
        "quantization": {"calib_set_name": "imagenet"},
        "evaluation": {"classes": artifact.num_classes, "labels_offset": 0},
        "postprocessing": {"device_pre_post_layers": {"softmax": False}},
        "info": {
            "task": "classification",
            "input_shape": f"{height}x{width}x{len(mean)}",
            "output_shape": str(artifact.num_classes),
            "framework": "pytorch",
        },
    }


def script_text(job: PackJob) -> str:
    """The model script: normalization, and how the compiler quantizes."""
    preprocess = job.artifact.require_preprocess()
    mean = numbers(pixel_mean(preprocess), ", ")
    std = numbers(pixel_std(preprocess), ", ")
    lines = [
        f"normalization1 = normalization([{mean}], [{std}])",
        "model_optimization_flavor(optimization_level=1, compression_level=0)",
        f"model_optimization_config(calibration, batch_size={BATCH}, "
        f"calibset_size={len(job.images)})",
        "pre_quantization_optimization(equalization, policy=disabled)",
        "pre_quantization_optimization(weights_clipping, layers={*}, mode=disabled)",
        "pre_quantization_optimization(activation_clipping, layers={*}, mode=percentile, "
        "clipping_values=[0.01, 99.99], recollect_stats=True)",
        "post_quantization_optimization(finetune, policy=disabled)",
        "post_quantization_optimization(bias_correction, policy=enabled)",
    ]
    names = layer_names(job)
    if names:
        listed = ", ".join(names)
        lines.append(f"quantization_param([{listed}], precision_mode=a16_w16)")
    return "\n".join(lines) + "\n"


def layer_names(job: PackJob) -> list[str]:
    """The compiler's names of the layers that stay out of INT8: a kind and a number."""
    fallback = {node.output[0] for node in fallback_nodes(job)}
    numbers: Counter[str] = Counter()
    names: list[str] = []
    for output, layer in find_layers(job.artifact.model).items():
        kind = "fc" if layer.op == "Gemm" else "conv"
        if layer.groups > 1 and layer.groups == layer.out_channels:
            kind = "dw"
        numbers[kind] += 1
        if output in fallback:
            names.append(f"{kind}{numbers[kind]}")
    return names


def _steps(artifact: Artifact) -> list[Step]:
    name = file_name(artifact.name)
    arch = '--hw-arch "${HW_ARCH:-hailo8}"'
    network = quoted("--net-name", name)
    return [
        Step(
            "parse",
            "Read the ONNX file; shows operators that the compiler lacks",
            "读取 ONNX 文件；会显示编译器不支持的算子",
            f"hailo parser onnx {name}.onnx {arch} {network} --har-path {name}.har -y",
        ),
        Step(
            "quantize",
            "Quantize on the calibration set, by the model script",
            "按模型脚本在校准集上量化",
            f"hailo optimize {name}.har {arch} --model-script {name}.alls "
            f"--calib-set-path {CALIBRATION} --output-har-path {name}_quantized.har",
        ),
        Step(
            "build",
            "Compile to a .hef",
            "编译为 .hef",
            f"hailo compiler {name}_quantized.har {arch} --output-dir .",
        ),
        Step(
            "estimate",
            "The compiler's report: accuracy of each layer, expected frame rate",
            "编译器报告：各层精度和预计帧率",
            f"hailo profiler {name}_quantized.har",
        ),
        Step(
            "perf_on_board",
            "On the board: frame rate and latency",
            "在板端运行：帧率和延迟",
            "hailortcli benchmark ./*.hef",
        ),
    ]
