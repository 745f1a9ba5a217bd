"""A small digits classifier that needs no training: random features, nearest class mean."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.artifact import Artifact, Preprocess, Step
from repzoo.data.batches import ReadReport, batches
from repzoo.data.dataset import QuantizationSplit
from repzoo.data.source import open_source
from repzoo.engines import engine
from repzoo.quant.search import gate

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
def sets() -> QuantizationSplit:
    """A few digits each for calibration, selection and the gate."""
    split = open_source("digits").split_for_quantization(64, 0)
    return QuantizationSplit(
        split.calibration,
        split.selection.subset(range(0, 256, 4)),
        split.gate.subset(range(0, len(split.gate), 4)),
    )


def add(model: onnx.ModelProto, tensors: dict[str, npt.NDArray[Any]]) -> None:
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in tensors.items()
    )


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmark briefly: no assertion here depends on timing."""
    monkeypatch.setattr(gate, "BENCH_SECONDS", 0.02)


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    pytest.importorskip(
        "sklearn", reason="the demo extra, with the digits, is not installed"
    )
    path = tmp_path / "small.onnx"
    path.write_bytes(small().to_bytes())
    return path
