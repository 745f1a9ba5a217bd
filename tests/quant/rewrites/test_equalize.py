"""Equalization: the function stays, like channels come out whatever went in, and what is not
homogeneous holds still.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tests.quant import placements as place

from repzoo.engines import engine
from repzoo.quant.calibration.calibrate import CalibrationStream, collect_statistics
from repzoo.quant.network import channels, layers
from repzoo.quant.network.scheme import load_scheme
from repzoo.quant.parameters import compute
from repzoo.quant.rewrites import equalize

Array = npt.NDArray[np.float32]

# A residual block with squeeze-and-excitation, a depthwise chain, a grouped layer, Concat and
# Split, a ReLU6 and a swish.
NET = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] data) => (float[N, 5] output)
    {
        stem = Conv <pads = [1, 1, 1, 1]> (data, stem_w, b8)
        live = Relu (stem)
        deep = Conv <group = 8, pads = [1, 1, 1, 1]> (live, deep_w, b8)
        deeper = Relu (deep)
        squeezed = GlobalAveragePool (deeper)
        less = Conv (squeezed, less_w)
        lesser = Relu (less)
        more = Conv (lesser, more_w)
        gate = Sigmoid (more)
        gated = Mul (deeper, gate)
        back = Conv (gated, back_w, b8)
        sum = Add (back, live)
        left, right = Split <axis = 1> (sum)
        cheap = Conv <group = 2> (left, cheap_w)
        joined = Concat <axis = 1> (cheap, right)
        wide = Conv (joined, wide_w, b6)
        six = Clip (wide, zero, top)
        narrow = Conv (six, narrow_w, b6)
        swish = Sigmoid (narrow)
        swished = Mul (narrow, swish)
        last = Conv (swished, last_w, b6)
        pooled = GlobalAveragePool (last)
        flat = Flatten (pooled)
        output = Gemm <transB = 0> (flat, fc_w, b5)
    }"""
SHAPES = {
    "stem_w": (8, 3, 3, 3), "deep_w": (8, 1, 3, 3), "less_w": (2, 8, 1, 1), "more_w": (8, 2, 1, 1), "back_w": (8, 8, 1, 1),
    "cheap_w": (4, 2, 1, 1), "wide_w": (6, 8, 1, 1), "narrow_w": (6, 6, 1, 1), "last_w": (6, 6, 1, 1), "fc_w": (6, 5),
    "b8": (8,), "b6": (6,), "b5": (5,), "zero": (), "top": (),
}  # fmt: skip
FREE = {
    "stem", "live", "deep", "deeper", "squeezed", "less", "lesser", "gated", "back", "sum", "left", "right", "cheap", "joined",
    "last", "pooled", "flat",
}  # fmt: skip


def net(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(NET)
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
        values = {"zero": np.zeros(()), "top": np.array(6.0)}.get(name, values)
        model.graph.initializer.append(
            numpy_helper.from_array(np.asarray(values, np.float32), name)
        )
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int = 16) -> Array:
    return np.random.default_rng(9).standard_normal((count, 3, 8, 8)).astype(np.float32)


def run(model: onnx.ModelProto) -> Array:
    return engine("onnxruntime").open(model, exact=True).run(images())


def rescale_randomly(model: onnx.ModelProto, seed: int = 1) -> onnx.ModelProto:
    """The same function with its free channels multiplied by 10^-2 .. 10^2."""
    all_layers = layers.find_layers(model)
    linked = channels.link_channels(model, all_layers)
    total = 10 ** np.random.default_rng(seed).uniform(-2, 2, linked.count)
    total[channels.FIXED] = 1
    return equalize.rescale_channels(model, all_layers, linked, total).model


def test_exactly_the_homogeneous_channels_are_free() -> None:
    model = net()
    labels = channels.link_channels(model, layers.find_layers(model)).labels
    assert {name for name, free in labels.items() if free.all()} == FREE
    assert {name for name, free in labels.items() if free.any()} == FREE
    assert (labels["sum"] == labels["live"]).all()
    assert (
        labels["joined"] == np.concatenate([labels["cheap"], labels["right"]])
    ).all()
    assert set(labels["deep"]).isdisjoint(labels["live"])


@pytest.mark.parametrize("seed", range(3))
def test_the_function_stays(seed: int) -> None:
    model = net(seed)
    expected = run(model)
    bound = 1e-5 * np.abs(expected).max()
    assert np.abs(run(equalize.equalize_ranges(model).model) - expected).max() < bound
    twin = rescale_randomly(model)
    assert np.abs(run(twin) - expected).max() < bound
    assert np.abs(run(equalize.equalize_ranges(twin).model) - expected).max() < bound
    onnx.checker.check_model(twin, full_check=True)


