"""The graphs that engines run after their own fusions, as counts of operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs in a model."""
    return Counter(node.op_type for node in model.graph.node)


def by_onnxruntime(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "executed.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options)
    return operators(onnx.load(folder / "executed.onnx"))


def by_openvino(model: onnx.ModelProto) -> Counter[str]:
    """The kinds of kernels that OpenVINO runs; skips the test where it is not installed."""
    openvino: Any = pytest.importorskip("openvino")
    core = openvino.Core()
    graph = core.read_model(model.SerializeToString(), b"")
    compiled = core.compile_model(graph, "CPU")
    executed: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        layer = node.get_rt_info()["layerType"]
        executed[str(layer.value if hasattr(layer, "value") else layer)] += 1
    return executed
