"""The QDQ graph is valid, close to the float model, and the same on two engines.

Mutants of the written graph must fail the check of half a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.quant.placements import candidates
from tests.tolerance import relative

from repzoo.engines import engine
from repzoo.errors import InputError, MissingExtra
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network.placement import Placement
from repzoo.quant.network.scheme import WEIGHT_MAX, QuantScheme, load_scheme
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import ranges, scales

Array = npt.NDArray[np.float32]
UNSIGNED = load_scheme("ort-cpu")
SIGNED = replace(UNSIGNED, signed_activations=True)
LAYERS = ("stem", "wise", "grouped", "again", "twice", "hidden", "output")

NET = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 12, 12] data) => (float[N, 6] output)
    {
        stem = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (data, w0, b0)
        live = Relu (stem)
        wise = Conv <group = 8, pads = [1, 1, 1, 1]> (live, w1)
        grouped = Conv <group = 2> (wise, w2, b0)
        again = Conv (grouped, w3, b0)
        twice = Conv (again, w3)
        sum = Add (twice, live)
        relu = Relu (sum)
        pooled = GlobalAveragePool (relu)
        flat = Flatten (pooled)
        hidden = Gemm <transB = 1> (flat, w4, row)
        output = Gemm <transB = 0> (hidden, w5, b5)
    }"""
SHAPES = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "w2": (8, 4, 1, 1), "w3": (8, 8, 1, 1),
    "w4": (7, 8), "row": (1, 7), "w5": (7, 6), "b5": (6,),
}  # fmt: skip


def net(text: str = NET, opset: int = 17) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    model = onnx.parser.parse_model(text.replace('"" : 17', f'"" : {opset}'))
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in SHAPES.items():
        if name in read:
            fan_in = int(np.prod(shape[1:])) or 1
            gain = rng.uniform(
                0.3, 2.0, (shape[0], *[1] * (len(shape) - 1))
            )  # channels of unlike size, as folding leaves them
            values = gain * rng.standard_normal(shape) * np.sqrt(2 / fan_in)
            model.graph.initializer.append(
                numpy_helper.from_array(values.astype(np.float32), name)
            )
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int, seed: int = 0) -> Array:
    return (
        np.random.default_rng(seed)
        .standard_normal((count, 3, 12, 12))
        .astype(np.float32)
    )


def run(model: onnx.ModelProto, inputs: Array, name: str = "onnxruntime") -> Array:
    return engine(name).open(model, exact=True).run(inputs)


def parameters(
    model: onnx.ModelProto, placement: Placement, scheme: QuantScheme = UNSIGNED
) -> dict[str, scales.ActivationParameters]:
    seen = collect_statistics(
        model,
        list(placement.tensors),
        [],
        CalibrationStream([images(64)], 64),
        engine("onnxruntime"),
        1,
    ).histograms
    return {
        name: scales.parameters_of(*ranges.minmax(seen[name]), scheme)
        for name in placement.tensors
    }


def quantize(
    model: onnx.ModelProto, per_channel: bool = True, index: int = 0
) -> onnx.ModelProto:
    placement = candidates(model)[index]
    return qdq.insert_qdq(model, placement, parameters(model, placement), per_channel)


def error(model: onnx.ModelProto, result: onnx.ModelProto) -> float:
    """Root mean square of the logits' change over their spread."""
    inputs = images(64, seed=9)
    expected = run(model, inputs)
    return float(
        np.sqrt(np.mean((run(result, inputs) - expected) ** 2)) / np.std(expected)
    )


# Of the standard deviation of the logits, through seven quantized layers. Measured: 0.025 per
# channel and 0.033 per tensor.
NEAR = 0.05


@pytest.mark.parametrize("opset", range(13, 21))
def test_the_written_graph_is_valid_at_every_opset(opset: int) -> None:
    result = quantize(net(opset=opset))
    onnx.checker.check_model(result, full_check=True)
    assert result.opset_import[0].version == opset


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_logits_are_close_to_float_on_two_engines(per_channel: bool) -> None:
    model = net()
    result = quantize(model, per_channel)
    assert error(model, result) < NEAR
    inputs = images(32, seed=3)
    onnxruntime_output, reference_output = (
        run(result, inputs),
        run(result, inputs, "reference"),
    )
    assert np.mean(onnxruntime_output.argmax(1) == reference_output.argmax(1)) >= 0.95
    assert np.abs(onnxruntime_output - reference_output).max() < NEAR * np.std(
        reference_output
    )