def test_a_rescaled_twin_ends_in_the_same_weights() -> None:
    plain, other = (
        equalize.equalize_ranges(model).model
        for model in (net(), rescale_randomly(net()))
    )
    ours, theirs = (
        [
            layers.weight_rows(layer, layers.initializer_arrays(equalized))
            for layer in layers.find_layers(equalized).values()
        ]
        for equalized in (plain, other)
    )
    for first, second in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(first, second, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(
    "flatten", ["flat = Flatten (live)", "flat = Reshape (live, shape)"]
)
def test_a_flatten_of_several_pixels_carries_factors_on(flatten: str) -> None:
    """Each pixel of a channel takes the channel's factor; the twin's INT8 weights are the
    model's.
    """
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 8, 8] data) => (float[N, 5] output) {{
        stem = Conv <strides = [2, 2]> (data, stem_w)
        live = Relu (stem)
        {flatten}
        output = Gemm <transB = 1> (flat, fc_w) }}"""
    )
    random = np.random.default_rng(2)
    for name, shape in {"stem_w": (6, 3, 2, 2), "fc_w": (5, 96)}.items():
        model.graph.initializer.append(
            numpy_helper.from_array(
                random.standard_normal(shape).astype(np.float32), name
            )
        )
    if "Reshape" in flatten:
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([-1, 96]), "shape")
        )
    twin, equalized = rescale_randomly(model), equalize.equalize_ranges(model)
    labels = channels.link_channels(model, layers.find_layers(model)).labels
    assert labels["stem"].all()
    assert (labels["flat"] == np.repeat(labels["stem"], 16)).all()
    assert (
        np.abs(
            layers.initializer_arrays(twin)["fc_w:output"]
            / layers.initializer_arrays(model)["fc_w"]
        ).max()
        > 5
    )
    for network in (twin, equalized.model, equalize.equalize_ranges(twin).model):
        np.testing.assert_allclose(
            run(network), run(model), atol=1e-4 * np.abs(run(model)).max()
        )
    first, second = (
        layers.initializer_arrays(network)
        for network in (equalized.model, equalize.equalize_ranges(twin).model)
    )
    ours, theirs = (
        next(arrays[name] for name in arrays if name.startswith("fc_w"))
        for arrays in (first, second)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=1e-4)


def test_a_factor_too_many_is_caught() -> None:
    """The mutant: a channel behind ReLU6 is scaled as if it were free."""
    model = net()
    all_layers = layers.find_layers(model)
    linked = channels.link_channels(model, all_layers)
    numbers = np.arange(linked.count, linked.count + 6)
    wrong = channels.ChannelGroups(
        {**linked.labels, "wide": numbers, "six": numbers}, linked.count + 6
    )
    total = np.ones(wrong.count)
    total[numbers] = 0.1
    assert (
        np.abs(
            run(equalize.rescale_channels(model, all_layers, wrong, total).model)
            - run(model)
        ).max()
        > 0.01
    )


def test_pairs_of_layers_come_out_alike() -> None:
    """Two layers with one ReLU between: each channel's largest weight written is its largest
    read.
    """
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] data) => (float[N, 6, 8, 8] output)
        { one = Conv <pads = [1, 1, 1, 1]> (data, stem_w, b8) live = Relu (one) output = Conv (live, wide_w, b6) }""")
    model.graph.initializer.extend(
        item
        for item in net().graph.initializer
        if item.name in ("stem_w", "b8", "wide_w", "b6")
    )
    equalized = equalize.equalize_ranges(model)
    all_layers = layers.find_layers(equalized.model)
    first, second = (
        layers.weight_rows(all_layers[name], layers.initializer_arrays(equalized.model))
        for name in ("one", "output")
    )
    np.testing.assert_allclose(
        np.abs(first).max(2)[0], np.abs(second).max(1)[0], rtol=1e-3
    )


def test_statistics_follow() -> None:
    """Rescaled afterward, they are those of the equalized model."""
    model = net()
    equalized = equalize.equalize_ranges(model)
    names = [name for name in FREE if name != "output"]
    before, after = (
        collect_statistics(
            network,
            names,
            list(layers.find_layers(network).values()),
            CalibrationStream([images()], 16),
            engine("onnxruntime"),
            1,
        )
        for network in (model, equalized.model)
    )
    moved = before.rescaled(equalized.factors, layers.find_layers(model).values())
    for name in names:
        np.testing.assert_allclose(
            moved.histograms[name].high,
            after.histograms[name].high,
            rtol=1e-4,
            atol=1e-6,
        )
        np.testing.assert_allclose(
            moved.histograms[name].mean,
            after.histograms[name].mean,
            rtol=1e-3,
            atol=1e-6,
        )
    for name, moments in after.moments.items():
        np.testing.assert_allclose(
            moved.moments[name].mean, moments.mean, rtol=1e-3, atol=1e-6
        )
        np.testing.assert_allclose(
            moved.moments[name].grams[0], moments.grams[0], rtol=1e-3, atol=1e-5
        )


