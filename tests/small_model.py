"""A small digits classifier that needs no training: random features, nearest class mean."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import Dataset, DataSource, QuantizationSplit
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.protobuf_stream import clone

SMALL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 16, 16] data) => (float[N, 10] output) {
    a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (data, first)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, second)
    d = Relu (c)
    flat = Flatten (d)
    output = Gemm <transB = 1> (flat, means, lengths) }"""


@functools.cache
def small() -> Artifact:
    """Top-1 of about 90 % on digits at 16 px."""
    preprocess = Preprocess(
        16, "squash", 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "RGB"
    )
    random = np.random.default_rng(0)
    tensors = {
        "first": random.standard_normal((12, 3, 3, 3)) / 3,
        "second": random.standard_normal((16, 12, 3, 3)) / 6,
    }
    source = open_source("digits")
    data = source.join("train").subset(range(0, len(source.join("train")), 2))
    body = onnx.parser.parse_model(SMALL)
    add(body, {**tensors, "means": np.zeros((10, 256)), "lengths": np.zeros(10)})
    del body.graph.output[:]
    body.graph.output.append(
        onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, None)
    )
    session = engine("onnxruntime").open(body)
    loaded = list(batches(data, preprocess, 64, ReadReport()))
    features = np.concatenate([session.run(batch.inputs) for batch in loaded])
    targets = np.array(
        [data.targets[index] for batch in loaded for index in batch.indices]
    )
    means = np.stack([features[targets == digit].mean(0) for digit in range(10)])
    model = onnx.parser.parse_model(SMALL)
    add(model, {**tensors, "means": means, "lengths": -(means**2).sum(1) / 2})
    step = Step("build", "0", {})
    return Artifact(
        model,
        "small",
        preprocess,
        tuple(map(str, range(10))),
        (step, replace(step, verb="fold")),
    )


@functools.cache
def small_training_form() -> Artifact:
    """`small()` with a BatchNormalization after its first convolution."""
    model = clone(small().model)
    random = np.random.default_rng(1)
    parameters = {
        "gamma": random.uniform(0.8, 1.2, 12),
        "beta": random.normal(0, 0.05, 12),
        "mean": random.normal(0, 0.05, 12),
        "variance": random.uniform(0.8, 1.2, 12),
    }
    add(model, parameters)
    norm = onnx.helper.make_node("BatchNormalization", ["a", *parameters], ["normal"])
    model.graph.node.insert(1, norm)
    relu = model.graph.node[2]
    assert relu.op_type == "Relu"
    relu.input[0] = "normal"
    onnx.checker.check_model(model, full_check=True)
    return replace(small(), model=model, steps=small().steps[:1])


@functools.cache
def sets() -> QuantizationSplit:
    """A few digits each for calibration, selection and the gate."""
    split = open_source("digits").split_for_quantization(64, 0)
    return QuantizationSplit(
        split.calibration,
        split.selection.subset(range(0, 256, 4)),
        split.gate.subset(range(0, len(split.gate), 4)),
    )


@functools.cache
def few_digits() -> DataSource:
    """The digits with a few images in each part, for the public functions."""
    source = open_source("digits")
    parts: dict[str, Dataset] = {}
    for name, images in source.parts.items():
        parts[name] = images.subset(images.balanced_sample(160, 0))
    return replace(source, name="few digits", parts=parts)


def add(model: onnx.ModelProto, tensors: dict[str, npt.NDArray[Any]]) -> None:
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in tensors.items()
    )
