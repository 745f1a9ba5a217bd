"""Layers with int16 activations: valid ONNX that all engines read alike, without added noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip(
    "sklearn", reason="the demo extra, with the digits, is not installed"
)

from tests.small_model import small

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import layers
from repzoo.quant.network.placement import PlacementSpace
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute, qdq_writer, scales
from repzoo.quant.parameters.compute import Corrections, QuantizationPlan

Images = npt.NDArray[np.float32]


def images(count: int = 32, size: int = 16) -> Images:
    return (
        np.random.default_rng(9)
        .standard_normal((count, 3, size, size))
        .astype(np.float32)
    )


def quantize(
    model: onnx.ModelProto, names: list[str], scheme: str = "rdk-x5"
) -> tuple[QuantizationPlan, onnx.ModelProto]:
    """(plan, QDQ model) of `model` with int16 activations for the layers `names`."""
    space = PlacementSpace(model)
    placement = space.starting_placements()[0]
    observed = list(layers.find_layers(model).values())
    stream = CalibrationStream([images()], 32)
    tensors = list(placement.tensors)
    statistics = collect_statistics(
        model, tensors, observed, stream, engine("onnxruntime"), 1
    )
    touched = set(space.placement("", names).tensors) & set(placement.tensors)
    placement = replace(placement, int16_tensors=frozenset(touched))
    plan = compute.compute_parameters(
        model, placement, statistics, load_scheme(scheme), Corrections(gptq=False)
    )
    return plan, compute.write_qdq(plan, placement, load_scheme(scheme))


def model() -> onnx.ModelProto:
    return qdq_writer.prepare_for_qdq(small().model)


@pytest.mark.parametrize("scheme", ["rdk-x5", "ort-cpu"])
def test_engines_agree_on_a_valid_model(scheme: str) -> None:
    _, quantized = quantize(model(), ["c"], scheme)
    onnx.checker.check_model(quantized, full_check=True)
    types = {item.name: item.data_type for item in quantized.graph.initializer}
    by_tensor = {
        node.input[0]: types[node.input[2]]
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear"
    }
    narrow = onnx.TensorProto.INT8 if scheme == "rdk-x5" else onnx.TensorProto.UINT8
    assert by_tensor == {
        "data": narrow,
        "b": onnx.TensorProto.INT16,
        "d": onnx.TensorProto.INT16,
        "flat": narrow,
    }
    exact = engine("onnxruntime").open(quantized, exact=True).run(images())
    reference = engine("reference").open(quantized, exact=True).run(images())
    optimized = engine("onnxruntime").open(quantized, exact=False).run(images())
    tolerance = 1e-3 * np.abs(reference).max()
    assert np.abs(exact - reference).max() < tolerance
    assert np.abs(optimized - reference).max() < tolerance


def test_openvino_agrees_with_the_reference() -> None:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    _, quantized = quantize(model(), ["c"])
    logits = engine("openvino").open(quantized, exact=True).run(images())
    reference = engine("reference").open(quantized, exact=True).run(images())
    assert np.abs(logits - reference).max() < 1e-2 * np.abs(reference).max()


def model_on_the_grid() -> onnx.ModelProto:
    """The small model with its weights rounded to INT8, so that only activations add noise."""
    rounded = model()
    for item in rounded.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.ndim > 1:
            weight = scales.quantize_weight(values, 0)
            scale = weight.scale.reshape(-1, *([1] * (values.ndim - 1)))
            restored = (weight.values * scale).astype(np.float32)
            item.CopyFrom(numpy_helper.from_array(restored, item.name))
    return rounded


def test_16_bit_activations_add_hardly_any_noise() -> None:
    floating = model_on_the_grid()
    runtime = engine("onnxruntime")
    expected = runtime.open(floating, exact=True).run(images())
    errors = []
    for names in ([], list(layers.find_layers(floating))):
        _, quantized = quantize(floating, names)
        logits = runtime.open(quantized, exact=True).run(images())
        errors.append(float(np.square(logits - expected).mean()))
    assert errors[1] < 1e-3 * errors[0]


def onnx_opset(model: onnx.ModelProto) -> int:
    versions = {item.domain: item.version for item in model.opset_import}
    return versions[""]


def test_only_graphs_with_16_bit_activations_are_converted_to_a_newer_opset() -> None:
    _, wide = quantize(model(), ["c"])
    _, narrow = quantize(model(), [])
    assert onnx_opset(wide) == qdq_writer.INT16_OPSET
    assert onnx_opset(narrow) == 17
    assert wide.ir_version >= qdq_writer.INT16_IR


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.0, 0.0), (-1e-30, 0.0), (0.0, 1e30)]
)
def test_the_16_bit_steps_cover_the_range(low: float, high: float) -> None:
    parameters = scales.int16_parameters(low, high)
    assert (parameters.zero_point, parameters.bits) == (0, 16)
    assert max(-low, high) <= parameters.scale * scales.INT16_MAX * (1 + 1e-6)
    assert np.isfinite(np.float32(parameters.scale))
    assert parameters.scale > 0