@pytest.mark.parametrize("index", [0, 1])
def test_every_starting_placement_runs_with_graph_optimizations(index: int) -> None:
    """The engine fuses it to integer kernels, which refuse a wrong type or axis."""
    model = net()
    result = quantize(model, index=index)
    inputs = images(32)
    fast = engine("onnxruntime").open(result).run(inputs)
    assert np.sqrt(np.mean((fast - run(model, inputs)) ** 2)) < NEAR * np.std(fast)


def stored_weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def producer_nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_int8_and_biases_int32_with_the_product_of_the_scales(
    per_channel: bool,
) -> None:
    model = net()
    result = quantize(model, per_channel)
    constants, before, maker = (
        stored_weights(result),
        stored_weights(model),
        producer_nodes(result),
    )
    floats = {node.output[0]: node for node in model.graph.node}
    layers = [node for node in result.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 7
    for node in layers:
        input_node, weight = maker[node.input[0]], maker[node.input[1]]
        assert (input_node.op_type, weight.op_type) == (
            "DequantizeLinear",
            "DequantizeLinear",
        )
        values, scale, zero = (constants[name] for name in weight.input)
        assert values.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert (scale.ndim == 1) == per_channel
        original = floats[node.output[0]]
        assert values.shape == before[original.input[1]].shape
        if len(node.input) > 2:
            bias, bias_scale, _ = (
                constants[name] for name in maker[node.input[2]].input
            )
            assert bias.dtype == np.int32
            assert np.abs(bias.astype(np.int64)).max() <= 2**30
            np.testing.assert_array_equal(
                bias_scale, constants[input_node.input[1]] * scale
            )
            restored = bias * bias_scale.astype(np.float64)
            assert (
                np.abs(restored - before[original.input[2]].reshape(-1))
                <= bias_scale * 0.51
            ).all()


def test_float_weights_of_quantized_layers_are_removed() -> None:
    result = quantize(net())
    large = [
        name
        for name, values in stored_weights(result).items()
        if values.dtype == np.float32 and values.ndim > 1
    ]
    assert large == []
    read = {name for node in result.graph.node for name in node.input}
    assert set(stored_weights(result)) <= read


def test_a_float_layer_keeps_its_shared_weight() -> None:
    model = net()
    placement = Placement("first use only", frozenset({"again"}), ("grouped", "again"))
    result = qdq.insert_qdq(
        model, placement, parameters(model, placement), per_channel=True
    )
    assert "w3" in stored_weights(result)
    assert error(model, result) < NEAR


def test_new_names_do_not_clash_with_names_in_the_graph() -> None:
    """The graph has tensors with the names that the writer would give."""
    text = (
        NET.replace("pooled", "live_scale")
        .replace("flat", "live_quantized")
        .replace("hidden", "data_dequantized")
    )
    model = net(text)
    result = quantize(model)
    written = [name for node in result.graph.node for name in node.output]
    written += [item.name for item in result.graph.initializer] + [
        item.name for item in result.graph.input
    ]
    assert len(written) == len(set(written))
    onnx.checker.check_model(result, full_check=True)
    assert error(model, result) < NEAR


def test_an_empty_placement_leaves_the_graph_unchanged() -> None:
    model = net()
    result = qdq.insert_qdq(
        model, Placement("nothing", frozenset(), ()), {}, per_channel=True
    )
    assert result.graph.node == model.graph.node
    assert stored_weights(result).keys() == stored_weights(model).keys()


def test_writing_does_not_modify_the_input_model() -> None:
    model = net()
    before = model.SerializeToString(deterministic=True)
    quantize(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_rounded_in_advance_give_the_same_file(
    per_channel: bool,
) -> None:
    model = net()
    largest, *smaller = candidates(model)
    activations = parameters(model, largest)
    rounded = qdq.round_weights(model, largest.nodes, activations, per_channel)
    assert (
        rounded.keys()
        == {
            node.output[0]
            for node in model.graph.node
            if node.op_type in ("Conv", "Gemm")
        }
        & largest.nodes
    )
    for placement in (largest, *smaller):
        assert qdq.insert_qdq(
            model, placement, activations, per_channel, rounded
        ) == qdq.insert_qdq(model, placement, activations, per_channel)


def test_an_older_opset_is_converted_and_a_newer_one_is_kept() -> None:
    old = net(opset=11)
    result = qdq.prepare_for_qdq(old)
    assert result.opset_import[0].version == qdq.MIN_OPSET
    assert error(old, result) < 1e-6
    assert error(old, quantize(result)) < NEAR
    assert qdq.prepare_for_qdq(net(opset=17)).opset_import[0].version == 17


def test_a_prepared_model_is_not_copied() -> None:
    model = net(opset=17)
    assert qdq.prepare_for_qdq(model) is model
    model.ir_version = 3
    assert qdq.prepare_for_qdq(model).ir_version > model.ir_version == 3


def test_weights_among_the_inputs_and_in_constant_nodes_become_initializers() -> None:
    """Weights listed among the inputs (before IR 4), and weights in Constant nodes."""
    model = net(opset=11)
    model.ir_version = 3
    listed = [
        onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        for item in model.graph.initializer
    ]
    model.graph.input.extend(listed)
    weight = next(item for item in model.graph.initializer if item.name == "w0")
    model.graph.node.insert(
        0, onnx.helper.make_node("Constant", [], ["w0"], value=weight)
    )
    for field in (model.graph.initializer, model.graph.input):
        field.remove(next(item for item in field if item.name == "w0"))  # type: ignore[arg-type]
    result = qdq.prepare_for_qdq(model)
    assert [item.name for item in result.graph.input] == ["data"]
    assert "w0" in stored_weights(result)
    onnx.checker.check_model(result, full_check=True)
    written = quantize(result)
    onnx.checker.check_model(written, full_check=True)
    assert [item.name for item in written.graph.input] == ["data"]
    assert error(net(), written) < NEAR


def test_a_gemm_with_alpha_is_refused_by_name() -> None:
    scaled = net(NET.replace("<transB = 0>", "<alpha = 0.5>"))
    placement = Placement("forced", frozenset({"output"}), ("hidden",))
    with pytest.raises(InputError, match=r"output: a Gemm with alpha"):
        qdq.insert_qdq(
            scaled, placement, parameters(scaled, placement), per_channel=True
        )


def test_channels_of_zeros_stay_finite_and_accurate() -> None:
    model = net()
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item).copy()
        if item.name in ("w0", "b0"):
            values[:3] = 0
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    result = quantize(model)
    assert all(np.isfinite(values).all() for values in stored_weights(result).values())
    assert error(model, result) < NEAR


def max_error_in_steps(model: onnx.ModelProto, result: onnx.ModelProto) -> float:
    """Error of the dequantized values, in steps of the true scale; rounding alone gives up to 0.5.

    The largest error of weights and biases, and the mean one of activations, some of which clip.
    """
    before = stored_weights(model)
    producers = producer_nodes(result)
    originals: dict[
        str, str
    ] = {}  # of each dequantized tensor, the name of the float one
    for node in model.graph.node:
        originals.update(zip(producers[node.output[0]].input, node.input, strict=True))
    originals = {
        name: original for name, original in originals.items() if name != original
    }
    activations = [name for name in originals.values() if name not in before]
    values = probe(result, [*originals, *activations])
    float_parameters = parameters(model, candidates(model)[0])
    errors = []
    for name, original in originals.items():
        if original in float_parameters:
            difference = np.abs(values[name] - values[original])
            errors.append(difference.mean() / float_parameters[original].scale)
            continue
        expected = before[original]
        if expected.ndim > 1 and expected.shape[0] > 1:
            transposed = original == "w5"  # the weight of the Gemm with transB = 0
            rows = (expected.T if transposed else expected).reshape(
                expected.shape[transposed], -1
            )
            restored = (values[name].T if transposed else values[name]).reshape(
                rows.shape
            )
            scale = np.abs(rows).max(1) / 127
            errors.append((np.abs(restored - rows).max(1) / scale).max())
        else:
            difference = np.abs(values[name] - expected.reshape(-1))
            errors.append(difference.max() / np.abs(expected).max())
    return float(max(errors))


def probe(model: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    """The named tensors of `model` on the calibration images."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    outputs = [name for name in dict.fromkeys(names) if name != "data"]
    probed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in outputs
    )
    values = engine("onnxruntime").open(probed, exact=True).run_all(images(64))
    return {"data": images(64), **dict(zip(outputs, values, strict=True))}


def test_every_dequantized_value_is_within_half_a_step() -> None:
    model = net()
    assert max_error_in_steps(model, quantize(model)) <= 0.501


def _constant(
    ends: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Callable[[onnx.ModelProto], None]:
    def mutate(result: onnx.ModelProto) -> None:
        hits = [item for item in result.graph.initializer if item.name.endswith(ends)]
        assert len(hits) == 1
        hits[0].CopyFrom(
            numpy_helper.from_array(
                change(numpy_helper.to_array(hits[0])), hits[0].name
            )
        )

    return mutate


def _dequantize_with_other(
    what: int, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Callable[[onnx.ModelProto], None]:
    """Give the DequantizeLinear behind `relu` a scale (1) or zero point (2) of its own."""

    def mutate(result: onnx.ModelProto) -> None:
        node = producer_nodes(result)["relu_dequantized"]
        values = change(stored_weights(result)[node.input[what]])
        result.graph.initializer.append(numpy_helper.from_array(values, "other"))
        node.input[what] = "other"

    return mutate


def _wrong_axis(result: onnx.ModelProto) -> None:
    node = producer_nodes(result)["again:w3_dequantized"]
    next(item for item in node.attribute if item.name == "axis").i = 1


def _bias_without_input_scale(result: onnx.ModelProto) -> None:
    constants, maker = stored_weights(result), producer_nodes(result)
    node = producer_nodes(result)["stem"]
    item = next(
        placement
        for placement in result.graph.initializer
        if placement.name == maker[node.input[2]].input[1]
    )
    item.CopyFrom(
        numpy_helper.from_array(constants[maker[node.input[1]].input[1]], item.name)
    )


MUTANTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "activation restored with a zero point off by one": _dequantize_with_other(
        2, lambda zero: (zero + 1).astype(np.uint8)
    ),
    "activation restored with another scale": _dequantize_with_other(
        1, lambda scale: scale * np.float32(1.1)
    ),
    "activation scale too small": _constant(
        "relu_scale", lambda scale: scale * np.float32(0.2)
    ),
    "weight zero point off by one": _constant(
        "again:w3_zero_point", lambda zero: (zero + 1).astype(np.int8)
    ),
    "weight scales in the wrong order": _constant(
        "again:w3_scale", lambda scale: scale[::-1].copy()
    ),
    "weight axis wrong": _wrong_axis,
    "weight cut instead of rounded": _constant(
        "again:w3_quantized", lambda values: (values - 1).clip(-127).astype(np.int8)
    ),
    "bias scale without the input's": _bias_without_input_scale,
    "bias twice as large": _constant(
        "stem:b0_quantized", lambda values: (values * 2).astype(np.int32)
    ),
}


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_every_mutant_exceeds_half_a_step(name: str) -> None:
    model = net()
    result = quantize(model)
    MUTANTS[name](result)
    assert max_error_in_steps(model, result) > 0.55


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_and_uint8_activations_give_the_same_logits(per_channel: bool) -> None:
    model = net()
    placement = candidates(model)[0]
    signed = {}
    for name, item in parameters(model, placement).items():
        signed[name] = replace(item, signed=True)
    result = qdq.insert_qdq(model, placement, signed, per_channel)
    onnx.checker.check_model(result, full_check=True)
    assert stored_weights(result)["data_zero_point"].dtype == np.int8
    np.testing.assert_array_equal(
        run(result, images(16)), run(quantize(model, per_channel), images(16))
    )


@pytest.mark.parametrize("engine_name", ["reference", "onnxruntime", "openvino"])
def test_without_zero_points_each_activation_has_the_type_of_its_sign(
    engine_name: str,
) -> None:
    """uint8 of the same ranges gives the same logits; the file has no zero point but 0."""
    try:
        runner = engine(engine_name)
    except MissingExtra as error:
        pytest.skip(str(error))
    model = net()
    placement = candidates(model)[0]
    chosen = parameters(model, placement, SIGNED)
    layers = [name for name in placement.nodes if name in LAYERS]
    weights = qdq.round_weights(model, layers, chosen, True, WEIGHT_MAX[7])
    result = qdq.insert_qdq(model, placement, chosen, True, weights)
    onnx.checker.check_model(result, full_check=True)
    stored = stored_weights(result)
    points = [stored[f"{name}_zero_point"] for name in placement.tensors]
    assert {str(point.dtype) for point in points} == {"int8", "uint8"}
    assert not any(point.any() for point in points)
    unsigned = {name: replace(item, signed=False) for name, item in chosen.items()}
    plain = qdq.insert_qdq(model, placement, unsigned, True, weights)
    expected = run(plain, images(16), "reference")
    outputs = runner.open(result).run(images(16))
    # A value on the border between two steps may fall either way.
    limit = relative(runner, 0.02) * np.ptp(expected)
    assert np.abs(outputs - expected).max() <= limit