def test_a_dead_channel_is_left_alone() -> None:
    model = net()
    item = next(tensor for tensor in model.graph.initializer if tensor.name == "stem_w")
    values = numpy_helper.to_array(item).copy()
    values[3] = 0
    item.CopyFrom(numpy_helper.from_array(values, item.name))
    equalized = equalize.equalize_ranges(model)
    assert all(np.isfinite(factors).all() for factors in equalized.factors.values())
    assert (
        np.abs(run(equalized.model) - run(model)).max()
        < 1e-5 * np.abs(run(model)).max()
    )


# ReLU6

SIX = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] data) => (float[N, 5] output)
    {
        wide = Conv <pads = [1, 1, 1, 1]> (data, wide_w, wide_b)
        six = Clip (wide, zero, top)
        deep = Conv <group = 6, pads = [1, 1, 1, 1]> (six, deep_w)
        sixth = Clip (deep, zero, top)
        last = Conv (sixth, last_w)
        pooled = GlobalAveragePool (last)
        flat = Flatten (pooled)
        output = Gemm <transB = 0> (flat, fc_w, b5)
    }"""


def relu6_net(loud: int = 2) -> onnx.ModelProto:
    """A depthwise chain through ReLU6; channel `loud` saturates, the others stay far below 6
    and are of unlike sizes.
    """
    rng = np.random.default_rng(3)
    sizes = np.array([0.01, 1.0, 9.0, 0.1, 0.5, 0.02])
    sizes[[2, loud]] = sizes[[loud, 2]]
    model = onnx.parser.parse_model(SIX)
    tensors = {
        "wide_w": rng.standard_normal((6, 3, 3, 3)) / 6 * sizes[:, None, None, None],
        "wide_b": 0.1 * sizes,
        "deep_w": rng.uniform(0.1, 0.3, (6, 1, 3, 3)),
        "last_w": rng.standard_normal((6, 6, 1, 1)) / sizes[None, :, None, None],
        "fc_w": rng.standard_normal((6, 5)),
        "b5": rng.standard_normal(5),
        "zero": np.zeros(()),
        "top": np.array(6.0),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in tensors.items()
    )
    return model


def test_relu6_channels_are_fixed() -> None:
    model = relu6_net()
    assert (
        not channels.link_channels(model, layers.find_layers(model)).labels["six"].any()
    )


# INT8 of a network and of a rescaled copy


def quantize(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    equalized, placed = equalize.equalize_ranges(model), place.candidates(model)[0]
    statistics = collect_statistics(
        equalized.model,
        list(placed.tensors),
        list(layers.find_layers(equalized.model).values()),
        CalibrationStream([images()], 16),
        engine("onnxruntime"),
        1,
    )
    return compute.write_qdq(
        compute.compute_parameters(
            equalized.model,
            placed,
            statistics,
            load_scheme(name),
            compute.Corrections(),
        ),
        placed,
        load_scheme(name),
    )


@pytest.mark.parametrize("name", ["ort-cpu", "per-tensor"])
@pytest.mark.parametrize("seed", range(2))
def test_int8_does_not_see_that_channels_were_rescaled(seed: int, name: str) -> None:
    """By 10^-2 .. 10^2 across ReLUs, a depthwise chain, a residual, a gate, Concat and Split:
    the errors are alike, and small.
    """
    model = net(seed)
    expected = run(model)
    ours, theirs = (
        run(quantize(network, name)) - expected
        for network in (model, rescale_randomly(model, seed + 5))
    )
    assert (
        np.square(theirs).mean()
        < 1.5 * np.square(ours).mean()
        < 0.01 * np.var(expected)
    )
    plain = compute.Corrections(gptq=False)
    twin, placed = rescale_randomly(model, seed + 5), place.candidates(model)[0]
    seen = collect_statistics(
        twin,
        list(placed.tensors),
        list(layers.find_layers(twin).values()),
        CalibrationStream([images()], 16),
        engine("onnxruntime"),
        1,
    )
    broken = compute.write_qdq(
        compute.compute_parameters(twin, placed, seen, load_scheme(name), plain),
        placed,
        load_scheme(name),
    )
    assert (
        np.square(run(broken) - expected).mean() > 4 * np.square(theirs).mean()
    )  # what it would be without
