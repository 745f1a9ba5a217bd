"""Named layers in int16: valid ONNX that ONNX Runtime and onnx's evaluator read alike, and whose activations add no noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("sklearn", reason="the demo extra, with the digits, is not installed")

from tests.quant.conftest import small

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import layers
from repzoo.quant.network import placement as place
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute as plan
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import scales
from repzoo.quant.parameters.compute import Corrections, QuantizationPlan

Images = npt.NDArray[np.float32]


def images(count: int = 32, size: int = 16) -> Images:
    return np.random.default_rng(9).standard_normal((count, 3, size, size)).astype(np.float32)


def planned(
    model: onnx.ModelProto, names: list[str], name: str = "rdk"
) -> tuple[QuantizationPlan, onnx.ModelProto]:
    """The model with the layers `names` in int16; all its weights are representable, so that activations alone err."""
    placed, reads = place.candidates(model)[0], list(layers.find_layers(model).values())
    seen = collect_statistics(
        model,
        list(placed.tensors),
        reads,
        CalibrationStream([images()], 32),
        engine("onnxruntime"),
        1,
    )
    touched = place.placement(model, "", names).tensors
    placed = replace(placed, int16_tensors=frozenset(touched) & {*placed.tensors})
    made = plan.compute_parameters(model, placed, seen, load_scheme(name), Corrections(gptq=False))
    return made, plan.write_qdq(made, placed, load_scheme(name))


def model() -> onnx.ModelProto:
    return qdq.prepare_for_qdq(small().model)


@pytest.mark.parametrize("name", ["rdk", "ort-cpu"])
def test_engines_agree_on_a_valid_model(name: str) -> None:
    _, made = planned(model(), ["c"], name)
    onnx.checker.check_model(made, full_check=True)
    kinds = {item.name: item.data_type for item in made.graph.initializer}
    by_tensor = {
        node.input[0]: kinds[node.input[2]]
        for node in made.graph.node
        if node.op_type == "QuantizeLinear"
    }
    kind = onnx.TensorProto.INT8 if name == "rdk" else onnx.TensorProto.UINT8
    assert by_tensor == {
        "data": kind,
        "b": onnx.TensorProto.INT16,
        "d": onnx.TensorProto.INT16,
        "flat": kind,
    }
    ours, reference, optimized = (
        engine(name).open(made, exact=exact).run(images())
        for name, exact in (("onnxruntime", True), ("reference", True), ("onnxruntime", False))
    )
    step = 1e-3 * np.abs(reference).max()
    assert np.abs(ours - reference).max() < step
    assert np.abs(optimized - reference).max() < step


def test_openvino_reads_it_alike() -> None:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    _, made = planned(model(), ["c"])
    found = [
        engine(name).open(made, exact=True).run(images()) for name in ("openvino", "reference")
    ]
    assert np.abs(found[0] - found[1]).max() < 1e-2 * np.abs(found[1]).max()


def test_activations_of_16_bits_add_no_noise() -> None:
    """With every layer wide, what is left is the weights' rounding: by far less than 8 bits' of a model of representable weights."""
    representable, expected = model(), None
    for item in representable.graph.initializer:
        if numpy_helper.to_array(item).ndim > 1:
            made = scales.quantize_weight(numpy_helper.to_array(item), 0)
            shaped = made.scale.reshape(-1, *([1] * (made.values.ndim - 1)))
            item.CopyFrom(
                numpy_helper.from_array((made.values * shaped).astype(np.float32), item.name)
            )
    expected = engine("onnxruntime").open(representable, exact=True).run(images())
    errors = []
    for names in ([], list(layers.find_layers(representable))):
        _, quantized = planned(representable, names)
        errors.append(
            float(
                np.square(
                    engine("onnxruntime").open(quantized, exact=True).run(images()) - expected
                ).mean()
            )
        )
    assert errors[1] < 1e-3 * errors[0]


def test_older_graphs_are_converted_and_8_bits_are_left_where_they_are() -> None:
    _, wide = planned(model(), ["c"])
    _, narrow = planned(model(), [])
    opsets = [
        next(item.version for item in one.opset_import if not item.domain) for one in (wide, narrow)
    ]
    assert opsets == [qdq.INT16_OPSET, 17]
    assert wide.ir_version >= qdq.INT16_IR


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 0.0), (-1e-30, 0.0), (0.0, 1e30)])
def test_the_steps_cover_the_range(low: float, high: float) -> None:
    made = scales.int16_parameters(low, high)
    assert (made.zero_point, made.bits) == (0, 16)
    assert max(-low, high) <= made.scale * scales.INT16_MAX * (1 + 1e-6)
    assert np.isfinite(np.float32(made.scale))
    assert made.scale > 0
