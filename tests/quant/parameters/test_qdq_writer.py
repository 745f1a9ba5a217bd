"""The written Q/DQ graph: valid, run by two engines alike, near the float one; and mutants of the writer that must be caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network.placement import Placement, candidates
from repzoo.quant.parameters import qdq_writer as qdq
from repzoo.quant.parameters import ranges, scales

Array = npt.NDArray[np.float32]

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
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)


def run(model: onnx.ModelProto, inputs: Array, name: str = "onnxruntime") -> Array:
    return engine(name).open(model, exact=True).run(inputs)


def parameters(model: onnx.ModelProto, one: Placement) -> dict[str, scales.ActivationParameters]:
    seen = collect_statistics(
        model, list(one.tensors), [], CalibrationStream([images(64)], 64), engine("onnxruntime"), 1
    ).histograms
    return {name: scales.uint8_parameters(*ranges.minmax(seen[name])) for name in one.tensors}


def quantized(model: onnx.ModelProto, per_channel: bool = True, index: int = 0) -> onnx.ModelProto:
    one = candidates(model)[index]
    return qdq.insert_qdq(model, one, parameters(model, one), per_channel)


def error(model: onnx.ModelProto, made: onnx.ModelProto) -> float:
    """Root mean square of the logits' change over their spread."""
    inputs = images(64, seed=9)
    expected = run(model, inputs)
    return float(np.sqrt(np.mean((run(made, inputs) - expected) ** 2)) / np.std(expected))


NEAR = 0.05  # of the spread of the logits, through seven quantized layers; measured 0.025 and, per tensor, 0.033


@pytest.mark.parametrize("opset", range(13, 21))
def test_the_written_graph_is_valid_at_every_opset(opset: int) -> None:
    made = quantized(net(opset=opset))
    onnx.checker.check_model(made, full_check=True)
    assert made.opset_import[0].version == opset


@pytest.mark.parametrize("per_channel", [True, False])
def test_it_is_near_the_float_model_and_two_engines_agree(per_channel: bool) -> None:
    model = net()
    made = quantized(model, per_channel)
    assert error(model, made) < NEAR
    inputs = images(32, seed=3)
    ours, theirs = run(made, inputs), run(made, inputs, "reference")
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.95
    assert np.abs(ours - theirs).max() < NEAR * np.std(theirs)


@pytest.mark.parametrize("index", [0, 1])
def test_every_candidate_runs_with_optimizations_on(index: int) -> None:
    """Fused to integer kernels, where a wrong type or axis would be refused or give other numbers."""
    model = net()
    made = quantized(model, index=index)
    inputs = images(32)
    fast = engine("onnxruntime").open(made).run(inputs)
    assert np.sqrt(np.mean((fast - run(model, inputs)) ** 2)) < NEAR * np.std(fast)


