"""Small configurations that are right, for tests that break one thing at a time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from repzoo.artifact import Artifact, Preprocess

IMAGENET = Preprocess(8, "short", 0.5)
TEXT = """<ir_version: 7, opset_import: ["" : 11]>
    g (float[1, 3, 8, 8] data) => (float[1, 2] output) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (data, w)
    [relu] b = Relu (a)
    [pool] c = GlobalAveragePool (b)
    [flat] d = Flatten (c)
    [last] output = Gemm (d, v) }"""


def parse(text: str, **weights: Any) -> onnx.ModelProto:
    """The graph with `weights` as initializers."""
    model = onnx.parser.parse_model(text)
    for name, values in weights.items():
        model.graph.initializer.append(
            numpy_helper.from_array(np.asarray(values, np.float32), name)
        )
    return model


def weights() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "w": random.standard_normal((4, 3, 3, 3)),
        "v": random.standard_normal((4, 2)),
    }


@functools.cache
def artifact(text: str = TEXT, preprocess: Preprocess = IMAGENET) -> Artifact:
    return Artifact(parse(text, **weights()), "net", preprocess, ("a", "b"))


X5 = """\
model_parameters:
  onnx_model: './net.onnx'
  march: 'bayes-e'
  layer_out_dump: False
  working_dir: 'out'
  output_model_file_prefix: 'net'
input_parameters:
  input_name: ''
  input_type_rt: 'nv12'
  input_type_train: 'rgb'
  input_layout_train: 'NCHW'
  input_shape: '1x3x8x8'
  norm_type: 'data_mean_and_scale'
  mean_value: '123.675 116.28 103.53'
  scale_value: '0.01712475 0.017507 0.01742919'
calibration_parameters:
  cal_data_dir: './calibration_data_rgb_f32'
  cal_data_type: 'float32'
  calibration_type: 'default'
compiler_parameters:
  compile_mode: 'latency'
  optimize_level: 'O3'
"""
VAMC = """\
name: net_int8
frontend:
  shape: {data: [1, 3, 8, 8]}
  type: onnx
  checkpoint: net.onnx
  dtype: fp32
backend:
  type: tvm_vacc
  dtype: int8
  quantize: {calibrate_mode: percentile, quantize_per_channel: True}
dataset:
  type: tvm
  path: /path/to/images
  sampler: {suffix: JPEG, get_data_num: 50}
  process_ops:
  - {type: DecodeImage}
  - {type: Resize, size: [16, 16]}
  - {type: CenterCrop, crop_size: [8, 8]}
  - {type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
  - {type: ToTensor}
workspace: {path: ./deploy_weights/}
"""
VDSP = """\
{"OpType": "FUSION_OP_RGB_RESIZE_CVTCOLOR_CROP_NORM_TENSOR",
 "OpConfig": {"IimageFormat": "RGB_PLANAR", "IimageWidth": 16, "IimageHeight": 16,
  "OimageWidth": 8, "OimageHeight": 8, "CropX": 4, "CropY": 4, "ResizeWidth": 16,
  "ResizeHeight": 16, "IimageWidthPitch": 16, "IimageHeightPitch": 16,
  "Mean": [0.485107421875, 0.4560546875, 0.406005859375],
  "Std": [0.22900390625, 0.2239990234375, 0.2249755859375],
  "NormaType": "DIV255_MINUSMEAN_DIVSTD", "ColorCvtCode": "NO_CHANGE",
  "ResizeType": "BILINEAR_CV"}}
"""
RKNN = """\
from rknn.api import RKNN
rknn = RKNN()
rknn.config(mean_values=[[255*0.485, 255*0.456, 255*0.406]],
            std_values=[[255*0.229, 255*0.224, 255*0.225]], target_platform='rk3588',
            quantized_algorithm='normal', quantized_method='channel')
rknn.load_onnx(model='net.onnx', inputs=['data'], input_size_list=[[1, 3, 8, 8]])
rknn.build(do_quantization=True, dataset='dataset.txt')
"""
SOPHGO = """\
#!/usr/bin/env bash
model_transform --model_name net --model_def net.onnx --input_shapes [[1,3,8,8]] \\
  --keep_aspect_ratio --resize_dims 16,16 --mean 123.675,116.28,103.53 \\
  --scale 0.01712475,0.017507,0.01742919 --pixel_format rgb --mlir net.mlir
run_calibration net.mlir --dataset images --input_num 100 -o net_cali_table
model_deploy --mlir net.mlir --quantize INT8 --calibration_table net_cali_table \\
  --processor bm1684x --model net.bmodel
"""
ALLS = """\
normalization1 = normalization([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
model_optimization_config(calibration, batch_size=8, calibset_size=64)
"""
HAILO = """\
base: [base/repvgg.yaml]
network: {network_name: net}
paths: {network_path: [net.onnx], alls_script: net.alls}
info: {input_shape: 8x8x3}
"""


def write_x5(folder: Path, text: str = X5, files: int = 20) -> Path:
    """A folder with a configuration, the model and random calibration images; the YAML."""
    folder.mkdir(exist_ok=True)
    artifact().save(folder / "net.onnx")
    images = folder / "calibration_data_rgb_f32"
    images.mkdir()
    random = np.random.default_rng(0)
    for number in range(files):
        pixels = random.integers(0, 256, (3, 8, 8)).astype(np.float32)
        (images / f"{number:03d}.rgb").write_bytes(pixels.tobytes())
    (folder / "net.yaml").write_text(text)
    return folder / "net.yaml"