def stored(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_int8_and_biases_int32_at_the_product_of_the_scales(per_channel: bool) -> None:
    model = net()
    made = quantized(model, per_channel)
    constants, before, maker = stored(made), stored(model), makers(made)
    floats = {node.output[0]: node for node in model.graph.node}
    heavy = [node for node in made.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(heavy) == 7
    for node in heavy:
        feed, weight = maker[node.input[0]], maker[node.input[1]]
        assert (feed.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        values, scale, zero = (constants[name] for name in weight.input)
        assert values.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert (scale.ndim == 1) == per_channel
        original = floats[node.output[0]]
        assert values.shape == before[original.input[1]].shape
        if len(node.input) > 2:
            bias, bias_scale, _ = (constants[name] for name in maker[node.input[2]].input)
            assert bias.dtype == np.int32
            assert np.abs(bias.astype(np.int64)).max() <= 2**30
            np.testing.assert_array_equal(bias_scale, constants[feed.input[1]] * scale)
            restored = bias * bias_scale.astype(np.float64)
            assert (
                np.abs(restored - before[original.input[2]].reshape(-1)) <= bias_scale * 0.51
            ).all()


def test_no_float_weight_of_a_quantized_layer_is_left() -> None:
    made = quantized(net())
    large = [
        name
        for name, values in stored(made).items()
        if values.dtype == np.float32 and values.ndim > 1
    ]
    assert large == []
    read = {name for node in made.graph.node for name in node.input}
    assert set(stored(made)) <= read


def test_a_float_layer_keeps_its_shared_weight() -> None:
    model = net()
    one = Placement("first use only", frozenset({"again"}), ("grouped", "again"))
    made = qdq.insert_qdq(model, one, parameters(model, one), per_channel=True)
    assert "w3" in stored(made)
    assert error(model, made) < NEAR


def test_every_name_is_unique_even_where_the_graph_uses_them_already() -> None:
    """Tensors called like the writer's own, which the writer must not take again."""
    text = (
        NET.replace("pooled", "live_scale")
        .replace("flat", "live_quantized")
        .replace("hidden", "data_dequantized")
    )
    model = net(text)
    made = quantized(model)
    written = [name for node in made.graph.node for name in node.output]
    written += [item.name for item in made.graph.initializer] + [
        item.name for item in made.graph.input
    ]
    assert len(written) == len(set(written))
    onnx.checker.check_model(made, full_check=True)
    assert error(model, made) < NEAR


def test_a_placement_of_nothing_leaves_the_graph_as_it_is() -> None:
    model = net()
    made = qdq.insert_qdq(model, Placement("nothing", frozenset(), ()), {}, per_channel=True)
    assert made.graph.node == model.graph.node
    assert stored(made).keys() == stored(model).keys()


def test_writing_leaves_its_input_alone() -> None:
    model = net()
    before = model.SerializeToString(deterministic=True)
    quantized(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_rounded_once_for_many_placements_are_those_that_it_rounds_itself(
    per_channel: bool,
) -> None:
    model = net()
    most, *fewer = candidates(model)
    known = parameters(model, most)
    once = qdq.round_weights(model, most.nodes, known, per_channel)
    assert (
        once.keys()
        == {node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
        & most.nodes
    )
    for one in (most, *fewer):
        assert qdq.insert_qdq(model, one, known, per_channel, once) == qdq.insert_qdq(
            model, one, known, per_channel
        )


def test_an_older_opset_is_converted_and_a_newer_one_kept() -> None:
    old = net(opset=11)
    made = qdq.prepare_for_qdq(old)
    assert made.opset_import[0].version == qdq.MIN_OPSET
    assert error(old, made) < 1e-6
    assert error(old, quantized(made)) < NEAR
    assert qdq.prepare_for_qdq(net(opset=17)).opset_import[0].version == 17


def test_what_is_prepared_already_is_not_copied_and_what_is_not_is_left_alone() -> None:
    model = net(opset=17)
    assert qdq.prepare_for_qdq(model) is model
    model.ir_version = 3
    assert qdq.prepare_for_qdq(model).ir_version > model.ir_version == 3


def test_old_habits_of_exporters_are_undone() -> None:
    """Weights listed among the inputs (before IR 4), and weights in Constant nodes."""
    model = net(opset=11)
    model.ir_version = 3
    listed = [
        onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        for item in model.graph.initializer
    ]
    model.graph.input.extend(listed)
    weight = next(item for item in model.graph.initializer if item.name == "w0")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w0"], value=weight))
    for field in (model.graph.initializer, model.graph.input):
        field.remove(next(item for item in field if item.name == "w0"))  # type: ignore[arg-type]
    made = qdq.prepare_for_qdq(model)
    assert [item.name for item in made.graph.input] == ["data"]
    assert "w0" in stored(made)
    onnx.checker.check_model(made, full_check=True)
    written = quantized(made)
    onnx.checker.check_model(written, full_check=True)
    assert [item.name for item in written.graph.input] == ["data"]
    assert error(net(), written) < NEAR


def test_what_cannot_be_written_is_refused_by_name() -> None:
    scaled = net(NET.replace("<transB = 0>", "<alpha = 0.5>"))
    one = Placement("forced", frozenset({"output"}), ("hidden",))
    with pytest.raises(InputError, match=r"output: a Gemm with alpha"):
        qdq.insert_qdq(scaled, one, parameters(scaled, one), per_channel=True)


def test_a_channel_of_zeros_without_bias_is_exact() -> None:
    model = net()
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item).copy()
        if item.name in ("w0", "b0"):
            values[:3] = 0
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    made = quantized(model)
    assert all(np.isfinite(values).all() for values in stored(made).values())
    assert error(model, made) < NEAR


def steps_off(model: onnx.ModelProto, made: onnx.ModelProto) -> float:
    """How far the values behind the DequantizeLinears are from those that were quantized, in steps of the true scale.

    Weights and biases at worst, activations on average (noise pushes some out of their range). Rounding gives up to a half.
    """
    before, maker = stored(model), makers(made)
    reads = [
        pair
        for node in model.graph.node
        for pair in zip(maker[node.output[0]].input, node.input, strict=True)
    ]
    pairs = {now: was for now, was in reads if now != was}
    values = probe(made, [*pairs, *(was for was in pairs.values() if was not in before)])
    true = parameters(model, candidates(model)[0])
    off = []
    for now, was in pairs.items():
        if was in true:
            off.append(np.abs(values[now] - values[was]).mean() / true[was].scale)
        elif before[was].ndim > 1 and before[was].shape[0] > 1:
            flat = (
                before[was].T if was == "w5" else before[was]
            )  # w5 is the weight of the Gemm with transB 0
            rows = flat.reshape(len(flat), -1)
            found = (values[now].T if was == "w5" else values[now]).reshape(rows.shape)
            off.append((np.abs(found - rows).max(1) / (np.abs(rows).max(1) / 127)).max())
        else:
            off.append(
                np.abs(values[now] - before[was].reshape(-1)).max() / np.abs(before[was]).max()
            )
    return float(max(off))


def probe(model: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    """The named tensors of `model` on the calibration images."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    wanted = [name for name in dict.fromkeys(names) if name != "data"]
    probed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted
    )
    found = engine("onnxruntime").open(probed, exact=True).run_all(images(64))
    return {"data": images(64), **dict(zip(wanted, found, strict=True))}


def test_every_restored_value_is_within_half_a_step() -> None:
    model = net()
    assert steps_off(model, quantized(model)) <= 0.501


def _constant(
    ends: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Callable[[onnx.ModelProto], None]:
    def mutate(made: onnx.ModelProto) -> None:
        hits = [item for item in made.graph.initializer if item.name.endswith(ends)]
        assert len(hits) == 1
        hits[0].CopyFrom(
            numpy_helper.from_array(change(numpy_helper.to_array(hits[0])), hits[0].name)
        )

    return mutate


def _restoring_other(
    what: int, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Callable[[onnx.ModelProto], None]:
    """The DequantizeLinear of the activation `sum`'s ReLU takes another scale (1) or zero point (2) than its QuantizeLinear."""

    def mutate(made: onnx.ModelProto) -> None:
        node = makers(made)["relu_dequantized"]
        values = change(stored(made)[node.input[what]])
        made.graph.initializer.append(numpy_helper.from_array(values, "other"))
        node.input[what] = "other"

    return mutate


def _wrong_axis(made: onnx.ModelProto) -> None:
    node = makers(made)["again:w3_dequantized"]
    next(item for item in node.attribute if item.name == "axis").i = 1


def _bias_without_input_scale(made: onnx.ModelProto) -> None:
    constants, maker = stored(made), makers(made)
    node = makers(made)["stem"]
    item = next(one for one in made.graph.initializer if one.name == maker[node.input[2]].input[1])
    item.CopyFrom(numpy_helper.from_array(constants[maker[node.input[1]].input[1]], item.name))


MUTANTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "activation restored with a zero point off by one": _restoring_other(
        2, lambda zero: (zero + 1).astype(np.uint8)
    ),
    "activation restored with another scale": _restoring_other(
        1, lambda scale: scale * np.float32(1.1)
    ),
    "activation scale too small": _constant("relu_scale", lambda scale: scale * np.float32(0.2)),
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
def test_a_mutant_is_caught(name: str) -> None:
    model = net()
    made = quantized(model)
    MUTANTS[name](made)
    assert steps_off(model, made) > 0.55


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_activations_are_the_same_numbers(per_channel: bool) -> None:
    model = net()
    one = candidates(model)[0]
    made = qdq.insert_qdq(model, one, parameters(model, one), per_channel, signed=True)
    onnx.checker.check_model(made, full_check=True)
    assert stored(made)["data_zero_point"].dtype == np.int8
    np.testing.assert_array_equal(
        run(made, images(16)), run(quantized(model, per_channel), images(16))
    )
